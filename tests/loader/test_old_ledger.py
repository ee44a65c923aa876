"""The ledger that a 4.4, 4.9, 4.19 or 5.4 gives for programs/, on this machine: BTF of old declarations, and what those
kernels lack denied below the loader's bpf(2). Layouts: as in the BTF and sources of those kernels; renames: 4.7 (fs), 5.5 (start_boottime),
5.14 (__state), 4.11 (cputime_t).
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.guest import insn, syscall
from harness.guest.judge import Machine
from tests.loader import test_old_kernels as old
from tests.support.clang import compile_target
from tests.support.facts import judged, only_prog
from tests.support.objects import PROGRAMS, compile_object
from tests.support.this_kernel import DenyingBpf, facts_of, machine

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="thread_struct.fs is x86's")

DECLARATIONS = {
    "4.4": """typedef unsigned long cputime_t;
        struct thread_struct { unsigned long sp; unsigned long fs; unsigned long gs; };
        struct task_struct { volatile long state; int pid; cputime_t utime; u64 start_time; u64 real_start_time;
                             struct thread_struct thread; };""",
    "4.9": """typedef unsigned long cputime_t;
        struct thread_struct { unsigned long sp; unsigned long fsbase; unsigned long gsbase; };
        struct task_struct { volatile long state; int pid; cputime_t utime; u64 start_time; u64 real_start_time;
                             struct thread_struct thread; };""",
    "4.19": """struct thread_struct { unsigned long sp; unsigned long fsbase; unsigned long gsbase; };
        struct task_struct { volatile long state; int pid; u64 utime; u64 start_time; u64 real_start_time;
                             struct thread_struct thread; };""",
    "5.4": """struct thread_struct { unsigned long sp; unsigned long fsbase; unsigned long gsbase; };
        struct task_struct { volatile long state; int pid; u64 utime; u64 start_time; u64 real_start_time;
                             struct thread_struct thread; };""",
}
REGISTERS = "struct pt_regs { unsigned long si, di, orig_ax, ip; };"


def no_calls(command: int, attr: bytes) -> int:
    """No calls between BPF functions before 4.16."""
    if command != syscall.PROG_LOAD:
        return 0
    return 22 if any(op == insn.CALL and src == 1 for op, _, src, _, _ in old._insns(attr)) else 0


BEFORE_4_15 = (old.no_names, old.no_btf, old.no_global_data, old.no_probe_read_kernel, old.no_object_info,
               old.no_attach_type, no_calls)  # fmt: skip
LACKS: dict[str, tuple[Callable[[int, bytes], int], ...]] = {
    "4.4": BEFORE_4_15, "4.9": BEFORE_4_15,
    "4.19": (old.no_global_data, old.no_probe_read_kernel), "5.4": (old.no_probe_read_kernel,),
}  # fmt: skip
GONE = ("poisoned", "eliminated")
THERE = ("resolved", "live")


@pytest.fixture(scope="module", params=sorted(DECLARATIONS))
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Machine]:
    machine()
    types = compile_target(DECLARATIONS[request.param] + REGISTERS, "struct task_struct", "struct pt_regs")
    path = tmp_path_factory.mktemp("btf") / "vmlinux.o"
    path.write_bytes(types)
    lacking = DenyingBpf(old.all_of(*LACKS[request.param]))
    return request.param, Machine.survey(btf_path=str(path), bpf=lacking)


def ledger(on: Machine, name: str, program: str, tmp_path: Path) -> dict[tuple[str, str], tuple[str, str]]:
    """(field, kind) -> (outcome, liveness) of a program of programs/ that loaded there; of a check (value, liveness)."""
    data = compile_object(PROGRAMS / f"{name}.bpf.c", tmp_path / f"{name}.o", "-D__TARGET_ARCH_x86", "-mcpu=v1").read_bytes()
    facts: dict[str, Any] = facts_of(data, on, progs=[program])
    facts["progs"] = [prog for prog in facts["progs"] if prog["name"] == program]
    done = only_prog(judged(facts))
    assert done.verdict == "loaded", (done.error, done.explanation)
    return {
        (relo.field, relo.kind): (str(relo.new_value if relo.is_guard else relo.outcome), str(relo.liveness))
        for relo in done.core_relos
    }


def test_fsbase(kernel: tuple[str, Machine], tmp_path: Path) -> None:
    """`fs` below 4.7, `fsbase` from there: the one is read, the other is dead poison."""
    version, on = kernel
    found = ledger(on, "thread_fsbase", "thread_fsbase", tmp_path)
    before = found["task_struct___before_4_7.thread.fs", "byte_off"]
    after = found["task_struct.thread.fsbase", "byte_off"]
    assert (before, after) == ((THERE, GONE) if version == "4.4" else (GONE, THERE))


def test_task_state(kernel: tuple[str, Machine], tmp_path: Path) -> None:
    found = ledger(kernel[1], "task_state", "state_each", tmp_path)
    assert found["task_struct___before_5_14.state", "byte_off"] == THERE
    assert found["task_struct.__state", "byte_off"] == GONE


def test_start_time(kernel: tuple[str, Machine], tmp_path: Path) -> None:
    found = ledger(kernel[1], "start_time", "start_time", tmp_path)
    assert found["task_struct___before_5_5.real_start_time", "byte_off"] == THERE
    assert found["task_struct.start_boottime", "byte_off"] == GONE


def test_cpu_time(kernel: tuple[str, Machine], tmp_path: Path) -> None:
    version, on = kernel
    found = ledger(on, "cpu_time", "cpu_time_by_type", tmp_path)
    assert found["task_struct.utime", "byte_off"] == THERE
    assert found["cputime_t", "type_exists"] == ("1" if version in {"4.4", "4.9"} else "0", "live")
