"""Sessions with real guests: they come up, cold and restored alike, and leave nothing behind."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import boot
from harness.session import JudgeRequest, Session, SessionOptions
from harness.store import Store
from harness.vm import snapshot
from tests.support import guests
from tests.support.objects import PROGRAMS, compile_object

pytestmark = pytest.mark.vm

X86, ARM = "debian-6.1-cloud-amd64", "debian-6.1-cloud-arm64"
TIMES = {"seconds", "verification_usec"}


def ask(session: Session, name: str, data: bytes = b"") -> dict[str, Any]:
    return session.judge(JudgeRequest(name=name), data, lambda _message: None)


def timeless(value: Any) -> Any:
    """Facts without what is a measurement of time."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    if isinstance(value, str):
        return re.sub(r"^verification time \d+ usec$", "", value, flags=re.MULTILINE)
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def comparable(facts: dict[str, Any]) -> dict[str, Any]:
    """`timeless`, without the numbers of map descriptors (they count what the loader has open already) and, in logs,
    the kernel's own addresses of maps.
    """
    for prog in facts["progs"]:
        insns = bytearray(base64.b64decode(prog["insns"]))
        for ref in prog["refs"]:
            if ref["kind"] in ("map_fd", "map_value"):
                insns[8 * ref["insn"] + 4 : 8 * ref["insn"] + 8] = bytes(4)
        prog["insns"] = insns.hex()
        prog["log"] = re.sub(r"\b0xffff[0-9a-f]{12}\b", "ADDRESS", prog["log"])
    return dict(timeless(facts))


@pytest.mark.parametrize(("identity", "machine"), [(X86, "x86_64"), (ARM, "aarch64")])
def test_a_guest_comes_up_and_says_what_it_is(identity: str, machine: str) -> None:
    kernel = guests.kernel(identity)
    with Session(kernel, guests.options(kernel, cold=True, sources=guests.faulty_sources())) as session:
        assert session.provenance.start == "cold"
        assert session.provenance.cpus == 2
        assert ask(session, "none") == {"type": "facts", "fault": "none"}
        # uname's word, not ours, on what was booted.
        guest = session._hello(session._running(), 30)["guest"]
        assert guest == {"release": kernel.release, "machine": machine}


def test_a_restored_guest_judges_as_a_cold_one(tmp_path: Path) -> None:
    """Every fact but the clock's, byte for byte: verdicts, logs, final instructions, relocations, evidence."""
    kernel = guests.kernel(X86)
    objects = {
        name: compile_object(PROGRAMS / f"{name}.bpf.c", tmp_path / f"{name}.o").read_bytes()
        for name in ("task_state", "sizes", "fancy_helper")
    }
    with Session(kernel, guests.options(kernel, cold=True)) as session:
        cold = {name: timeless(ask(session, name, data)) for name, data in objects.items()}
    with Session(kernel, guests.options(kernel)) as session:
        assert session.provenance.start == "restored"
        restored = {name: timeless(ask(session, name, data)) for name, data in objects.items()}
    assert cold["task_state"]["core_relos"], "nothing was compared"
    assert restored == cold


@pytest.mark.ondemand
@pytest.mark.parametrize("identity", [X86, ARM])
def test_every_program_is_judged_alike_cold_restored_and_alone(identity: str, tmp_path: Path) -> None:
    """One booted guest for all of programs/, one restored guest for all, and a restored guest for each."""
    kernel = guests.kernel(identity)
    macro = {X86: "-D__TARGET_ARCH_x86", ARM: "-D__TARGET_ARCH_arm64"}[identity]
    objects = {
        path.name: compile_object(path, tmp_path / f"{path.stem}.o", macro).read_bytes()
        for path in sorted(PROGRAMS.glob("*.bpf.c"))
        if kernel.spec.arch.name == "x86_64" or not path.name.startswith("thread_fsbase")
    }
    with Session(kernel, guests.options(kernel, cold=True)) as session:
        cold = {name: comparable(ask(session, name, data)) for name, data in objects.items()}
    with Session(kernel, guests.options(kernel)) as session:
        restored = {name: comparable(ask(session, name, data)) for name, data in objects.items()}
    assert len(cold) > 15
    assert all(facts["progs"] for facts in cold.values())
    for name, data in objects.items():
        assert restored[name] == cold[name]
        with Session(kernel, guests.options(kernel)) as session:
            assert session.provenance.start == "restored"
            assert comparable(ask(session, name, data)) == cold[name]


