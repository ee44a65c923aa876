"""Backend `qemu`: a guest of ours (`harness.session`)."""

from __future__ import annotations

from harness.model.kernel import Kernel
from harness.session import Session, SessionOptions


class QemuSession(Session):
    """A `Session` that says whose it is."""

    @property
    def kernel(self) -> Kernel:
        """The kernel it was given."""
        return self._kernel


def open_session(kernel: Kernel, options: SessionOptions) -> QemuSession:
    """Boot or restore. See `Session`."""
    return QemuSession(kernel, options)
