"""The guest's end of the byte stream to the host: a virtio-serial port, or a UART where there is none.

A virtio-serial port knows whether the host is there. While it is not, poll(2) would return at once (POLLHUP) and
read(2) gives nothing: the driver tells of the host's coming by SIGIO (drivers/char/virtio_console.c,
handle_control_message), so a waiting guest sleeps, and may be saved in its sleep and restored much later.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # `signal` without its enums
import fcntl
import os
import select

_CHUNK = 1 << 16
_SIGIO = 29  # the same on every architecture Debian has


class Port:
    """Blocking reads and writes, whatever is below. `read` returns at least one byte; `write` everything."""

    __slots__ = ("_descriptor", "_hangs_up", "kind")

    def __init__(self, descriptor: int, kind: str, hangs_up: bool) -> None:
        self._descriptor = descriptor
        self._hangs_up = hangs_up
        self.kind = kind

    @classmethod
    def virtio(cls, node: str) -> Port:
        """The virtio-serial port at `node`. Raises OSError."""
        # Blocked, SIGIO waits for us to ask: a signal that comes between looking and sleeping is not lost.
        _signal.pthread_sigmask(_signal.SIG_BLOCK, {_SIGIO})
        descriptor = os.open(node, os.O_RDWR | os.O_CLOEXEC)
        fcntl.fcntl(descriptor, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_ASYNC)
        return cls(descriptor, "virtio", True)

    @classmethod
    def tty(cls, node: str) -> Port:
        """The UART at `node`, made raw: no echo, no translation, 8 bits. Raises OSError."""
        import termios

        descriptor = os.open(node, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        control = termios.CS8 | termios.CREAD | termios.CLOCAL
        characters = termios.tcgetattr(descriptor)[6]
        characters[termios.VMIN], characters[termios.VTIME] = 1, 0
        speed = termios.B115200
        termios.tcsetattr(descriptor, termios.TCSANOW, [0, 0, control, 0, speed, speed, characters])
        return cls(descriptor, "tty", False)

    @property
    def descriptor(self) -> int:
        """For poll(2), while the host is there."""
        return self._descriptor

    def read(self) -> bytes:
        """The next bytes from the host, waiting for it to come (back) if need be."""
        while True:
            data = os.read(self._descriptor, _CHUNK)
            if data:
                return data
            self._await_host()

    def write(self, data: bytes) -> None:
        """Write all of `data`; a virtio port takes some 32 KB at a time. Raises OSError when the host has gone."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]

    def _await_host(self) -> None:
        if not self._hangs_up:
            raise OSError("the UART to the host was closed")
        poll = select.poll()
        poll.register(self._descriptor, select.POLLIN)
        while poll.poll(0)[0][1] & select.POLLHUP:
            _signal.sigwait({_SIGIO})
