"""Liveness from evidence, on programs small enough to be judged by eye."""

from __future__ import annotations

import pytest

from harness.model.verdict import Evidence, Liveness
from tests.support.facts import (
    POISON_CALL,
    evidence,
    facts,
    guard,
    insns,
    judged,
    only_prog,
    poisoned,
    prog,
    relo,
    relocation,
)

MOV, EXIT = (0xB7, 0, 0, 0), (0x95, 0, 0, 0)


def states(cell):
    return {item.index: str(item.liveness) for item in only_prog(cell).core_relos}


def test_records_that_survive_prove_life_and_elimination():
    cell = judged(facts([prog(relos=[(0, 2), (1, 5)], evidence=evidence([[0, 4], [6, 9]]))], [relo(0), poisoned(1)]))
    assert states(cell) == {0: "live", 1: "eliminated"}
    assert {item.evidence for item in only_prog(cell).core_relos} == {Evidence.LINE_INFO}


def test_the_log_stands_in_where_records_cannot_be_had():
    found = evidence(None, [[0, 4]])
    cell = judged(facts([prog(relos=[(0, 2), (1, 5)], evidence=found)], [relo(0), poisoned(1)]))
    assert states(cell) == {0: "live", 1: "eliminated"}
    assert {item.evidence for item in only_prog(cell).core_relos} == {Evidence.VERIFIER_LOG}


def test_witnesses_are_compared_at_relocations_only():
    # Instruction 3 (a folded branch) was visited and lost its record: no relocation, so no disagreement.
    found = evidence([[0, 3], [4, 6]], [[0, 6]])
    cell = judged(facts([prog(relos=[(0, 2)], evidence=found)], [relo(0)]))
    assert states(cell) == {0: "live"} and not only_prog(cell).notes


def test_witnesses_that_disagree_leave_it_unknown_and_say_so():
    cell = judged(facts([prog(relos=[(0, 2)], evidence=evidence([[0, 2]], [[0, 3]]))], [relo(0)]))
    assert states(cell) == {0: "unknown"}
    assert (
        "line_info says eliminated" in only_prog(cell).notes[0] and "verifier_log says live" in only_prog(cell).notes[0]
    )


def test_no_evidence_is_never_a_claim():
    for nothing in (None, evidence()):
        cell = judged(facts([prog(relos=[(0, 2)], evidence=nothing)], [relo(0)]))
        assert states(cell) == {0: "unknown"}
        assert relocation(cell, 0).liveness_reason


def test_an_evidence_load_refused_alone_is_reported():
    found = evidence(None, [[0, 3]])
    found["line_info"] = {"loaded": False, "errno": 22, "survived": None, "reason": None}
    cell = judged(facts([prog(relos=[(0, 2)], evidence=found)], [relo(0)]))
    assert relocation(cell, 0).evidence is Evidence.VERIFIER_LOG
    assert "evidence load was refused (errno 22)" in only_prog(cell).notes[0]


def test_a_kernel_without_line_info_refused_nothing():
    found = evidence(None, [[0, 3]])
    found["line_info"] = {"loaded": False, "errno": None, "survived": None, "reason": "this kernel takes no line_info"}
    note = only_prog(judged(facts([prog(relos=[(0, 2)], evidence=found)], [relo(0)]))).notes[0]
    assert note == "this kernel takes no line_info: liveness rests on the verifier's log"


def test_live_poison_in_an_accepted_program_is_a_contradiction_not_a_finding():
    cell = judged(facts([prog(relos=[(0, 2)], evidence=evidence([[0, 9]]))], [poisoned(0)]))
    assert states(cell) == {0: "unknown"}


@pytest.mark.parametrize("stage", ["open", "externs", "core", "maps", "pre_verifier"])
def test_before_the_verifier_nothing_is_reached(stage):
    cell = judged(facts([prog(loaded=False, stage=stage, relos=[(0, 2)])], [relo(0)]))
    assert states(cell) == {0: "unreached"}
    assert stage in relocation(cell, 0).liveness_reason


POISON_LOG = """0: R1=ctx(off=0,imm=0) R10=fp0
; first line @ x.bpf.c:10
0: (b7) r1 = 1
1: (85) call unknown#195896080
invalid func unknown#195896080
"""


