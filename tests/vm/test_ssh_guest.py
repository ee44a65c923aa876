"""The ssh backend against an OpenSSH server inside a guest of ours: another kernel, another Python, nothing of this
machine's. A guest has no network card, so one connection to a port here is carried to `sshd -i` there by `exec`.
"""

from __future__ import annotations

import io
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.backends import execution
from harness.kernels import provide
from harness.model.arch import Architecture
from harness.model.kernel import KernelSpec
from harness.model.machines import SshSource, SshTarget
from harness.session import JudgeRequest
from tests.support import guests, sshd
from tests.support.objects import PROGRAMS, compile_object

pytestmark = pytest.mark.vm

KERNEL = "debian-6.1-cloud-amd64"
BUSYBOX = Path("/bin/busybox")
CONFIG = """\
HostKey /etc/ssh/host
AuthorizedKeysFile /etc/ssh/authorized_keys
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
"""
# A guest has no users, no shell and no commands of its own.
PREPARE = """\
import os
for name in ("mktemp", "rm", "cat", "kill", "sh", "mkdir"):
    os.symlink("/bin/busybox", "/bin/" + name)
os.makedirs("/run/sshd", 0o755)
os.makedirs("/root", exist_ok=True)
os.chmod("/etc/ssh/host", 0o600)
"""


def test_verdicts_by_ssh_are_those_of_the_guest(tmp_path: Path) -> None:
    names = ("task_state", "kconfig", "fancy_helper")
    objects = {n: compile_object(PROGRAMS / f"{n}.bpf.c", tmp_path / f"{n}.o").read_bytes() for n in names}
    kernel = guests.kernel(KERNEL)
    with closing(backends.open_session(kernel, guests.options(kernel))) as direct:
        expected = judged(direct, objects)
    with guest_with_sshd(tmp_path) as target:
        spec = KernelSpec(
            id="box", arch=kernel.spec.arch, variant="machine", backend="ssh",
            source=SshSource(target=target, python="/usr/bin/python3.11"),
        )  # fmt: skip
        row = provide(spec, guests.store(), None, lambda _line: None)
        with closing(backends.open_session(row, replace(guests.options(kernel), judge_seconds=120.0))) as session:
            assert session.kernel.release == kernel.release
            assert session.kernel.source["lockdown"] in {None, "none"}
            assert session.kernel.source["unprivileged_bpf_disabled"] in {0, 1, 2}
            assert judged(session, objects) == expected


def judged(session: backends.Backend, objects: dict[str, bytes]) -> dict[str, object]:
    answers = {n: session.judge(JudgeRequest(name=n), data, lambda _message: None) for n, data in objects.items()}
    return {n: [verdict(prog) for prog in facts["progs"]] + facts["core_relos"] for n, facts in answers.items()}


def verdict(prog: dict[str, Any]) -> tuple[object, ...]:
    return prog["name"], prog["loaded"], prog["errno"], prog["relos"], prog["evidence"]["line_info"]


@contextmanager
def guest_with_sshd(directory: Path) -> Iterator[SshTarget]:
    """A guest whose sshd answers one connection, and how to get in."""
    if not Path(sshd.SSHD).exists() or not BUSYBOX.exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("needs openssh-server and busybox-static")
    host, user = sshd.make_key(directory / "host"), sshd.make_key(directory / "user")
    kernel = guests.kernel(KERNEL)
    guest = backends.open_session(kernel, guests.options(kernel))
    with closing(guest), socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        kind, key = host.with_suffix(".pub").read_text().split()[:2]
        (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
        for command in (python_library(kernel.spec.arch), prepared(host, user)):
            assert execution.run(guest, command, seconds=120, on_output=lambda _stream, _data: None).code == 0
        carrier = threading.Thread(target=carry, args=(guest, listener), daemon=True)
        carrier.start()
        yield SshTarget(
            host="127.0.0.1", port=port, user="root", key=user, known_hosts=directory / "known_hosts"
        )  # fmt: skip


def python_library(arch: Architecture) -> execution.Command:
    """The rest of Python's library: a guest holds what PID 1 needs, and a machine has all of it."""
    files = []
    for deb in guests.packages(arch).paths:
        unpacked = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], capture_output=True, check=True).stdout
        with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
            for member in archive:
                path = member.name.removeprefix(".")
                if member.isfile() and re.fullmatch(r"/usr/lib/python3\.\d+/(?!lib2to3|test).*\.py", path):
                    data = archive.extractfile(member)
                    assert data is not None
                    files.append(execution.GuestFile(path=path, data=data.read(), mode=0o644))
    return execution.Command(argv=("python3", "-c", ""), files=tuple(files))


def prepared(host: Path, user: Path) -> execution.Command:
    texts = {
        "/etc/passwd": b"root:x:0:0::/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/bin/false\n",
        "/etc/group": b"root:x:0:\nnogroup:x:65534:\n", "/etc/ssh/sshd_config": CONFIG.encode(),
        "/etc/ssh/host": host.read_bytes(), "/etc/ssh/authorized_keys": user.with_suffix(".pub").read_bytes(),
    }  # fmt: skip
    files = [execution.GuestFile(path=path, data=data, mode=0o644) for path, data in texts.items()]
    files.append(execution.GuestFile(path="/bin/busybox", data=BUSYBOX.read_bytes()))
    return execution.Command(argv=("python3", "-c", PREPARE), files=tuple(files))


def carry(guest: backends.Backend, listener: socket.socket) -> None:
    """One connection's bytes to and from `sshd -i`."""
    with suppress(OSError):
        connection, _ = listener.accept()
        files = execution.gather([sshd.SSHD])
        command = execution.Command(argv=("sshd", "-i", "-r", "-e", "-f", "/etc/ssh/sshd_config"), files=files)
        command = execution.with_libraries(command, [sshd.SSHD], "x86_64")

        def pass_on(stream: str, data: bytes) -> None:
            if stream == "stdout":
                connection.sendall(data)

        with connection, suppress(Exception):  # the guest is closed under us when the test is done
            execution.run(guest, command, seconds=300, on_output=pass_on, stdin=connection.fileno())
