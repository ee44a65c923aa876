"""Expectations: what a YAML beside an object promises (docs/expectations.md), as values, and how they are read from
plain dicts.

The YAML itself is opened by `harness.config`; here only its shape is checked. Every error is a ConfigError that
names the path to the key.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

from harness.errors import ConfigError
from harness.model.arch import ARCHITECTURES
from harness.model.cell import CellId
from harness.model.verdict import Liveness, Outcome, Stage

VERDICTS = ("loaded", "rejected", "crashed", "any", "not_applicable")
KINDS = (
    "byte_off",
    "byte_sz",
    "field_exists",
    "signed",
    "lshift_u64",
    "rshift_u64",
    "local_type_id",
    "target_type_id",
    "type_exists",
    "type_matches",
    "type_size",
    "enumval_exists",
    "enumval_value",
)  # fmt: skip  (libbpf's core_relo_kind_str)


@cache
def _glob(pattern: str) -> re.Pattern[str]:
    # Not fnmatch: identities and fields hold brackets, `[use_fancy_helper=1]`, `count[1]`, which are text here.
    parts = (".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern)
    return re.compile("".join(parts), re.DOTALL)


def matches(patterns: tuple[str, ...], text: str) -> bool:
    """Does any glob of `patterns` (`*` and `?` only) cover the whole of `text`?"""
    return any(_glob(pattern).fullmatch(text) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class RelocationRule:
    """What is expected of every relocation that `field`, `kind` and `source` match; an empty tuple or None promises
    nothing.
    """

    field: str
    kind: str | None = None
    source: str | None = None
    outcome: tuple[str, ...] = ()
    liveness: tuple[str, ...] = ()
    value: int | None = None

    def covers(self, field: str, kind: str, source_text: str) -> bool:
        """Is a relocation of this field and kind, on this source line, spoken of?"""
        return (
            matches((self.field,), field)
            and self.kind in {None, kind}
            and (self.source is None or matches((self.source,), source_text.strip()))
        )


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One item of `rules:`; `where` is its place in the file, for messages. `adaptations` (None: says nothing) refuses
    or allows that a program is loaded only with what libbpf would not have done.
    """

    where: str
    kernels: tuple[str, ...] = ("*",)
    program: tuple[str, ...] = ("*",)
    arches: tuple[str, ...] = ()
    loader: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    verdict: str | None = None
    stage: Stage | None = None
    relocations: tuple[RelocationRule, ...] = ()
    reason: str | None = None
    expires: datetime.date | None = None
    adaptations: str | None = None

    def covers_cell(self, cell: CellId, arch: str) -> bool:
        """Does the rule speak of this cell (whatever the program)?"""
        return (
            matches(self.kernels, cell.kernel)
            and (not self.arches or arch in self.arches)
            and (not self.loader or cell.loader in self.loader)
            and set(self.settings) <= set(cell.settings)
        )

    def expired(self, today: datetime.date) -> bool:
        """From its `expires` day on a rule counts no more."""
        return self.expires is not None and today >= self.expires


@dataclass(frozen=True, kw_only=True)
class Expectations:
    """One object's expectations. `where` names the file; `settings` is the axis of .rodata values, one tuple for
    each cell.
    """

    where: str | None = None
    arches: tuple[str, ...] = ()
    reason: str | None = None
    settings: tuple[tuple[tuple[str, str], ...], ...] = ((),)
    rules: tuple[Rule, ...] = ()


NONE = Expectations()


def expectations_from(data: Mapping[str, Any] | None, where: str) -> Expectations:
    """Read the mapping of an expectations file; `where` is the file's name. None (an empty file) expects nothing
    special.

    Raises ConfigError, naming the path to the key, for unknown keys and values that are not of docs/expectations.md.
    """
    if data is None:
        return Expectations(where=where)
    top = _keys(data, f"{where}:", {"arches", "reason", "settings", "rules"})
    settings = tuple(_settings(item, f"{where}: settings[{n}]") for n, item in enumerate(_list(top, "settings", where)))
    if len(set(settings)) < len(settings):
        _fail(f"{where}: settings", "two equal mappings would make two cells of one identity")
    return Expectations(
        where=where,
        arches=_words(top, "arches", f"{where}:", ARCHITECTURES),
        reason=_text(top, "reason", f"{where}:"),
        settings=settings or ((),),
        rules=tuple(_rule(item, f"{where}: rules[{n}]") for n, item in enumerate(_list(top, "rules", where))),
    )


_SELECTORS = {"kernels", "program", "arches", "loader", "settings"}
_RULE_KEYS = _SELECTORS | {"verdict", "stage", "relocations", "reason", "expires", "adaptations"}
ADAPTATIONS = ("allowed", "refused")


