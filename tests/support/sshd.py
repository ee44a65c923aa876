"""A real OpenSSH server of this test's own: its configuration, host key, user key and port, on loopback only."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.model.machines import SshTarget

SSHD = "/usr/sbin/sshd"


class Server:
    """A running sshd. `directory` holds its files, `temporary` is TMPDIR of what is run through it."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self.port = port
        self.temporary = directory / "tmp"

    def target(self, **changes: object) -> SshTarget:
        """How to get in."""
        known = {
            "host": "127.0.0.1", "port": self.port, "user": "root", "key": self.directory / "user",
            "known_hosts": self.directory / "known_hosts",
        }  # fmt: skip
        return SshTarget(**{**known, **changes})  # type: ignore[arg-type]

    def vouch(self, public_key: Path) -> None:
        """Write a known_hosts that says the server has this key."""
        kind, key = public_key.read_text().split()[:2]
        (self.directory / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")


def make_key(path: Path) -> Path:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


@contextmanager
def server(directory: Path) -> Iterator[Server]:
    """Start it, stop it; skips the test where there is none or we are not root."""
    if os.geteuid() != 0 or not Path(SSHD).exists() or shutil.which("ssh-keygen") is None:
        pytest.skip("needs root and Debian's openssh-server")
    Path("/run/sshd").mkdir(exist_ok=True)  # its privilege separation directory, made by systemd elsewhere
    found = Server(directory, _free_port())
    host, user = make_key(directory / "host"), make_key(directory / "user")
    found.temporary.mkdir()
    found.temporary.chmod(0o1777)
    found.vouch(host.with_suffix(".pub"))
    (directory / "authorized_keys").write_text(user.with_suffix(".pub").read_text())
    (directory / "sshd_config").write_text(
        f"Port {found.port}\nListenAddress 127.0.0.1\nHostKey {host}\nStrictModes no\nUsePAM no\nPidFile none\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\nPasswordAuthentication no\nSetEnv TMPDIR={found.temporary}\n"
    )
    command = [SSHD, "-D", "-f", str(directory / "sshd_config"), "-E", str(directory / "sshd.log")]
    with subprocess.Popen(command) as process:
        try:
            _await_port(found.port, process)
            yield found
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """sshd announces its readiness to nobody when it is not a daemon: knock until it opens."""
    limit = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < limit:
        with socket.socket() as knock:
            if knock.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail(f"sshd did not come up: exit status {process.poll()}")
