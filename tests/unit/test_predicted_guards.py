"""What a check protects, predicted: held against what Linux 6.18 showed by flips, and against programs one can read."""

from __future__ import annotations

import base64
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from harness.guest import insn as I
from harness.model.result import CellResult
from harness.model.verdict import Evidence
from harness.predict import guards
from harness.predict.guards import with_protection
from harness.predict.models import NEWEST
from harness.report import render
from harness.report.audit import audit
from tests.support.clang import compile_bpf
from tests.support.facts import begun, evidence, facts, guard, judged, poisoned, prog, relo, run_of
from tests.support.objects import PROGRAMS, compile_object

RECORDED = Path(__file__).parents[1] / "data" / "facts"


def shown(result: CellResult) -> set[tuple[str, int, int]]:
    return {(one.name, item.index, ref.index) for one in result.progs for item in one.core_relos
            for ref in item.protects}  # fmt: skip


def without_flips(answer: dict[str, Any]) -> dict[str, Any]:
    shorn = [dict(one["evidence"] or {}, flips=[]) if one["evidence"] else None for one in answer["progs"]]
    return {**answer, "progs": [{**one, "evidence": rest} for one, rest in zip(answer["progs"], shorn, strict=True)]}


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDED.glob("*.json")))
def test_where_a_flip_showed_it_the_prediction_is_the_same(name: str, tmp_path: Path) -> None:
    """The kernel's flips are taken away; the prediction has to find the same pairs, and each from both sides."""
    answer = json.loads((RECORDED / f"{name}.json").read_text())
    data = compile_object(PROGRAMS / f"{name}.bpf.c", tmp_path / f"{name}.bpf.o", "-D__TARGET_ARCH_x86").read_bytes()
    proven = judged(answer, cell=begun("this-machine", name))
    reached = {
        (one.name, item.index) for one in proven.progs for item in one.core_relos if item.is_guard and item.protects
    }
    found = with_protection(judged(without_flips(answer), cell=begun("this-machine", name)), answer, data, NEWEST)
    assert {pair for pair in shown(found) if pair[:2] in reached} == shown(proven)
    backwards = {(one.name, ref.index, item.index) for one in found.progs for item in one.core_relos
                 for ref in item.guarded_by}  # fmt: skip
    assert backwards == shown(found)
    said = [ref.evidence for one in found.progs for item in one.core_relos for ref in item.protects]
    assert set(said) <= {Evidence.PREDICTED}


def test_a_check_in_dead_code_is_seen_through_the_check_that_keeps_it_dead(tmp_path: Path) -> None:
    """process_lineage reads start_boottime where that exists, and asks for real_start_time only where not: 6.18 never
    comes to the second check.
    """
    answer = json.loads((RECORDED / "process_lineage.json").read_text())
    source = PROGRAMS / "process_lineage.bpf.c"
    data = compile_object(source, tmp_path / "process_lineage.bpf.o").read_bytes()
    proven = judged(answer, cell=begun("this-machine", "process_lineage"))
    found = with_protection(proven, answer, data, NEWEST)

    def pairs(result: CellResult) -> set[tuple[str, str, Evidence]]:
        return {(item.field, ref.field, ref.evidence) for item in result.progs[0].core_relos if item.is_guard
                for ref in item.protects}  # fmt: skip

    older, newer = "task_struct___before_5_5.real_start_time", "task_struct.start_boottime"
    assert (newer, newer, Evidence.LINE_INFO) in pairs(proven) and older not in {one for one, *_ in pairs(proven)}
    assert pairs(found) == pairs(proven) | {(older, older, Evidence.PREDICTED)}
    text = " ".join(render("audit", run_of(found)).split())
    assert f"it protects {older} (predicted)" in text


OBJECT = 'SEC("raw_tp/x") int prog(void *ctx) { return 0; }'
POISON = (I.CALL, 0, 0, 0, I.POISON_CORE_RELO)


def mov(value: int) -> tuple[int, ...]:
    return (I.BPF_ALU64 | I.BPF_MOV | I.BPF_K, 1, 0, 0, value)


def skip_if_zero(over: int) -> tuple[int, ...]:
    return (I.BPF_JMP | I.BPF_JEQ | I.BPF_K, 1, 0, over, 0)


def cell(value: int, survived: list[list[int]]) -> tuple[CellResult, dict[str, Any], bytes]:
    """if (exists(a.b)) read a.b; read c.d; no flip was made."""
    code = [mov(value), skip_if_zero(1), POISON if not value else mov(7), mov(8), (I.BPF_ALU64 | I.BPF_MOV, 0, 0, 0, 0),
            (I.EXIT, 0, 0, 0, 0)]  # fmt: skip
    raw = base64.b64encode(b"".join(I.native(*one) for one in code)).decode()
    relos = [guard(0, "a.b", value), relo(1, "a.b") if value else poisoned(1, "a.b"), relo(2, "c.d")]
    funcs = [{"name": "prog", "start": 0, "insns": 6, "global": True}]
    program = prog(relos=[(0, 0), (1, 2), (2, 3)], insns=raw, funcs=funcs, evidence=evidence(survived))
    answer = facts([program], relos)
    return judged(answer, cell=begun()), answer, compile_bpf(OBJECT)


@pytest.mark.parametrize(("value", "survived"), [(1, [[0, 6]]), (0, [[0, 2], [3, 6]])])
def test_the_read_behind_a_check_and_not_the_one_after_it(value: int, survived: list[list[int]]) -> None:
    found = with_protection(*cell(value, survived), NEWEST)
    check, behind, after = found.progs[0].core_relos
    assert [(ref.index, ref.evidence) for ref in check.protects] == [(1, Evidence.PREDICTED)]
    assert [ref.index for ref in behind.guarded_by] == [0] and not after.guarded_by
    (remark,) = audit(run_of(found))
    assert remark.text == f"always {value}: the code for {1 - value} was never verified; it protects a.b (predicted)"


def test_what_the_kernel_showed_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    _, answer, data = cell(1, [[0, 6]])
    answer["progs"][0]["evidence"]["flips"] = [
        {"relo": 0, "insn": 0, "value": 0, "loaded": True, "errno": None, "survived": [[0, 2], [3, 6]], "visited": None}
    ]
    proven = judged(answer, cell=begun())
    assert [ref.evidence for ref in proven.progs[0].core_relos[0].protects] == [Evidence.LINE_INFO]
    monkeypatch.setattr(guards, "known_object", None)  # nothing is opened for it
    assert with_protection(proven, answer, data, NEWEST) is proven


def test_what_cannot_be_walked_or_inverted_stays_unknown() -> None:
    result, answer, data = cell(1, [[0, 6]])
    assert with_protection(result, answer, b"not an object", NEWEST) is result
    code = bytearray(base64.b64decode(answer["progs"][0]["insns"]))
    code[4] = 5  # no 0 and no 1
    progs = [{**answer["progs"][0], "insns": base64.b64encode(bytes(code)).decode()}]
    assert shown(with_protection(result, {**answer, "progs": progs}, data, NEWEST)) == set()
    assert dataclasses.replace(result) == with_protection(result, {**answer, "progs": []}, data, NEWEST)
