"""The ledger that a 4.4 to 5.4 gives for programs/, on this machine: BTF of old declarations
(tests/support/old_types.py), and what those kernels lack denied below the loader's bpf(2). What is expected follows from
the releases of the renames, as seen on booted kernels; cputime_t went with 4.11.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.guest import insn, syscall
from harness.guest.judge import Machine
from tests.loader import test_old_kernels as old
from tests.support import old_types
from tests.support.facts import judged, only_prog
from tests.support.objects import PROGRAMS, compile_object
from tests.support.this_kernel import DenyingBpf, facts_of, machine

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="thread_struct.fs is x86's")

def no_calls(command: int, attr: bytes) -> int:
    """No calls between BPF functions before 4.16."""
    if command != syscall.PROG_LOAD:
        return 0
    return 22 if any(op == insn.CALL and src == 1 for op, _, src, _, _ in old._insns(attr)) else 0


BEFORE_4_15 = (old.no_names, old.no_btf, old.no_global_data, old.no_probe_read_kernel, old.no_object_info,
               old.no_attach_type, no_calls)  # fmt: skip
# Names, ids and infos came with 4.13 to 4.15, calls with 4.16, expected_attach_type with 4.17, BTF with 4.18, global
# data with 5.2, bpf_probe_read_kernel with 5.5.
_IN_4_15 = (old.no_btf, old.no_global_data, old.no_probe_read_kernel, old.no_attach_type, no_calls)
_IN_4_19 = (old.no_global_data, old.no_probe_read_kernel)
LACKS: dict[str, tuple[Callable[[int, bytes], int], ...]] = {
    "4.4": BEFORE_4_15, "4.9": BEFORE_4_15, "4.14": BEFORE_4_15, "4.15": _IN_4_15, "4.18": _IN_4_19,
    "4.19": _IN_4_19, "5.4": (old.no_probe_read_kernel,),
}  # fmt: skip
GONE = ("poisoned", "eliminated")
THERE = ("resolved", "live")


@pytest.fixture(scope="module", params=LACKS)
def kernel(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Machine]:
    machine()
    path = tmp_path_factory.mktemp("btf") / "vmlinux.o"
    path.write_bytes(old_types.btf_of(request.param))
    lacking = DenyingBpf(old.all_of(*LACKS[request.param]))
    return request.param, Machine.survey(btf_path=str(path), bpf=lacking)


def expected(version: str, was: str, now: str) -> tuple[tuple[str, str], tuple[str, str]]:
    """What a release has of the field's two names: the one is read, the other dead poison."""
    renamed = old_types.release(version) >= old_types.RENAMES[was, now]
    return (GONE, THERE) if renamed else (THERE, GONE)


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
    found = ledger(kernel[1], "thread_fsbase", "thread_fsbase", tmp_path)
    before = found["task_struct___before_4_7.thread.fs", "byte_off"]
    after = found["task_struct.thread.fsbase", "byte_off"]
    assert (before, after) == expected(kernel[0], "fs", "fsbase")


def test_task_state(kernel: tuple[str, Machine], tmp_path: Path) -> None:
    found = ledger(kernel[1], "task_state", "state_each", tmp_path)
    both = found["task_struct___before_5_14.state", "byte_off"], found["task_struct.__state", "byte_off"]
    assert both == expected(kernel[0], "state", "__state")


def test_start_time(kernel: tuple[str, Machine], tmp_path: Path) -> None:
    found = ledger(kernel[1], "start_time", "start_time", tmp_path)
    both = (found["task_struct___before_5_5.real_start_time", "byte_off"],
            found["task_struct.start_boottime", "byte_off"])  # fmt: skip
    assert both == expected(kernel[0], "real_start_time", "start_boottime")


def test_cpu_time(kernel: tuple[str, Machine], tmp_path: Path) -> None:
    version, on = kernel
    found = ledger(on, "cpu_time", "cpu_time_by_type", tmp_path)
    assert found["task_struct.utime", "byte_off"] == THERE
    assert found["cputime_t", "type_exists"] == ("1" if old_types.release(version) < (4, 11) else "0", "live")


def test_renames_are_those_seen_on_booted_kernels() -> None:
    """shared/old_kernels.md, "Rename points": `thread_struct.fs/gs -> fsbase/gsbase` 4.7; ..."""
    notes = Path(__file__).parents[3] / "shared" / "old_kernels.md"
    if not notes.exists():
        pytest.skip("shared/old_kernels.md is not here")
    points = notes.read_text().split("Rename points:")[1].split("\n\n")[0]
    found = re.findall(r"\.([\w/]+) -> ([\w/]+)`\s+(\d+)\.(\d+)", points)
    said = {(was.split("/")[0], now.split("/")[0]): (int(major), int(minor)) for was, now, major, minor in found}
    assert said == dict(old_types.RENAMES)
