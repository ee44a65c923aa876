"""QEMU's command line, composed from device values, and the life of one QEMU."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from harness import proc
from harness.errors import InfrastructureError
from harness.model.arch import Architecture
from harness.vm.console import Console
from harness.vm.devices import Device
from harness.vm.qmp import Qmp

# The first with `-machine memory-backend=`, which every guest gets.
OLDEST = (5, 0)
_MAX_COMPLAINT = 2000
_MOST_SAID = 64 << 10
_VERSION = re.compile(r"version (\d+\.\d+\.\d+)(?: \((.*)\))?")


def binary(arch: Architecture) -> str:
    """The emulator's file for `arch`. Raises InfrastructureError that names the package to install."""
    found = proc.which(arch.qemu)
    if found is None:
        message = f"{arch.qemu} is not installed: {arch.name} guests cannot be booted"
        raise InfrastructureError(message, remedy=f"apt-get install {arch.qemu_package}")
    return str(found)


@functools.cache
def version(qemu: str) -> str:
    """The version QEMU gives, with its package's (`7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`)."""
    text = proc.run([qemu, "--version"], timeout=30).text
    match = _VERSION.search(text)
    if match is None:
        message = f"{qemu} --version says no version: {text[:80]!r}"
        raise InfrastructureError(message)
    return match[1] if match[2] is None else f"{match[1]} ({match[2]})"


def older_than_needed(version: str) -> str | None:
    """What is wrong with a QEMU of this version, in words; None when nothing is."""
    numbers = tuple(int(number) for number in version.partition(" ")[0].split("."))
    if numbers >= OLDEST:
        return None
    return f"QEMU {'.'.join(map(str, OLDEST))} or newer is needed, this is {version}"


@functools.cache
def first_cpu(qemu: str, machine: str, models: tuple[str, ...]) -> str:
    """The first of these -cpu words that this QEMU makes a machine with; when it takes none, the first, so that QEMU
    itself says what is wrong with it.
    """
    return next((model for model in models if _makes(qemu, machine, model)), models[0])


def _makes(qemu: str, machine: str, cpu: str) -> bool:
    """Whether QEMU comes as far as its monitor with such a machine (-cpu help names models, not their properties)."""
    words = [qemu, "-nodefaults", "-no-user-config", "-display", "none", "-machine", machine, "-cpu", cpu, "-S"]
    done = proc.run([*words, "-monitor", "stdio"], stdin=b"quit\n", check=False, timeout=30)
    return done.returncode == 0


def kernel_line(devices: Sequence[Device]) -> str:
    """The kernel's command line for these devices, in their order."""
    return " ".join(word for device in devices for word in device.kernel_args())


def command(qemu: str, devices: Sequence[Device]) -> list[str]:
    """QEMU's whole command line for these devices."""
    words = [word for device in devices for word in device.qemu_args()]
    kernel = ["-append", kernel_line(devices)] if "-kernel" in words else []
    return [qemu, *words, *kernel]


class Qemu:
    """One running QEMU with its console and its monitor; a context manager that leaves nothing behind."""

    def __init__(
        self, words: Sequence[str], descriptors: Sequence[int], *, console: socket.socket, monitor: socket.socket
    ) -> None:
        self.args = tuple(words)
        self._said = b""
        self.console = Console(console)
        self.monitor = Qmp(monitor)
        try:
            self._complaints = _bounded_file(_MOST_SAID)
            self._process = proc.spawn(words, pass_fds=descriptors, stderr=self._complaints)
        except BaseException:
            monitor.close()
            self.console.finish(0)
            raise

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    def stderr(self) -> str:
        """What QEMU itself complained of, one line; the emulator's own notes about its end left out."""
        lines = self._said.decode("utf-8", "replace").splitlines()
        return "; ".join(line for line in lines if "terminating on signal" not in line)[:_MAX_COMPLAINT]

    def wait(self, timeout: float) -> int | None:
        """QEMU's exit status once it ends, None when it still runs after `timeout` seconds."""
        return self._process.wait(timeout)

    def kill(self) -> None:
        """Kill the process, if it still runs; from any thread. Whoever started it has still to `end` it."""
        if self._process.poll() is None:
            self._process.kill(grace=0)

    def end(self, *, grace: float = 0.0) -> int:
        """Wait `grace` seconds for QEMU to end by itself, then kill it; returns its exit status. May be called twice.
        """
        if grace:
            self._process.wait(grace)
        status = self._process.kill(grace=0)
        self.monitor.close()
        self.console.finish()
        if not self._complaints.closed:
            self._complaints.seek(0)
            self._said = self._complaints.read(_MAX_COMPLAINT).rstrip(b"\0")
            self._complaints.close()
        return status

    def __enter__(self) -> Qemu:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()


def _bounded_file(size: int) -> BinaryIO:
    """A file of zeros in memory that cannot grow: what is written beyond is refused (memfd_create(2), F_SEAL_GROW). A
    guest can make QEMU complain without end, and the directory for temporary files may be full.
    """
    descriptor = os.memfd_create("complaints", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
    return os.fdopen(descriptor, "w+b")


def firmware(name: str) -> str | None:
    """The full path of one of QEMU's own firmware files, None when this QEMU has none of that name."""
    for directory in ("/usr/share/qemu", "/usr/local/share/qemu", "/opt/homebrew/share/qemu"):
        path = Path(directory, name)
        with contextlib.suppress(OSError):
            if path.is_file():
                return str(path)
    return None
