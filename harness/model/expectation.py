"""Expectations: what a YAML beside an object promises (docs/expectations.md), as values, and how they are read from
plain dicts.

The YAML itself is opened by `harness.config`; here only its shape is checked. Every error is a ConfigError that
names the path to the key.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.model import functional, reading
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
            reading.matches((self.field,), field)
            and self.kind in {None, kind}
            and (self.source is None or reading.matches((self.source,), source_text.strip()))
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
            reading.matches(self.kernels, cell.kernel)
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
    each cell, `tests` are commands to run in the guest besides.
    """

    where: str | None = None
    arches: tuple[str, ...] = ()
    reason: str | None = None
    settings: tuple[tuple[tuple[str, str], ...], ...] = ((),)
    rules: tuple[Rule, ...] = ()
    tests: tuple[functional.FunctionalTest, ...] = ()


NONE = Expectations()


def expectations_from(data: Mapping[str, Any] | None, where: str) -> Expectations:
    """Read the mapping of an expectations file; `where` is the file's name. None (an empty file) expects nothing
    special.

    Raises ConfigError, naming the path to the key, for unknown keys and values that are not of docs/expectations.md.
    """
    if data is None:
        return Expectations(where=where)
    top = reading.keys(data, f"{where}:", {"arches", "reason", "settings", "rules", "tests"})
    axis = reading.items(top, "settings", where)
    settings = tuple(reading.settings_of(item, f"{where}: settings[{n}]") for n, item in enumerate(axis))
    if len(set(settings)) < len(settings):
        reading.fail(f"{where}: settings", "two equal mappings would make two cells of one identity")
    return Expectations(
        where=where,
        arches=reading.words(top, "arches", f"{where}:", ARCHITECTURES),
        reason=reading.text(top, "reason", f"{where}:"),
        settings=settings or ((),),
        rules=tuple(_rule(item, f"{where}: rules[{n}]") for n, item in enumerate(reading.items(top, "rules", where))),
        tests=functional.tests_from(reading.items(top, "tests", where), where),
    )


_SELECTORS = {"kernels", "program", "arches", "loader", "settings"}
_RULE_KEYS = _SELECTORS | {"verdict", "stage", "relocations", "reason", "expires", "adaptations"}
ADAPTATIONS = ("allowed", "refused")


def _rule(data: Any, where: str) -> Rule:
    rule = reading.keys(data, where, _RULE_KEYS)
    verdict = reading.word(rule, "verdict", where, VERDICTS)
    stage = reading.word(rule, "stage", where, tuple(Stage))
    reason = reading.text(rule, "reason", where)
    if stage and verdict != "rejected":
        reading.fail(f"{where}.stage", "goes with `verdict: rejected` only")
    if verdict not in {None, "loaded"} and not reason:
        reading.fail(f"{where}.reason", f"`verdict: {verdict}` needs a reason, for those who read the report")
    if verdict is None and not rule.get("relocations") and not rule.get("adaptations"):
        reading.fail(where, "expects nothing: give `verdict`, `relocations` or `adaptations`")
    entries = reading.items(rule, "relocations", where)
    return Rule(
        where=where,
        kernels=reading.words(rule, "kernels", where) or ("*",),
        program=reading.words(rule, "program", where) or ("*",),
        arches=reading.words(rule, "arches", where, ARCHITECTURES),
        loader=reading.words(rule, "loader", where, ("python", "libbpf")),
        settings=reading.settings_of(rule.get("settings") or {}, f"{where}.settings"),
        verdict=verdict,
        stage=Stage(stage) if stage else None,
        relocations=tuple(_relocation(item, f"{where}.relocations[{n}]") for n, item in enumerate(entries)),
        reason=reason,
        expires=reading.date_of(rule.get("expires"), f"{where}.expires"),
        adaptations=reading.word(rule, "adaptations", where, ADAPTATIONS),
    )


def _relocation(data: Any, where: str) -> RelocationRule:
    entry = reading.keys(data, where, {"field", "kind", "source", "outcome", "liveness", "value"})
    name = reading.text(entry, "field", where)
    if not name:
        reading.fail(f"{where}.field", "is missing: write it as libbpf prints it, `task_struct.__state`")
    value = entry.get("value")
    if value is not None and (not isinstance(value, int) or not -(1 << 63) <= value < 1 << 64):
        reading.fail(f"{where}.value", f"a whole number of 64 bits wanted, found {value!r}")
    return RelocationRule(
        field=name,
        kind=reading.word(entry, "kind", where, KINDS),
        source=reading.text(entry, "source", where),
        outcome=reading.words(entry, "outcome", where, tuple(Outcome)),
        liveness=reading.words(entry, "liveness", where, tuple(Liveness)),
        value=None if value is None else int(value) % (1 << 64),
    )
