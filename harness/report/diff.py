"""Two runs compared: by cell, program and relocation, under docs/contract.md's identities.

A regression is what a release must not ship with: a program that no longer loads, a relocation that is poisoned or
reached poison, a cell, program or relocation that is gone (lost coverage), a relocation that still resolves but to
another kind of field, verifier cost grown past `CostLimits`. Trouble of the machine is neither regression nor
improvement, and never a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeVar

from harness.model.result import CellResult, ProgResult, Relocation, RunResult, VerifierStats
from harness.model.verdict import CellStatus, Liveness, Outcome, Verdict
from harness.report.view import TROUBLE, RelocationKey, drift, keyed

_K = TypeVar("_K")
_V = TypeVar("_V")


class Kind(StrEnum):
    """What a change means."""

    REGRESSION = "regression"
    IMPROVEMENT = "improvement"
    CHANGE = "change"
    TROUBLE = "trouble"


@dataclass(frozen=True, kw_only=True)
class CostLimits:
    """When growth of a verifier figure counts: by more than `percent` and by more than `absolute`, or past `of_limit`.

    `absolute` is per figure, since 1000 more instructions are noise where 1000 more bytes of stack are not possible.
    """

    percent: float = 20.0
    absolute: Mapping[str, int] = field(
        default_factory=lambda: {"processed_insns": 1000, "total_states": 100, "stack_depth": 32}
    )
    of_limit: float = 0.85


@dataclass(frozen=True, kw_only=True)
class Change:
    """One difference. `cell` is the identity; `prog` and `relocation` say where in it, when it is not the cell's
    own.
    """

    kind: Kind
    cell: str
    text: str
    prog: str | None = None
    relocation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Diff:
    """All differences of two runs, in the order of the runs; `kernels` are those that either run holds."""

    changes: tuple[Change, ...]
    kernels: tuple[str, ...] = ()

    def of(self, kind: Kind) -> tuple[Change, ...]:
        """Those of one kind."""
        return tuple(change for change in self.changes if change.kind is kind)

    @property
    def regressed(self) -> bool:
        """Must the gate close?"""
        return bool(self.of(Kind.REGRESSION))


def diff(base: RunResult, new: RunResult, limits: CostLimits | None = None) -> Diff:
    """What changed from `base` to `new`. Neither run is trusted to hold what the other holds."""
    before = {cell.id: cell for cell in base.cells}
    after = {cell.id: cell for cell in new.cells}
    changes = [change for cell_id, old, now in _paired(before, after)
               for change in _cell(cell_id, old, now, limits or CostLimits())]  # fmt: skip
    kernels = dict.fromkeys(cell.kernel.id for cell in (*base.cells, *new.cells))
    return Diff(changes=tuple(changes), kernels=tuple(kernels))


def _paired(before: Mapping[_K, _V], after: Mapping[_K, _V]) -> Iterator[tuple[_K, _V | None, _V | None]]:
    """Every key of either, in the order of the first, then what only the second has."""
    for key in dict.fromkeys([*before, *after]):
        yield key, before.get(key), after.get(key)


def _cell(cell_id: str, old: CellResult | None, new: CellResult | None, limits: CostLimits) -> Iterator[Change]:
    if new is None:
        if old is not None and old.status in {CellStatus.PASSED, CellStatus.FAILED}:
            yield Change(kind=Kind.REGRESSION, cell=cell_id, text="gone: this cell was judged before (lost coverage)")
        return
    if new.status in TROUBLE:
        yield Change(kind=Kind.TROUBLE, cell=cell_id, text=f"{new.status}: {new.reason or 'no reason recorded'}")
        if not new.progs:
            return
    if old is None or old.status in TROUBLE:
        yield Change(kind=Kind.CHANGE, cell=cell_id, text=f"not judged before, now {new.status}")
        return
    parts = [
        change
        for name, was, now in _paired(_progs(old), _progs(new))
        if now is not None or new.status not in TROUBLE  # a lost guest's programs are not gone
        for change in _prog(cell_id, name, was, now, limits)
    ]
    yield from parts
    if old.status is CellStatus.PASSED and new.status not in TROUBLE | {CellStatus.PASSED}:
        if not any(change.kind is Kind.REGRESSION for change in parts):
            yield Change(
                kind=Kind.REGRESSION, cell=cell_id, text=f"passed before, now {new.status}: {new.reason or ''}"
            )
    elif new.status is CellStatus.PASSED and old.status is CellStatus.FAILED:
        yield Change(kind=Kind.IMPROVEMENT, cell=cell_id, text="failed before, now passed")


def _progs(cell: CellResult) -> dict[str, ProgResult]:
    return {prog.name: prog for prog in cell.progs}


# How well a program does; what was not judged says nothing.
_RANK = {Verdict.CRASHED: 0, Verdict.REJECTED: 1, Verdict.LOADED: 2}


def _prog(cell: str, name: str, old: ProgResult | None, new: ProgResult | None, limits: CostLimits) -> Iterator[Change]:
    def change(kind: Kind, text: str) -> Change:
        return Change(kind=kind, cell=cell, prog=name, text=text)

    if old is None or old.verdict not in _RANK:
        if new is not None and new.verdict in _RANK:
            yield change(Kind.CHANGE, f"new: {_said(new)}")
            yield from (change(Kind.CHANGE, text) for text in _near_limit(None, new.verifier, limits))
        return
    if new is None or new.verdict in {Verdict.SKIPPED, Verdict.NOT_APPLICABLE}:
        yield change(Kind.REGRESSION, f"gone: {old.verdict} before, now {new.verdict if new else 'not in the object'}")
        return
    if new.verdict is Verdict.NOT_JUDGED:
        yield change(Kind.TROUBLE, "not judged")
        return
    if _RANK[new.verdict] != _RANK[old.verdict]:
        kind = Kind.REGRESSION if _RANK[new.verdict] < _RANK[old.verdict] else Kind.IMPROVEMENT
        yield change(kind, f"{_said(old)} before, now {_said(new)}")
    if new.core_relos or new.verdict is Verdict.LOADED:  # refused before relocation, nothing is known of any
        for key, was, now in _paired_relocations(old, new):
            place = f"{key.field} ({key.kind}) in {key.function}: {key.source}"
            for kind, text in _relocation(was, now):
                yield Change(kind=kind, cell=cell, prog=name, relocation=place, text=text)
    if new.verdict is Verdict.LOADED:
        yield from (change(Kind.REGRESSION, text) for text in _cost(old.verifier, new.verifier, limits))
        yield from (change(Kind.REGRESSION, text) for text in _near_limit(old.verifier, new.verifier, limits))


def _paired_relocations(
    old: ProgResult, new: ProgResult
) -> Iterator[tuple[RelocationKey, Relocation | None, Relocation | None]]:
    """By docs/contract.md's key; then, so that an edited line is no lost coverage, by all of it but the line's text."""
    before, after = keyed(old.core_relos), keyed(new.core_relos)
    edited: dict[tuple[str, str, str], list[RelocationKey]] = {}
    for key in after:
        if key not in before:
            edited.setdefault((key.function, key.kind, key.field), []).append(key)
    moved: set[RelocationKey] = set()
    for key, was in before.items():
        now = after.get(key)
        others = edited.get((key.function, key.kind, key.field)) or []
        if now is None and others:
            other = others.pop(0)
            now = after[other]
            moved.add(other)
        yield key, was, now
    yield from ((key, None, now) for key, now in after.items() if key not in before and key not in moved)


def _said(prog: ProgResult) -> str:
    return f"{prog.verdict} at {prog.stage}" if prog.stage else str(prog.verdict)


def _relocation(old: Relocation | None, new: Relocation | None) -> Iterator[tuple[Kind, str]]:
    if old is None or new is None:
        if old is not None:
            yield Kind.REGRESSION, f"gone: {_state(old)} before"
        elif new is not None:
            worse = new.is_broken
            yield (Kind.REGRESSION if worse else Kind.CHANGE), f"new: {_state(new)}"
        return
    if _state(old) != _state(new):
        yield _kind_of(old, new), f"{_state(old)} before, now {_state(new)}"
    elif old.is_guard and old.new_value != new.new_value:
        yield Kind.CHANGE, f"the check was {old.new_value}, is now {new.new_value}"
    if old.outcome is Outcome.RESOLVED and new.outcome is Outcome.RESOLVED:
        for name, was, now in drift(old, new):  # silent: nothing fails, and the value is another
            yield Kind.REGRESSION, f"drift: the field's {name} was {was}, is now {now}"


def _state(relo: Relocation) -> str:
    return f"{relo.outcome}, {relo.liveness}"


_ORDER = (Outcome.RESOLVED, Outcome.POISONED, Outcome.ERROR)


def _kind_of(old: Relocation, new: Relocation) -> Kind:
    """Worse, better, or only different."""
    if new.is_broken != old.is_broken:
        return Kind.REGRESSION if new.is_broken else Kind.IMPROVEMENT
    step = _ORDER.index(new.outcome) - _ORDER.index(old.outcome)
    if step:
        return Kind.REGRESSION if step > 0 else Kind.IMPROVEMENT
    if new.liveness is Liveness.UNKNOWN:
        return Kind.TROUBLE
    return Kind.CHANGE


def _cost(old: VerifierStats | None, new: VerifierStats | None, limits: CostLimits) -> Iterator[str]:
    for name, absolute in limits.absolute.items():
        was, now = getattr(old, name, None), getattr(new, name, None)
        if was is None or now is None or now - was <= absolute:
            continue
        if now > was * (1 + limits.percent / 100):
            yield f"{name} grew from {was} to {now}"


def _near_limit(old: VerifierStats | None, new: VerifierStats | None, limits: CostLimits) -> Iterator[str]:
    """The budget is nearly used up, and was not before."""
    if new is None or not new.processed_insns or not new.insn_limit:
        return
    share = new.processed_insns / new.insn_limit
    before = (old.processed_insns or 0) / new.insn_limit if old else 0.0
    if share > limits.of_limit >= before:
        yield f"processed_insns is {share:.0%} of the verifier's limit of {new.insn_limit}"