@pytest.mark.parametrize("log", [POISON_LOG, POISON_LOG.replace("unknown#", "")], ids=["since 4.10", "until 4.9"])
def test_visited_in_a_refused_load_is_live_and_the_rest_is_behind_the_stop(log):
    program = prog(loaded=False, relos=[(0, 0), (1, 1), (2, 3)], log=log, evidence=evidence(None, [[0, 2]]))
    cell = judged(facts([program], [relo(0), poisoned(1, "task_struct.gone"), relo(2)]))
    assert states(cell) == {0: "live", 1: "live", 2: "unreached"}
    behind = relocation(cell, 2).behind
    assert (behind.index, behind.field, behind.source.line) == (1, "task_struct.gone", 11)


def test_the_log_of_the_verdict_alone_shows_what_it_shows():
    cell = judged(facts([prog(loaded=False, relos=[(0, 1), (1, 3)], log=POISON_LOG)], [poisoned(0), relo(1)]))
    assert states(cell) == {0: "live", 1: "unknown"}


def test_both_slots_of_a_poisoned_ldimm64_are_one_relocation():
    log = POISON_LOG.replace("1: (85)", "2: (85)")
    enum = poisoned(0, "bpf_func_id::GONE", kind="enumval_value", before="18" + "00" * 15)
    program = prog(loaded=False, relos=[(0, 1), (1, 5)], log=log, evidence=evidence(None, [[0, 1], [2, 3]]))
    behind = relocation(judged(facts([program], [enum, relo(1)])), 1).behind
    assert (behind.insn, behind.index) == (2, 0)


def branch_program(loaded_at_last: bool):
    """0: if r1 == 0 goto 4; 1: poison; 2: relo after it; 3: goto 5; 4: relo in the other branch; 5: exit; 6: relo in
    dead code.
    """
    code = insns((0x15, 0, 3, 0), POISON_CALL, MOV, (0x05, 0, 1, 0), MOV, EXIT, MOV, EXIT)
    step = {
        "neutralised": [1],
        "loaded": loaded_at_last,
        "errno": None if loaded_at_last else 13,
        "visited": [[0, 2], [4, 6]],
        "stop": None if loaded_at_last else {"insn": 5, "poison": False, "message": "R0 !read_ok"},
    }
    found = evidence(None, [[0, 2]], analysis=[step])
    relos = [poisoned(0, "task_struct.gone"), relo(1, "a.after"), relo(2, "a.other"), relo(3, "a.dead")]
    program = prog(loaded=False, insns=code, log=POISON_LOG, evidence=found, relos=[(0, 1), (1, 2), (2, 4), (3, 6)])
    return judged(facts([program], relos))


def test_what_follows_a_poisoned_ldimm64_is_not_it():
    log = "0: R1=ctx(off=0,imm=0) R10=fp0\n0: (b7) r1 = 1\n3: (bf) r1 = r9\nR9 !read_ok\n"
    enum = poisoned(0, "bpf_func_id::GONE", kind="enumval_value", before="18" + "00" * 15)
    program = prog(loaded=False, relos=[(0, 1), (1, 5)], log=log, evidence=evidence(None, [[0, 1], [3, 4]]))
    behind = relocation(judged(facts([program], [enum, relo(1)])), 1).behind
    assert (behind.insn, behind.index, behind.field) == (3, None, None)


def test_an_accepted_analysis_load_shows_what_is_live_beside_the_poison():
    cell = branch_program(loaded_at_last=True)
    assert states(cell) == {0: "live", 1: "unreached", 2: "live", 3: "eliminated"}
    assert relocation(cell, 1).behind.field == "task_struct.gone"
    assert relocation(cell, 3).evidence is Evidence.VERIFIER_LOG


def test_an_analysis_load_refused_for_another_reason_claims_nothing_beyond():
    cell = branch_program(loaded_at_last=False)
    assert states(cell) == {0: "live", 1: "unreached", 2: "live", 3: "unreached"}
    assert relocation(cell, 3).behind.message == "R0 !read_ok"