def test_restored_twins_have_the_time_and_random_numbers_of_their_own() -> None:
    kernel = guests.kernel(X86)
    options = guests.options(kernel, sources=guests.faulty_sources())
    seen = []
    for _ in range(2):
        with Session(kernel, options) as session:
            assert session.provenance.start == "restored"
            assert abs(ask(session, "clock")["time_ns"] - time.time_ns()) < 30e9
            seen.append(ask(session, "random")["bytes"])
    assert seen[0] != seen[1]


def test_objects_of_any_size_travel_both_ways() -> None:
    kernel = guests.kernel(X86)
    with Session(kernel, guests.options(kernel, sources=guests.faulty_sources())) as session:
        data = os.urandom(300_000)
        assert ask(session, "echo", data)["blob"] == data.hex()
        assert len(ask(session, "large", b"3000000")["text"]) == 3_000_000


def test_a_saved_guest_that_is_damaged_is_dropped_and_the_kernel_booted(tmp_path: Path) -> None:
    kernel = guests.kernel(X86)
    with Store(tmp_path / "cache") as own:
        options = guests.options(kernel, store=own, sources=guests.faulty_sources())
        recipe = _recipe(options, kernel)
        with Session(kernel, options) as session:
            assert session.provenance.start == "restored"
        saved = snapshot.find(own, recipe.key())
        assert saved is not None
        state = bytearray(saved.state.read_bytes())
        state[len(state) // 2] ^= 1
        saved.state.write_bytes(state)
        with Session(kernel, options) as session:
            assert ask(session, "none")["fault"] == "none"
            assert session.provenance.start == "restored", "of a guest that has been saved anew"
            (note,) = session.provenance.notes
            assert "dropped" in note
            assert "is not what was saved" in note
        # What only QEMU notices.
        saved.state.write_bytes(b"nonsense")
        saved.sums.write_text(f"{hashlib.sha256(b'nonsense').hexdigest()}  state\n")
        with Session(kernel, options) as session:
            assert ask(session, "none")["fault"] == "none"
            (note,) = session.provenance.notes
            assert "dropped" in note
            assert "QEMU" in note


def test_a_cache_that_cannot_be_written_gives_its_guests_and_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mounted read-only: what is saved is restored, what is not is booted once, and not made ready to be saved."""
    if os.geteuid():
        pytest.skip("needs root, to mount")
    kernel = guests.kernel(X86)
    with Store(tmp_path / "cache") as own:
        options = guests.options(kernel, store=own, sources=guests.faulty_sources())
        with Session(kernel, options):
            pass
    root = str(tmp_path / "cache")
    subprocess.run(["mount", "--bind", root, root], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
        with Session(kernel, options) as session:
            assert ask(session, "none")["fault"] == "none"
            assert (session.provenance.start, session.provenance.notes) == ("restored", ())
        monkeypatch.setattr(Session, "_save", None)
        another = {**options.sources, "guest/none.py": b""}
        with Session(kernel, replace(options, sources=another)) as session:
            assert ask(session, "none")["fault"] == "none"
            assert session.provenance.start == "cold"
            (note,) = session.provenance.notes
            assert "the guest was not saved" in note
            assert "Read-only file system" in note
    finally:
        subprocess.run(["umount", "-l", root], check=True)


def _recipe(options: SessionOptions, kernel: Any) -> boot.Recipe:
    return boot.Recipe(
        kernel=kernel, packages=options.packages, store=options.store, accelerator="tcg", sources=dict(options.sources)
    )


def test_the_initramfs_is_the_same_bytes_each_time() -> None:
    kernel = guests.kernel(ARM)
    recipe = _recipe(guests.options(kernel), kernel)
    assert boot.build_initramfs(recipe) == boot.build_initramfs(recipe)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_leaves_no_qemu_and_no_file(number: signal.Signals, tmp_path: Path) -> None:
    """Whatever ends the harness ends its guests."""
    guests.packages(guests.kernel(X86).spec.arch)
    program = (
        "import sys\n"
        "from harness.session import Session\n"
        "from tests.support import guests\n"
        f"kernel = guests.kernel({X86!r})\n"
        "session = Session(kernel, guests.options(kernel, sources=guests.faulty_sources()))\n"
        "print(session._running().qemu.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env=environment, cwd=Path(__file__).parents[2],
    ) as harness:  # fmt: skip
        assert harness.stdout is not None
        pid = int(harness.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        watch = os.pidfd_open(pid)
        harness.send_signal(number)
        harness.wait(30)
    _await_end(watch)
    assert not list(tmp_path.iterdir())


def _await_end(watch: int) -> None:
    import select

    ready, _, _ = select.select([watch], [], [], 10)
    os.close(watch)
    assert ready, "QEMU outlived the harness"
