"""Guest faults, one by one, for real: each ends in the right status with the right evidence, and no QEMU is left."""

from __future__ import annotations

import io
import re
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from harness.errors import GuestLostError
from harness.kernels.vmlinux import VmlinuxError, unwrap
from harness.model.kernel import Kernel
from harness.session import JudgeRequest, Session
from harness.store import Store
from harness.vm.console import _KEEP_HEAD, _KEEP_TAIL
from harness.vm.deadlines import DEADLINES
from harness.vm.halt import Halt, Running
from harness.vm.qemu import Qemu
from tests.support import faulty_module, guests

pytestmark = pytest.mark.vm

X86 = "debian-6.1-cloud-amd64"
DIES = (
    # fault, status, what the message says
    ("panic", "crashed", r"panic: Kernel panic - not syncing: sysrq triggered crash"),
    ("oops", "crashed", r": oops: BUG: kernel NULL pointer dereference, address: 0000000000000010"),
    ("bug", "crashed", r": oops: invalid opcode: 0000"),
    ("exit", "crashed", r"panic: Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000300"),
    ("out_of_memory", "crashed", r"panic: Kernel panic - not syncing: .*(?:memory|Out of memory)"),
    ("power_off", "crashed", r"the guest died during 'judge'"),
    ("half_and_die", "crashed", r"panic: .*sysrq triggered crash"),
    ("garbage", "error", r"spoke nonsense during 'judge': a frame starts with"),
    ("giant", "error", r"a frame of 4294967280 bytes; the limit is"),
    ("checksum", "error", r"a wrong checksum"),
    ("nonce", "error", r"its nonce is not ours"),
    ("no_json", "error", r"whose JSON cannot be used"),
    ("no_object", "error", r"whose JSON cannot be used: no object"),
    ("deep", "error", r"whose JSON cannot be used"),
    ("hello", "error", r"'hello' instead of 'facts'"),
    ("fault", "error", r"ZeroDivisionError"),
    ("full_tmpfs", "error", r"MemoryError: the guest's file system is full"),
)
HANGS = (
    # fault, seconds allowed (more where the guest has to say something first, on a busy machine too), the message
    ("hang", 3, r"did not answer during 'judge' within 3 s"),
    ("late", 3, r"did not answer during 'judge' within 3 s"),
    ("spin", 3, r"did not answer during 'judge' within 3 s"),
    ("half", 15, r"within 15 s \((?:32|36) bytes of an answer had come\)"),
    ("fork_bomb", 3, r"did not answer|died"),
    ("flood", 3, r"did not answer"),
)
# What the kernel itself has to say, after a second or two of its own.
STUCK = (
    ("hung_task", r": hung task: INFO: task .*:1 blocked for more than 1 seconds"),
    ("soft_lockup", r": soft lockup: watchdog: BUG: soft lockup - CPU#\d stuck for \d+s!"),
)
MODULES = {"oops": "oops", "bug": "bug", "soft_lockup": "spin"}


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return guests.kernel(X86)


def blob(kernel: Kernel, name: str) -> bytes:
    """What goes with a fault's request."""
    if name not in MODULES:
        return b""
    assert kernel.btf is not None
    with tempfile.TemporaryDirectory() as directory:
        return faulty_module.build(MODULES[name], kernel.btf, Path(directory))


def fault(kernel: Kernel, name: str, **changes: Any) -> tuple[GuestLostError, Session, list[dict[str, Any]]]:
    data = blob(kernel, name)
    session = Session(kernel, guests.options(kernel, sources=guests.faulty_sources(), **changes))
    progress: list[dict[str, Any]] = []
    guest = session._running()
    pid = guest.qemu.pid
    with session, pytest.raises(GuestLostError) as caught:
        session.judge(JudgeRequest(name=name), data, progress.append)
    assert not Path(f"/proc/{pid}").exists()
    return caught.value, session, progress


@pytest.mark.parametrize(("name", "status", "said"), DIES)
def test_a_guest_that_dies_or_lies(kernel: Kernel, name: str, status: str, said: str) -> None:
    lost, _, progress = fault(kernel, name, judge_seconds=120)
    assert lost.status == status, lost.message
    assert re.search(said, lost.message), lost.message
    assert kernel.spec.id in lost.message
    # What names the culprit came before it died.
    assert progress == [{"type": "progress", "phase": "verdict", "prog": name}]


@pytest.mark.parametrize(("name", "seconds", "said"), HANGS)
def test_a_guest_that_hangs(kernel: Kernel, name: str, seconds: float, said: str) -> None:
    lost, _, _ = fault(kernel, name, judge_seconds=seconds)
    assert lost.status in ({"timeout", "crashed"} if name == "fork_bomb" else {"timeout"})
    assert re.search(said, lost.message), lost.message


