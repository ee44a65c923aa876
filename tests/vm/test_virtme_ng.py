"""vng has no deadline of its own: ours end its guest, whole, whether it does not come up or does not answer."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from harness import backends
from harness.backends import execution, virtme_ng
from harness.errors import GuestLostError
from harness.model.kernel import Kernel
from tests.support import guests

pytestmark = pytest.mark.vm


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel vng can boot; sockets go below this test's own directory, by which its processes are known."""
    missing = [name for name in ("depmod", "busybox") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing or shutil.which("vng", path=virtme_ng._path()["PATH"]) is None:
        pytest.skip(f"needs root, virtme-ng and {missing or 'kmod, busybox-static'}")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    found = guests.kernel("debian-6.1-generic-amd64")
    return replace(found, spec=replace(found.spec, backend="virtme-ng"))


def own_processes(directory: Path) -> list[str]:
    """Commands that name something below `directory`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes()
        except OSError:  # it has just ended
            continue
        if str(directory).encode() in words:
            found.append(words.replace(b"\0", b" ").decode("utf-8", "replace"))
    return found


def test_late(kernel: Kernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A boot under emulation takes 20 seconds at the least: with 5 allowed it is a guest that does not come up."""
    monkeypatch.setattr(virtme_ng, "_HELLO_SECONDS", 5.0)
    running: list[list[str]] = []
    accepted = virtme_ng.VirtmeGuest._accepted

    def seen(*arguments: object) -> object:
        connection = accepted(*arguments)  # type: ignore[arg-type]
        running.append(own_processes(tmp_path))
        return connection

    monkeypatch.setattr(virtme_ng.VirtmeGuest, "_accepted", seen)
    with pytest.raises(GuestLostError, match="no answer to 'hello' within 5 s") as lost:
        backends.open_session(kernel, guests.options(kernel))
    assert lost.value.status == "timeout"
    assert any("qemu-system" in command for command in running[0])
    assert own_processes(tmp_path) == []


@pytest.mark.ondemand
def test_hang(kernel: Kernel, tmp_path: Path) -> None:
    said = b""

    def take(_stream: str, data: bytes) -> None:
        nonlocal said
        said += data

    with closing(backends.open_session(kernel, guests.options(kernel))) as session:
        command = execution.Command(argv=("python3", "-c", "print('before', flush=True)\nwhile True: pass"))
        with pytest.raises(GuestLostError, match="no answer to 'exec' within 15 s") as lost:
            execution.run(session, command, seconds=15, on_output=take)
        assert (lost.value.status, said) == ("timeout", b"before\n")
        assert own_processes(tmp_path) == []
