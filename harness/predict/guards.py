"""What a check protects where the kernel did not show it: `predicted`, by the walk with the check inverted.

The kernel shows it by a flip (docs/facts.md), which is made for the checks the verifier reached. This fills in the
others: a check in code that another check keeps dead, and one whose flip showed nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from harness.guest.errors import GuestError
from harness.model.result import CellResult, ProgResult, Relocation, RelocationRef
from harness.model.verdict import Evidence
from harness.predict.final import Prediction, Program
from harness.predict.machine import predict
from harness.predict.models import Model
from harness.predict.program import from_facts, known_object

_MOST_CHECKS = 16  # of one program; each is a walk or two
_IMM = struct.Struct("=i")


def with_protection(result: CellResult, facts: Mapping[str, Any], data: bytes, model: Model) -> CellResult:
    """The result with `protects` of the checks of which the kernel showed none, and `guarded_by` to match."""
    wanted = {prog.name for prog in result.progs if any(_open_checks(prog.core_relos))}
    if not wanted:
        return result
    try:
        known = known_object(result, facts, data)
    except GuestError:
        return result
    told = {prog["name"]: prog for prog in facts.get("progs") or () if prog["name"] in wanted}
    externs = facts.get("externs") or ()
    return replace(result, progs=tuple(
        _completed(prog, from_facts(told[prog.name], externs, known), model) if prog.name in told else prog
        for prog in result.progs
    ))  # fmt: skip


def _open_checks(relocations: Iterable[Relocation]) -> Iterator[Relocation]:
    return (relo for relo in relocations if relo.is_guard and relo.final_insn is not None and not relo.protects)


def _completed(prog: ProgResult, program: Program, model: Model) -> ProgResult:
    checks = [relo for relo in prog.core_relos if relo.is_guard and relo.final_insn is not None]
    pairs = [
        (check, held) for check in list(_open_checks(prog.core_relos))[:_MOST_CHECKS]
        for held in _protected(check, checks[:_MOST_CHECKS], prog.core_relos, program, model)
    ]  # fmt: skip
    if not pairs:
        return prog

    def referred(relo: Relocation) -> Relocation:
        protects = tuple(_ref(held) for check, held in pairs if check is relo)
        known = {ref.index for ref in relo.guarded_by}
        guards = tuple(_ref(check) for check, held in pairs if held is relo and check.index not in known)
        return replace(relo, protects=relo.protects + protects, guarded_by=relo.guarded_by + guards)

    return replace(prog, core_relos=tuple(map(referred, prog.core_relos)))


def _ref(relo: Relocation) -> RelocationRef:
    return RelocationRef(index=relo.index, field=relo.field, evidence=Evidence.PREDICTED)


def _protected(
    check: Relocation, checks: list[Relocation], relocations: Iterable[Relocation], program: Program, model: Model
) -> list[Relocation]:
    """The relocations whose reach depends on `check`: in the program as it is where the verifier comes to the check,
    else in the first that inverting one other check makes, where it does.
    """
    for other in (None, *(one for one in checks if one is not check)):
        before = _inverted(program, other) if other is not None else program
        without = predict(before, model) if before is not None else None
        if before is None or without is None or not without.complete or not _reaches(without, check):
            continue
        after = _inverted(before, check)
        turned = predict(after, model) if after is not None else None
        if turned is None or not turned.complete:
            return []
        return [relo for relo in relocations if relo is not check and _depends(relo, without, turned)]
    return []


def _reaches(prediction: Prediction, relo: Relocation) -> bool:
    return relo.final_insn is not None and bool(prediction.reaches(relo.final_insn))


def _depends(relo: Relocation, without: Prediction, turned: Prediction) -> bool:
    """Poison ends a path: what is no longer reached behind it says nothing (as with a flip that is refused)."""
    before, after = _reaches(without, relo), _reaches(turned, relo)
    return relo.final_insn is not None and before != after and (after or not turned.poison)


def _inverted(program: Program, check: Relocation) -> Program | None:
    """The program with the check's 0 and 1 exchanged; None where the instruction holds neither."""
    assert check.final_insn is not None
    at = check.final_insn * 8 + 4
    (value,) = _IMM.unpack_from(program.code, at)
    if value not in (0, 1):
        return None
    return replace(program, code=program.code[:at] + _IMM.pack(1 - value) + program.code[at + 4 :])
