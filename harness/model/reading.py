"""Values out of plain dicts, as YAML gives them: what each key may hold. Every error is a ConfigError that names the
path to the key.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NoReturn

from harness.errors import ConfigError


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    # Not fnmatch: identities and fields hold brackets, `[use_fancy_helper=1]`, `count[1]`, which are text here.
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
    return re.compile("".join(parts), re.DOTALL)


def matches(patterns: tuple[str, ...], text: str) -> bool:
    """Does any glob of `patterns` (`*` and `?` only) cover the whole of `text`?"""
    return any(_glob(pattern).fullmatch(text) for pattern in patterns)


def keys(data: Any, where: str, known: set[str]) -> Mapping[str, Any]:
    """A mapping that has no other keys. `where` is its place; with a colon at its end it is a file."""
    if not isinstance(data, Mapping):
        fail(where.rstrip(":"), f"a mapping wanted, found {type(data).__name__}")
    for key in data:
        if key not in known:
            join = " " if where.endswith(":") else "."
            fail(f"{where}{join}{key}", f"unknown key; known here: {', '.join(sorted(known))}")
    return data


def items(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    """A list; without the key an empty one."""
    value = data.get(key)
    if value is not None and not isinstance(value, list):
        fail(f"{where}: {key}", f"a list wanted, found {type(value).__name__}")
    return value or []


def _path(where: str, key: str) -> str:
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def text(data: Mapping[str, Any], key: str, where: str) -> str | None:
    """Text, None without the key."""
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        fail(_path(where, key), f"text wanted, found {value!r}")
    return value


def word(data: Mapping[str, Any], key: str, where: str, known: tuple[str, ...]) -> str | None:
    """One of the words known, None without the key."""
    value = text(data, key, where)
    if value is not None and value not in known:
        fail(_path(where, key), f"{value!r} is none of: {', '.join(known)}")
    return value


def words(data: Mapping[str, Any], key: str, where: str, known: Any = None) -> tuple[str, ...]:
    """One word or a list of them."""
    value = data.get(key)
    words = [value] if isinstance(value, str) else value
    if words is None:
        return ()
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        fail(_path(where, key), f"text or a list of texts wanted, found {value!r}")
    for word in words:
        if known is not None and word not in known:
            fail(_path(where, key), f"{word!r} is none of: {', '.join(known)}")
    return tuple(words)


# How a YAML value becomes the text that the loader parses by the variable's type; bool before int, which it is one of.
_SETTING_TEXT: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (bool, lambda value: "true" if value else "false"),
    (int, str),
    (str, str),
)


def settings_of(data: Any, where: str) -> tuple[tuple[str, str], ...]:
    """Variables and their values as text, sorted."""
    if not isinstance(data, Mapping):
        fail(where, f"a mapping of variable to value wanted, found {type(data).__name__}")
    pairs = []
    for name, value in data.items():
        text = next((render(value) for kind, render in _SETTING_TEXT if isinstance(value, kind)), None)
        if not isinstance(name, str) or text is None:
            fail(f"{where}.{name}", f"a number, true, false or text wanted, found {value!r}")
        pairs.append((name, text))
    return tuple(sorted(pairs))


def date_of(value: Any, where: str) -> datetime.date | None:
    """A date as YAML or ISO 8601 has it."""
    if value is None or (isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        fail(where, f"a date like 2027-01-31 wanted, found {value!r}")


def fail(where: str, what: str) -> NoReturn:
    """ConfigError."""
    message = f"{where}: {what}"
    raise ConfigError(message)
