"""The request loop as a plain command, `python3 bundle.zip serve`: frames on standard input and output, on a machine
that is somebody's. Its clock and its random numbers are left alone.
"""

from __future__ import annotations

import os
import sys

from .execute import WORK
from .port import Port
from .server import Server
from .syscall import Bpf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .wire import Frame

_CHUNK = 1 << 16


class HungUp(Exception):
    """The host has closed our standard input."""


class Pipes:
    """A port like `port.Port` over two descriptors. Whatever else writes to descriptor 1 lands on standard error."""

    kind = "pipe"

    def __init__(self) -> None:
        self._in = os.dup(0)
        self._out = os.dup(1)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        os.dup2(2, 1)

    @property
    def descriptor(self) -> int:
        """See `Port`."""
        return self._in

    def read(self) -> bytes:
        """The next bytes. Raises HungUp at the end."""
        data = os.read(self._in, _CHUNK)
        if not data:
            raise HungUp
        return data

    def write(self, data: bytes) -> None:
        """All of `data`."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._out, view) :]


class CommandServer(Server):
    """Surveys the machine when it is greeted, if it is allowed to. `btf_path`, `kconfig_path`: see `Machine.survey`."""

    def __init__(self, port: Any, btf_path: str | None, kconfig_path: str | None) -> None:
        Server.__init__(self, port, None)
        self._paths = (btf_path, kconfig_path)

    def _hello(self, _frame: Frame) -> dict[str, Any]:
        from . import privileges
        from .judge import Machine

        bpf = Bpf()
        found = privileges.survey(bpf)
        if not found["denied"]:
            btf_path, kconfig_path = self._paths
            self._machine = Machine.survey(btf_path=btf_path, kconfig_path=kconfig_path, bpf=bpf)
        answer = {"type": "hello", "guest": {}, "port": self._port.kind, "privileges": found}
        if self._machine is not None:
            answer["guest"] = self._machine.facts()
        return answer

    def _exec(self, frame: Frame) -> dict[str, Any]:
        """In a directory of its own beside the bundle, which is removed again with all that is in it: /tmp is not ours
        here. In a guest of somebody else's the bundle's file system is read-only, and /tmp goes with the guest.
        """
        if self._port.kind != "pipe":
            return self._execute(frame, WORK)
        work = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "work-%d" % os.getpid())
        os.mkdir(work, 0o700)
        try:
            return self._execute(frame, work)
        finally:
            _remove(work)


def _remove(top: str) -> None:
    """A directory and what is in it, as far as that goes."""
    for place, directories, files in os.walk(top, topdown=False):
        for name in files:
            os.unlink(os.path.join(place, name))
        for name in directories:
            path = os.path.join(place, name)
            os.unlink(path) if os.path.islink(path) else os.rmdir(path)
    os.rmdir(top)


class OneHost(Port):
    """A virtio port whose host does not come back: a guest of somebody else's is never saved."""

    __slots__ = ()

    def _await_host(self) -> None:
        raise HungUp


def serve(btf_path: str | None, kconfig_path: str | None, port: str | None = None) -> None:
    """Answer until the host hangs up or says `poweroff`: on the virtio port named `port`, or on our own streams."""
    try:
        CommandServer(Pipes() if port is None else _virtio(port), btf_path, kconfig_path).serve()
    except (HungUp, BrokenPipeError):
        return


def _virtio(name: str) -> Port:
    from .init import virtio_port

    node = virtio_port(name)
    if node is None:
        raise OSError("no virtio-serial port named %r" % name)
    return OneHost.virtio(node)
