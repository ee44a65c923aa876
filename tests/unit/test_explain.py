"""Words for refusals: causes known from booted kernels, and advice on poison."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest

from harness.guest.maps import MAP_TYPES
from harness.guest.prog_types import PROG_TYPES
from harness.judge import since
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


def unknown_type(kind):
    said = f"refused before the verifier: program type {kind} is unknown to this kernel"
    return pre_verifier(errno.EINVAL, prog_type=kind, error=said, unsupported="prog_type")


def own_btf_wanted():
    said = "prog 'x': attaching to 'y' needs the kernel's own BTF, and it has none"
    return pre_verifier(errno.ESRCH, prog_type="tracing", attach_target="y", error=said)


def structless(said):
    """As 5.10 and 6.12 refuse udev-hid-bpf's 0010-Huion__Inspiroy-2-S where there is no HID-BPF."""
    log = said + "processed 0 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n"
    return prog(
        loaded=False, stage="verifier", errno=524, prog_type="struct_ops", section="struct_ops/hid_rdesc_fixup", log=log
    )


def refused_map(kind):
    said = f"map 'events' ({kind}): failed to create: Invalid argument (errno 22)"
    return prog(loaded=False, stage="maps", errno=errno.EINVAL, error=said)


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
        (unknown_type("tracepoint"), "programs of type tracepoint came with 4.7: a kprobe does without"),
        (unknown_type("cgroup_sysctl"), "programs of type cgroup_sysctl came with 5.2"),
        (own_btf_wanted(), "need BTF in the kernel itself"),
        (refused_map("ringbuf"), "ringbuf came with 5.8"),
        (refused_map("hash"), "per-CPU maps with 4.6"),
        (prog(loaded=False, stage="core"), "gives up on the whole object"),
        (prog(loaded=False, stage="core", error="... relocation: the kernel has no BTF"), "`btf: {dwarf: FILE}`"),
        (prog(loaded=False, stage="externs"), "__weak"),
        (prog(loaded=False, stage="externs", error="failed to open system Kconfig (...)"), "give the row a `config`"),
        (prog(loaded=False, stage="externs", error="extern (kcfg) 'X': failed to get kernel version"), "three numbers"),
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
        ("invalid func unknown#35", [EXIT], "no helper number 35 (bpf_get_current_task, since 4.8)"),
        ("invalid func 45", [EXIT], "no helper number 45 (bpf_probe_read_str, since 4.11)"),  # 4.4
        ("invalid func 9999", [EXIT], "this kernel has no helper number 9999"),
        ("unknown func bpf_get_prandom_u32#7", [EXIT], "not for programs of type raw_tracepoint"),
        ("unknown func 7", [EXIT], "bpf_get_prandom_u32, since 4.1) exists here, but not for"),  # 4.4
        ("program of this type cannot use helper bpf_sk_fullsock#95", [EXIT], "not for programs of type"),
        ("invalid indirect read from stack off -16+0 size 16", [EXIT], "zero it first"),
        ("R1 type=map_value expected=fp", [EXIT], "through the stack"),
        ("R2 type=inv expected=imm", [EXIT], "constant size"),
        ("invalid func unknown#2001000003", [EXIT], "a map that was not created"),
        ("invalid func 2001000003", [EXIT], "a map that was not created"),  # 4.4
        ("invalid func unknown#2002000000", [EXIT], "weak kernel function"),
        ("unrecognized bpf_ld_imm64 insn", [EXIT], "global data"),
    ],
)
def test_refused_by_the_verifier(log, code, said):
    assert said in words(prog(loaded=False, log=log, insns=insns(*code)))


@pytest.mark.parametrize("said", ["attach_btf_id 0 is not a supported struct\n", "verification time 428 usec\n", ""])
def test_a_struct_ops_program_whose_struct_the_kernel_lacks(said):
    assert "no struct of this kernel takes it" in words(structless(said))


def test_a_probe_that_found_global_data_rules_that_cause_out():
    guest = {"features": {"global_data": True}}
    refused = prog(loaded=False, log="unrecognized bpf_ld_imm64 insn", insns=insns(EXIT))
    assert words(refused, guest=guest) == ""


def test_a_kernel_without_btf_is_not_said_to_lack_the_function():
    assert "renamed, inlined" not in words(own_btf_wanted())


def test_types_are_called_as_the_guest_calls_them():
    assert since.PROG_TYPES.keys() <= set(PROG_TYPES)
    assert since.MAP_TYPES.keys() <= set(MAP_TYPES)


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


@pytest.mark.parametrize(("asked", "said"), [(True, False), (False, True), (None, True)])
def test_the_old_verifier_is_blamed_only_where_the_kernel_is_one(asked, said):
    """The guest has asked the kernel whether it walks both sides (`constant_branches`); null: facts of before."""
    guest = {"features": {} if asked is None else {"constant_branches": asked}}
    for first in (guard(0, "thread_struct.fs", 0), guard(0, "thread_struct.fsbase", 1)):
        text = refused_with(first, poisoned(1, "thread_struct.fs"), guest=guest)
        assert ("4.16" in text) == said, text
        assert "this verifier walks both sides" in text or asked is not False


def test_helpers_by_number_are_those_of_the_header():
    """The numbers against the header of this machine's libc, the releases against kernels that were booted."""
    header = Path("/usr/include/linux/bpf.h")
    if not header.exists():
        pytest.skip("linux-libc-dev is not installed")
    text = header.read_text()
    mapper = text[text.index("#define __BPF_FUNC_MAPPER") :].split("\n\n")[0]
    names = re.findall(r"\bFN\((\w+)", mapper)[1:]
    for number, name in enumerate(names, 1):
        if since.name(number) is not None:
            assert since.name(number) == f"bpf_{name}"
    # what 4.4.178, 4.6.2 and 4.9.154 refused, and what a later one took
    known = {4: "4.1", 35: "4.8", 45: "4.11", 113: "5.5", 131: "5.8"}
    assert {number: since.since(number) for number in known} == known
    assert since.since(0) is since.since(195896080) is since.name(195896080) is None


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
