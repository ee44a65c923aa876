"""Words for refusals: causes known from booted kernels, and advice on poison."""

from __future__ import annotations

import errno

import pytest

from harness.judge.explain import errno_text, nearest, why
from tests.support.facts import evidence, facts, guard, insns, judged, only_prog, poisoned, prog, relo, relocation

MOV, EXIT, JMP32 = (0xB7, 0, 0, 0), (0x95, 0, 0, 0), (0x16, 0, 1, 0)
CALL_SUBPROG = (0x85, 1, 0, 1)
VERSION = {
    "name": "LINUX_KERNEL_VERSION",
    "kind": "kconfig",
    "type": "int",
    "value": 1,
    "weak": False,
    "outcome": "resolved",
}


def words(program, relos=(), **more):
    return " ".join(only_prog(judged(facts([program], list(relos), **more))).explanation)


def pre_verifier(number, **more):
    return prog(loaded=False, stage="pre_verifier", errno=number, **more)


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (pre_verifier(errno.EINVAL, insns=insns(*[MOV] * 4097)), "4097 instructions"),
        (pre_verifier(errno.E2BIG, insns=insns(*[MOV] * 5000)), "5000 instructions"),
        (pre_verifier(errno.E2BIG, insns=insns(MOV, EXIT)), "bpf_attr"),
        (pre_verifier(errno.EPERM), "CAP_BPF"),
        (pre_verifier(errno.ENOENT, attach_target="inet_csk_accept"), "inet_csk_accept is not in this kernel's BTF"),
        (pre_verifier(524), "ENOTSUPP"),
        (pre_verifier(errno.EINVAL), "empty log"),
        (prog(loaded=False, stage="core"), "gives up on the whole object"),
        (prog(loaded=False, stage="externs"), "__weak"),
    ],
)
def test_refused_before_the_verifier(program, said):
    assert said in words(program)


# Log lines as seen on the kernels named; the object decides where the text alone cannot.
@pytest.mark.parametrize(
    ("log", "code", "said"),
    [
        ("unreachable insn 4", [JMP32, EXIT], "32-bit jumps"),  # 4.9
        ("unknown opcode 16", [JMP32, EXIT], "32-bit jumps"),  # 4.19
        ("unreachable insn 4", [CALL_SUBPROG, EXIT, EXIT], "calls between BPF functions"),  # 4.15
        ("back-edge from insn 5 to 3", [EXIT], "bounded"),
        ("BPF program is too large. Processed 131073 insn", [EXIT], "after 131073 instructions"),
        ("invalid func unknown#181", [EXIT], "no helper number 181"),
        ("invalid func bpf_get_current_task#35", [EXIT], "no helper bpf_get_current_task#35"),
        ("unknown func bpf_get_prandom_u32#7", [EXIT], "not for programs of type raw_tracepoint"),
        ("program of this type cannot use helper bpf_sk_fullsock#95", [EXIT], "not for programs of type"),
        ("invalid indirect read from stack off -16+0 size 16", [EXIT], "zero it first"),
        ("R1 type=map_value expected=fp", [EXIT], "through the stack"),
        ("R2 type=inv expected=imm", [EXIT], "constant size"),
        ("invalid func unknown#2001000003", [EXIT], "a map that was not created"),
        ("invalid func unknown#2002000000", [EXIT], "weak kernel function"),
        ("unrecognized bpf_ld_imm64 insn", [EXIT], "global data"),
    ],
)
def test_refused_by_the_verifier(log, code, said):
    assert said in words(prog(loaded=False, log=log, insns=insns(*code)))


def test_a_probe_that_found_global_data_rules_that_cause_out():
    guest = {"features": {"global_data": True}}
    refused = prog(loaded=False, log="unrecognized bpf_ld_imm64 insn", insns=insns(EXIT))
    assert words(refused, guest=guest) == ""


def test_nothing_known_is_nothing_said():
    assert words(prog(loaded=False, log="R0 !read_ok")) == ""


def refused_with(*relos, **more):
    placed = [(number, number + 1) for number in range(len(relos))]
    program = prog(loaded=False, relos=placed, evidence=evidence(None, [[0, 9]]), log="x")
    return words(program, relos, **more)


def test_poison_without_a_guard():
    said = refused_with(poisoned(0, "thread_struct.fs"))
    assert "nothing guards thread_struct.fs" in said and "if (bpf_core_field_exists(p->fs))" in said
    assert "bpf_core_enum_value_exists" in refused_with(poisoned(0, "e::X", kind="enumval_value"))


def test_poison_behind_a_version_number():
    said = refused_with(poisoned(0, "thread_struct.fs"), externs=[VERSION])
    assert "LINUX_KERNEL_VERSION" in said and "bpf_core_field_exists(p->fs)" in said


def test_poison_although_its_own_check_is_zero():
    said = refused_with(guard(0, "thread_struct.fs", 0), poisoned(1, "thread_struct.fs"))
    assert "guarded by an existence check that is 0" in said and "`else if` instead of `else`" in said


def test_poison_in_the_else_branch_of_another_fields_check():
    said = refused_with(guard(0, "thread_struct___old.fs", 1), poisoned(1, "thread_struct.fsbase"))
    assert "other branch of a check on thread_struct___old.fs" in said
    assert "else if (bpf_core_field_exists(fsbase))" in said


def test_the_nearest_candidate_is_the_one_that_says_most():
    candidates = [
        {"name": "struct a", "id": 1, "why_not": "no b"},
        {"name": "struct a", "id": 2, "why_not": "b is a struct, not an int"},
    ]
    cell = judged(facts([prog(relos=[(0, 1)])], [poisoned(0, "a.b", candidates=candidates)]))
    assert nearest(relocation(cell, 0)).id == 2
    assert why(relocation(cell, 0)) == "no matching target; nearest candidate struct a: b is a struct, not an int"


def test_a_relocation_that_resolved_needs_no_reason():
    cell = judged(facts([prog(relos=[(0, 1)])], [relo(0)]))
    assert why(relocation(cell, 0)) is None


def test_errnos_by_name():
    assert errno_text(22) == "EINVAL (22)"
    assert errno_text(-22) == "EINVAL (22)"
    assert errno_text(524) == "ENOTSUPP (524)"
    assert errno_text(None) == "no errno"