def test_code_after_the_call_of_a_poisoned_subprogram_is_behind_it():
    """0: call 3; 1: relo; 2: exit; 3: poison (in the subprogram); 4: exit."""
    code = insns((0x85, 1, 0, 2), MOV, EXIT, POISON_CALL, EXIT)
    step = {"neutralised": [3], "loaded": True, "errno": None, "visited": [[0, 1], [3, 4]], "stop": None}
    program = prog(
        loaded=False,
        insns=code,
        relos=[(0, 3), (1, 1)],
        evidence=evidence(None, [[0, 1], [3, 4]], analysis=[step]),
        funcs=[
            {"name": "prog", "start": 0, "insns": 3, "global": True},
            {"name": "sub", "start": 3, "insns": 2, "global": False},
        ],
    )
    assert states(judged(facts([program], [poisoned(0, function="sub"), relo(1)]))) == {0: "live", 1: "unreached"}


def test_one_relocation_live_in_one_program_and_dead_in_another():
    relos = [poisoned(0, function="helper")]
    first = prog("first", loaded=False, relos=[(0, 1)], log=POISON_LOG, evidence=evidence(None, [[0, 2]]))
    second = prog("second", relos=[(0, 7)], evidence=evidence([[0, 6]]))
    cell = judged(facts([first, second], relos))
    assert [item.core_relos[0].liveness for item in cell.progs] == [Liveness.LIVE, Liveness.ELIMINATED]
    assert {item.core_relos[0].prog for item in cell.progs} == {"helper"}


def flip(number, insn, loaded, survived=None, visited=None):
    return {
        "relo": number,
        "insn": insn,
        "value": 1,
        "loaded": loaded,
        "errno": None,
        "survived": survived,
        "visited": visited,
    }


def test_a_guard_protects_what_its_flip_brings_to_life_or_kills():
    relos = [guard(0, "a.old", 0), poisoned(1, "a.old"), relo(2, "a.new"), relo(3, "a.both")]
    found = evidence([[0, 3], [4, 9]], flips=[flip(0, 1, True, survived=[[0, 4], [5, 9]])])
    cell = judged(facts([prog(relos=[(0, 1), (1, 3), (2, 4), (3, 6)], evidence=found)], relos))
    assert [ref.index for ref in relocation(cell, 0).protects] == [1, 2]
    assert [ref.index for ref in relocation(cell, 1).guarded_by] == [0]
    assert relocation(cell, 3).guarded_by == ()


def test_a_refused_flip_proves_what_it_reached_and_nothing_else():
    relos = [guard(0, "a.old", 0), poisoned(1, "a.old"), relo(2, "a.new")]
    found = evidence([[0, 3], [4, 9]], flips=[flip(0, 1, False, visited=[[0, 4]])])
    cell = judged(facts([prog(relos=[(0, 1), (1, 3), (2, 4)], evidence=found)], relos))
    assert [(ref.index, ref.evidence) for ref in relocation(cell, 0).protects] == [(1, Evidence.VERIFIER_LOG)]


def test_of_what_is_not_known_to_live_or_not_a_flip_shows_no_change():
    """The witnesses disagree about relocation 1."""
    relos = [guard(0, "a.old", 0), relo(1, "a.new")]
    found = evidence([[0, 3]], [[0, 4]], flips=[flip(0, 1, True, survived=[[0, 9]], visited=[[0, 9]])])
    cell = judged(facts([prog(relos=[(0, 1), (1, 3)], evidence=found)], relos))
    assert states(cell) == {0: "live", 1: "unknown"}
    assert (relocation(cell, 0).protects, relocation(cell, 1).guarded_by) == ((), ())


def test_a_guard_does_not_protect_itself_and_a_flip_of_another_programs_guard_says_nothing():
    relos = [guard(0, "a.old", 0), relo(1, "a.new"), guard(2, "b.old", 0, function="other")]
    flips = [flip(0, 1, True, survived=[[2, 9]]), flip(2, 5, True, survived=[[0, 3], [4, 9]])]
    cell = judged(facts([prog(relos=[(0, 1), (1, 3)], evidence=evidence([[0, 9]], flips=flips))], relos))
    assert [(item.protects, item.guarded_by) for item in only_prog(cell).core_relos] == [((), ())] * 2
