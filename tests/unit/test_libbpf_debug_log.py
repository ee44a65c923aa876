"""What is read from libbpf's messages: sentences as libbpf 1.1.2 said them loading real objects on Linux 6.18."""

from __future__ import annotations

import errno

import pytest

from harness.guest.libbpf_debug_log import LEVEL_DEBUG, LEVEL_WARN, DebugLog, parse_errno

# programs/build/task_state.bpf.o
TASK_STATE = """\
libbpf: sec '.relkprobe/wake_up_new_task': collecting relocation for section(3) 'kprobe/wake_up_new_task'
libbpf: sec '.relkprobe/wake_up_new_task': relo #0: insn #38 against 'last_state'
libbpf: prog 'state_each': found map 0 (last_state, sec 6, off 0) for insn #38
libbpf: loading kernel BTF '/sys/kernel/btf/vmlinux': 0
libbpf: map 'last_state': created successfully, fd=16
libbpf: sec 'kprobe/wake_up_new_task': found 22 CO-RE relocations
libbpf: CO-RE relocating [18] struct pt_regs___x86: found target candidate [162] struct pt_regs in [vmlinux]
libbpf: prog 'state_each': relo #1: <byte_off> [18] struct pt_regs___x86.di (0:0 @ offset 0)
libbpf: prog 'state_each': relo #1: matching candidate #0 <byte_off> [162] struct pt_regs.di (0:14 @ offset 112)
libbpf: prog 'state_each': relo #1: patched insn #3 (LDX/ST/STX) off 0 -> 112
libbpf: prog 'state_each': relo #3: <byte_off> [20] struct user_pt_regs.regs[0] (0:0:0 @ offset 0)
libbpf: prog 'state_each': relo #3: no matching targets found
libbpf: prog 'state_each': relo #3: substituting insn #6 w/ invalid insn
libbpf: CO-RE relocating [23] struct task_struct___before_5_14: found target candidate [114] struct task_struct in [vmlinux]
libbpf: prog 'state_each': relo #6: <field_exists> [23] struct task_struct___before_5_14.state (0:0 @ offset 0)
libbpf: prog 'state_each': relo #6: non-matching candidate #0 <field_exists> [114] struct task_struct (0 @ offset 0)
libbpf: prog 'state_each': relo #6: no matching targets found
libbpf: prog 'state_each': relo #6: patched insn #19 (ALU/ALU64) imm 1 -> 0
"""  # noqa: E501
SECTION = "kprobe/wake_up_new_task"


def heard(text: str, level: int = LEVEL_DEBUG) -> DebugLog:
    log = DebugLog()
    for line in text.splitlines():
        log.feed(level, f"{line}\n")
    return log


def test_a_resolved_offset() -> None:
    found = heard(TASK_STATE).decisions[SECTION, 1]
    assert (found.prog, found.insn, found.poisoned, found.fatal) == ("state_each", 3, False, None)
    assert found.local_spec == "<byte_off> [18] struct pt_regs___x86.di (0:0 @ offset 0)"
    assert found.target_spec == "<byte_off> [162] struct pt_regs.di (0:14 @ offset 112)"
    assert found.patched == {"off": (0, 112)}
    assert found.candidates == [(0, "<byte_off> [162] struct pt_regs.di (0:14 @ offset 112)", True)]


def test_a_poisoned_instruction() -> None:
    found = heard(TASK_STATE).decisions[SECTION, 3]
    assert (found.insn, found.poisoned, found.target_spec, found.patched) == (6, True, None, {})
    assert found.why == "no matching targets found"


def test_an_existence_check_without_a_target_is_no_poison() -> None:
    found = heard(TASK_STATE).decisions[SECTION, 6]
    assert (found.poisoned, found.target_spec, found.patched) == (False, None, {"imm": (1, 0)})
    assert found.candidates == [(0, "<field_exists> [114] struct task_struct (0 @ offset 0)", False)]


def test_candidates_by_local_type_and_nothing_from_other_sentences() -> None:
    log = heard(TASK_STATE)
    assert log.found == {18: [(162, "struct pt_regs", "vmlinux")], 23: [(114, "struct task_struct", "vmlinux")]}
    assert set(log.decisions) == {(SECTION, 1), (SECTION, 3), (SECTION, 6)}
    assert (log.externs, log.warnings, log.appended, log.refused) == ({}, [], {}, None)