def _rule(data: Any, where: str) -> Rule:
    rule = _keys(data, where, _RULE_KEYS)
    verdict = _word(rule, "verdict", where, VERDICTS)
    stage = _word(rule, "stage", where, tuple(Stage))
    reason = _text(rule, "reason", where)
    if stage and verdict != "rejected":
        _fail(f"{where}.stage", "goes with `verdict: rejected` only")
    if verdict not in {None, "loaded"} and not reason:
        _fail(f"{where}.reason", f"`verdict: {verdict}` needs a reason, for those who read the report")
    if verdict is None and not rule.get("relocations") and not rule.get("adaptations"):
        _fail(where, "expects nothing: give `verdict`, `relocations` or `adaptations`")
    entries = _list(rule, "relocations", where)
    return Rule(
        where=where,
        kernels=_words(rule, "kernels", where) or ("*",),
        program=_words(rule, "program", where) or ("*",),
        arches=_words(rule, "arches", where, ARCHITECTURES),
        loader=_words(rule, "loader", where, ("python", "libbpf")),
        settings=_settings(rule.get("settings") or {}, f"{where}.settings"),
        verdict=verdict,
        stage=Stage(stage) if stage else None,
        relocations=tuple(_relocation(item, f"{where}.relocations[{n}]") for n, item in enumerate(entries)),
        reason=reason,
        expires=_date(rule.get("expires"), f"{where}.expires"),
        adaptations=_word(rule, "adaptations", where, ADAPTATIONS),
    )


def _relocation(data: Any, where: str) -> RelocationRule:
    entry = _keys(data, where, {"field", "kind", "source", "outcome", "liveness", "value"})
    name = _text(entry, "field", where)
    if not name:
        _fail(f"{where}.field", "is missing: write it as libbpf prints it, `task_struct.__state`")
    value = entry.get("value")
    if value is not None and (not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64):
        _fail(f"{where}.value", f"a whole number of 64 bits wanted, found {value!r}")
    return RelocationRule(
        field=name,
        kind=_word(entry, "kind", where, KINDS),
        source=_text(entry, "source", where),
        outcome=_words(entry, "outcome", where, tuple(Outcome)),
        liveness=_words(entry, "liveness", where, tuple(Liveness)),
        value=None if value is None else int(value) % (1 << 64),
    )


def _keys(data: Any, where: str, known: set[str]) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        _fail(where.rstrip(":"), f"a mapping wanted, found {type(data).__name__}")
    for key in data:
        if key not in known:
            join = " " if where.endswith(":") else "."
            _fail(f"{where}{join}{key}", f"unknown key; known here: {', '.join(sorted(known))}")
    return data


def _list(data: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = data.get(key)
    if value is not None and not isinstance(value, list):
        _fail(f"{where}: {key}", f"a list wanted, found {type(value).__name__}")
    return value or []


def _path(where: str, key: str) -> str:
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"


def _text(data: Mapping[str, Any], key: str, where: str) -> str | None:
    value = data.get(key)
    if value is not None and not isinstance(value, str):
        _fail(_path(where, key), f"text wanted, found {value!r}")
    return value


def _word(data: Mapping[str, Any], key: str, where: str, known: tuple[str, ...]) -> str | None:
    value = _text(data, key, where)
    if value is not None and value not in known:
        _fail(_path(where, key), f"{value!r} is none of: {', '.join(known)}")
    return value


def _words(data: Mapping[str, Any], key: str, where: str, known: Any = None) -> tuple[str, ...]:
    """One word or a list of them."""
    value = data.get(key)
    words = [value] if isinstance(value, str) else value
    if words is None:
        return ()
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        _fail(_path(where, key), f"text or a list of texts wanted, found {value!r}")
    for word in words:
        if known is not None and word not in known:
            _fail(_path(where, key), f"{word!r} is none of: {', '.join(known)}")
    return tuple(words)


# How a YAML value becomes the text that the loader parses by the variable's type; bool before int, which it is one of.
_SETTING_TEXT: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (bool, lambda value: "true" if value else "false"),
    (int, str),
    (str, str),
)


def _settings(data: Any, where: str) -> tuple[tuple[str, str], ...]:
    if not isinstance(data, Mapping):
        _fail(where, f"a mapping of variable to value wanted, found {type(data).__name__}")
    pairs = []
    for name, value in data.items():
        text = next((render(value) for kind, render in _SETTING_TEXT if isinstance(value, kind)), None)
        if not isinstance(name, str) or text is None:
            _fail(f"{where}.{name}", f"a number, true, false or text wanted, found {value!r}")
        pairs.append((name, text))
    return tuple(sorted(pairs))


def _date(value: Any, where: str) -> datetime.date | None:
    if value is None or (isinstance(value, datetime.date) and not isinstance(value, datetime.datetime)):
        return value
    try:
        return datetime.date.fromisoformat(value)
    except (TypeError, ValueError):
        _fail(where, f"a date like 2027-01-31 wanted, found {value!r}")


def _fail(where: str, what: str) -> NoReturn:
    message = f"{where}: {what}"
    raise ConfigError(message)
