"""Backend `qemu`: a guest of ours (`harness.session`)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from harness.guest.wire import Frame
from harness.model.kernel import Kernel
from harness.session import Session, SessionOptions

_SEND_SECONDS = 5.0


class QemuSession(Session):
    """A `Session` as a `harness.backends.Backend`."""

    @property
    def kernel(self) -> Kernel:
        """The kernel it was given."""
        return self._kernel

    def request(
        self, message: dict[str, Any], *, blob: bytes = b"", seconds: float, wanted: str,
        on_progress: Callable[[dict[str, Any]], None] = lambda _message: None,
    ) -> dict[str, Any]:  # fmt: skip
        """See `Backend`."""
        return self._ask(self._running(), message, blob=blob, seconds=seconds, wanted=wanted, on_progress=on_progress)

    def send(self, message: dict[str, Any]) -> None:
        """See `Backend`."""
        self._running().channel.send(Frame(message, os.urandom(16)), time.monotonic() + _SEND_SECONDS)


def open_session(kernel: Kernel, options: SessionOptions) -> QemuSession:
    """Boot or restore. See `Session`."""
    return QemuSession(kernel, options)