@pytest.mark.parametrize(("name", "said"), STUCK)
def test_a_guest_whose_kernel_notices_that_it_is_stuck(kernel: Kernel, name: str, said: str) -> None:
    lost, _, _ = fault(kernel, name, judge_seconds=20)
    assert lost.status == "timeout"
    assert re.search(said, lost.message), lost.message + lost.console_tail


def test_the_console_of_a_guest_that_talks_without_end_is_bounded(kernel: Kernel) -> None:
    lost, _, _ = fault(kernel, "flood", judge_seconds=15)
    assert "endless" in lost.console_tail
    assert len(lost.console_tail) <= _KEEP_HEAD + _KEEP_TAIL + 100


def test_the_console_is_evidence_without_escapes(kernel: Kernel) -> None:
    with Session(kernel, guests.options(kernel, sources=guests.faulty_sources())) as session:
        session.judge(JudgeRequest(name="stderr"), b"", lambda _message: None)
        for _ in range(50):  # the UART goes out byte by byte, beside the answer: questions give the guest time to
            if "red <script>" in session.console:
                break
            session.judge(JudgeRequest(name="none"), b"", lambda _message: None)
        assert "red <script>" in session.console
        assert "\x1b" not in session.console
        assert "\x07" not in session.console


def test_an_answer_to_an_earlier_question_is_refused(kernel: Kernel) -> None:
    """Two answers to one question: the second would be taken for the next one's but for its nonce."""
    with Session(kernel, guests.options(kernel, sources=guests.faulty_sources(), judge_seconds=30)) as session:
        guest = session._running()
        from harness.guest.wire import Frame

        request = JudgeRequest(name="none").message()
        guest.channel.send(Frame(request, b"a" * 16), time.monotonic() + 30)  # its answers are left lying
        with pytest.raises(GuestLostError, match="nonce") as caught:
            session.judge(JudgeRequest(name="none"), b"", lambda _message: None)
        assert caught.value.status == "error"


def test_a_guest_whose_clock_jumps_to_1970_goes_on_answering(kernel: Kernel) -> None:
    with Session(kernel, guests.options(kernel, sources=guests.faulty_sources())) as session:
        for name in ("clock_1970", "none", "clock"):
            answer = session.judge(JudgeRequest(name=name), b"", lambda _message: None)
        assert 86400e9 <= answer["time_ns"] < 87000e9


def stuck_at_its_entry(kernel: Kernel) -> bytes:
    """A kernel's vmlinux whose first instruction, at the PVH entry, jumps to itself."""
    assert kernel.vmlinuz is not None
    data = bytearray(unwrap(kernel.vmlinuz.read_bytes(), str(kernel.vmlinuz)))
    segments = list(ELFFile(io.BytesIO(bytes(data))).iter_segments())
    notes = [note for segment in segments if isinstance(segment, NoteSegment) for note in segment.iter_notes()]
    (entry,) = [int.from_bytes(note["n_descdata"], "little") for note in notes
                if (note["n_name"], note["n_type"]) == ("Xen", 18)]  # fmt: skip
    (load,) = [segment for segment in segments
               if segment["p_type"] == "PT_LOAD" and 0 <= entry - segment["p_paddr"] < segment["p_filesz"]]  # fmt: skip
    place = load["p_offset"] + entry - load["p_paddr"]
    data[place : place + 2] = b"\xeb\xfe"
    return bytes(data)


def test_a_kernel_that_never_boots(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes, and the deadline ends it, QEMU and all."""
    stuck = tmp_path / "vmlinux"
    stuck.write_bytes(stuck_at_its_entry(kernel))
    bad = replace(kernel, vmlinuz=stuck, vmlinuz_sha256="1" * 64)
    monkeypatch.setitem(DEADLINES, "tcg", replace(DEADLINES["tcg"], boot=4.0))
    begun: list[int] = []

    class Noting(Halt):
        def add(self, running: Running) -> None:
            assert isinstance(running, Qemu)
            begun.append(running.pid)
            super().add(running)

    with Store(tmp_path / "cache") as own, pytest.raises(GuestLostError, match=r"within [\d.]+ s") as lost:
        Session(bad, guests.options(bad, cold=True, store=own, halt=Noting()))
    assert lost.value.status == "timeout"
    assert kernel.spec.id in lost.value.message
    (pid,) = begun
    assert not Path(f"/proc/{pid}").exists()


def test_a_file_that_is_no_kernel_is_named(kernel: Kernel, tmp_path: Path) -> None:
    assert kernel.vmlinuz is not None
    broken = tmp_path / "vmlinuz"
    broken.write_bytes(kernel.vmlinuz.read_bytes()[: 1 << 20] + bytes(1 << 20))
    bad = replace(kernel, vmlinuz=broken, vmlinuz_sha256="0" * 64)
    with pytest.raises(VmlinuxError, match=f"{broken}: its payload cannot be decompressed"):
        Session(bad, guests.options(bad, cold=True))