def test_a_64_bit_immediate() -> None:
    log = heard(  # programs/build/cgroup_subsys.bpf.o
        "libbpf: sec 'raw_tp/sched_process_exec': found 10 CO-RE relocations\n"
        "libbpf: prog 'cgroup_subsys': relo #0: <enumval_exists> [19] enum cgroup_subsys_id::cpu_cgrp_id = 1\n"
        "libbpf: prog 'cgroup_subsys': relo #0: patched insn #3 (LDIMM64) imm64 1 -> 1\n"
    )
    found = log.decisions["raw_tp/sched_process_exec", 0]
    assert (found.insn, found.patched) == (3, {"imm64": (1, 1)})
    assert found.local_spec == "<enumval_exists> [19] enum cgroup_subsys_id::cpu_cgrp_id = 1"


def test_externs_of_kconfig() -> None:
    log = heard(  # programs/build/kconfig.bpf.o
        "libbpf: extern (kcfg) #6: symbol 21, off 36, name CONFIG_HZ\n"
        "libbpf: extern (kcfg) #0: symbol 39, off 0, name CONFIG_COREMATRIX_NO_U64\n"
        "libbpf: prog 'kconfig_values': found extern #6 'CONFIG_HZ' (sym 21) for insn #52\n"
        "libbpf: extern (kcfg) 'CONFIG_HZ': set to 250\n"
        "libbpf: extern 'CONFIG_COREMATRIX_NO_U64' (weak): not resolved, defaulting to zero\n"
    )
    assert set(log.externs) == {"CONFIG_HZ", "CONFIG_COREMATRIX_NO_U64"}
    found, missing = log.externs["CONFIG_HZ"], log.externs["CONFIG_COREMATRIX_NO_U64"]
    assert (found["kind"], found["outcome"], found["value"]) == ("kconfig", "resolved", "250")
    assert (missing["kind"], missing["outcome"], missing["weak"]) == ("kconfig", "missing", True)
    assert (found["off"], missing["off"]) == (36, 0)


def test_kernel_functions_found_and_not() -> None:
    log = heard("libbpf: extern (func ksym) 'bpf_task_from_pid': resolved to kernel [65889]\n")
    missing = "libbpf: extern (func ksym) 'bpf_kfunc_call_test_mem_len_pass1': not found in kernel or module BTFs\n"
    log.feed(LEVEL_WARN, missing)
    assert log.externs["bpf_task_from_pid"]["kind"] == "kfunc"
    assert log.externs["bpf_task_from_pid"]["value"] == "kernel [65889]"
    lost = log.externs["bpf_kfunc_call_test_mem_len_pass1"]
    assert (lost["outcome"], lost["reason"]) == ("error", "not found in kernel or module BTFs")


def test_subprograms_and_a_program_refused_before_the_kernel_is_asked() -> None:
    log = heard(  # freplace.elf of golang-github-cilium-ebpf-dev
        "libbpf: sec '.relraw_tracepoint/sched_process_exec': relo #0: insn #0 against 'subprog'\n"
        "libbpf: prog 'sched_process_exec': added 4 insns from sub-prog 'subprog'\n"
        "libbpf: prog 'sched_process_exec': insn #0 relocated, imm 1 points to subprog 'subprog' (now at 2 offset)\n"
    )
    for text in ("attach program FD is not set", "failed to prepare load attributes: -22", "failed to load: -22"):
        log.feed(LEVEL_WARN, f"libbpf: prog 'replacement': {text}\n")
    assert log.appended == {"sched_process_exec": [("subprog", 4)]}
    assert log.refused == ("replacement", errno.EINVAL)
    assert log.warnings[0] == "prog 'replacement': attach program FD is not set"


@pytest.mark.parametrize(
    ("text", "number"), [("-22", 22), ("-EINVAL", errno.EINVAL), (" -3", 3), ("-EWHATEVER", None), ("", None)]
)
def test_errno_as_a_number_and_as_libbpf_1_6_spells_it(text: str, number: int | None) -> None:
    assert parse_errno(text) == number
