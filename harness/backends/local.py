"""Backend `local`: the kernel this machine runs, asked by the guest bundle as a plain command.

Programs are loaded, verified and closed again; nothing is attached unless asked for, nothing stays. An object that
makes this kernel oops takes the command with it, and possibly the machine: that is why it must be asked for by name.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness import payload, proc
from harness.backends.served import ServedSession
from harness.errors import UsageError
from harness.model.kernel import Kernel
from harness.model.machines import local_architecture
from harness.session import SessionOptions
from harness.transport.stream import StreamChannel

_MOST_SAID = 1 << 16
_REMEDY = "run corematrix as root, or give it CAP_BPF and CAP_PERFMON (setpriv, systemd-run)"


class LocalCommand:
    """A `served.Served`: the bundle under this Python, frames over a socket pair that is its stdin and stdout."""

    def __init__(self, sources: dict[str, bytes], btf: Path | None, wrapper: Sequence[str] = ()) -> None:
        """Start it; `wrapper` is a command that starts commands, such as setpriv. Raises CommandError."""
        self._directory = tempfile.TemporaryDirectory(prefix="corematrix-")
        bundle = payload.build(sources)
        path = Path(self._directory.name) / f"{bundle.sha256}.zip"
        path.write_bytes(bundle.data)
        for place, mode in ((path.parent, 0o755), (path, 0o644)):
            place.chmod(mode)  # a wrapper may make it another user's
        self._said = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the command
        words: list[str | Path] = [*wrapper, sys.executable, "-I", "-S", path, "serve"]
        words += ["--btf", btf] if btf else []
        ours, theirs = socket.socketpair()
        try:
            end = theirs.fileno()
            self._process = proc.spawn(words, stdin=end, stdout=end, stderr=self._errors.fileno())
        except BaseException:
            ours.close()
            self._errors.close()
            self._directory.cleanup()
            raise
        finally:
            theirs.close()
        self.channel = StreamChannel(ours)

    def said(self) -> str:
        """See `Served`."""
        said = self._said if self._errors.closed else os.pread(self._errors.fileno(), _MOST_SAID, 0)
        return said.decode("utf-8", "replace")

    def end(self, pid: int | None) -> None:  # noqa: ARG002 - the process group is ours
        """See `Served`."""
        self.channel.close()
        self._process.kill(grace=0.5)
        self._said = os.pread(self._errors.fileno(), _MOST_SAID, 0)
        self._errors.close()
        self._directory.cleanup()


def open_session(kernel: Kernel, options: SessionOptions) -> ServedSession:
    """Ask this machine. Raises UsageError when the row is of another architecture; see `ServedSession`."""
    arch = local_architecture()
    if arch is None or arch.name != kernel.spec.arch.name:
        message = f"{kernel.spec.id}: this machine is {os.uname().machine}, the row says {kernel.spec.arch.name}"
        raise UsageError(message, remedy="correct `arch` in kernels.yaml")
    btf = kernel.btf if kernel.btf_external else None
    return ServedSession(kernel, options, lambda: LocalCommand(dict(options.sources), btf), remedy=_REMEDY)
