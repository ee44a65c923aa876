"""A YAML value that knows where it came from, so that every complaint names the file and the path to the key."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from harness.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Node:
    """`value` is what YAML gave, `file` what to call the file, `path` the way to the value (`kernels[3].suite`)."""

    value: Any
    file: str
    path: str = ""

    def fail(self, problem: str, *, remedy: str | None = None) -> NoReturn:
        """Raise the ConfigError for this place."""
        message = f"{self.file}: {self.path}: {problem}" if self.path else f"{self.file}: {problem}"
        raise ConfigError(message, remedy=remedy)

    def mapping(self, known: Collection[str], *, required: Collection[str] = ()) -> dict[str, Node]:
        """The entries of a mapping whose keys are all in `known`; None reads as an empty one."""
        value = {} if self.value is None else self.value
        if not isinstance(value, dict):
            self.fail(f"expected a mapping, found {_kind(value)}")
        for key in value:
            if key not in known:
                self._key(str(key)).fail("unknown key", remedy=_nearest(str(key), known))
        for key in required:
            if value.get(key) is None:
                self._key(key).fail("this key is required")
        return {key: self._key(key, item) for key, item in value.items()}

    def named(self) -> dict[str, Node]:
        """The entries of a mapping whose keys are names chosen by the writer."""
        value = {} if self.value is None else self.value
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            self.fail("expected a mapping from names")
        return {key: self._key(key, item) for key, item in value.items()}

    def sequence(self) -> Iterator[Node]:
        """The items of a list; None reads as an empty one."""
        value = [] if self.value is None else self.value
        if not isinstance(value, list):
            self.fail(f"expected a list, found {_kind(value)}")
        for index, item in enumerate(value):
            yield Node(value=item, file=self.file, path=f"{self.path}[{index}]")

    def text(self) -> str:
        """A non-empty string. Numbers are refused, not converted: YAML reads 6.10 as 6.1."""
        if not isinstance(self.value, str) or not self.value:
            self.fail(f"expected text, found {_kind(self.value)}", remedy="put quotes around it")
        return self.value

    def texts(self) -> tuple[str, ...]:
        """A list of strings, or one string for a list of one."""
        if isinstance(self.value, str):
            return (self.text(),)
        return tuple(item.text() for item in self.sequence())

    def integer(self, *, least: int = 0) -> int:
        """A whole number not below `least`."""
        if not isinstance(self.value, int) or isinstance(self.value, bool) or self.value < least:
            self.fail(f"expected a whole number of at least {least}, found {self.value!r}")
        return self.value

    def truth(self) -> bool:
        """true or false."""
        if not isinstance(self.value, bool):
            self.fail(f"expected true or false, found {_kind(self.value)}")
        return bool(self.value)

    def choice(self, among: Collection[str]) -> str:
        """One of a closed set of words."""
        if self.text() not in among:
            self.fail(f"{self.value!r} is not known here", remedy=_nearest(self.value, among))
        return str(self.value)

    def _key(self, key: str, value: Any = None) -> Node:
        return Node(value=value, file=self.file, path=f"{self.path}.{key}" if self.path else key)


def _nearest(word: str, known: Collection[str]) -> str:
    near = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


def _kind(value: Any) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", type(None): "nothing", bool: "true/false"}
    return names.get(type(value), f"the number {value}" if isinstance(value, (int, float)) else type(value).__name__)
