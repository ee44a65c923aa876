"""Backend `ssh`: the kernel of another machine, asked by the guest bundle shipped there for the time of the session.

Nothing is installed: the bundle goes into a private temporary directory under its content hash, and goes again when
the command ends, however that comes about (a shell's EXIT trap there), also when we are killed.
"""

from __future__ import annotations

import shlex
from contextlib import suppress

from harness import payload
from harness.backends.served import ServedSession
from harness.errors import InfrastructureError
from harness.model.kernel import Kernel
from harness.model.machines import SshSource
from harness.session import SessionOptions
from harness.ssh import Connection, SshError
from harness.transport.stream import StreamChannel

_PYTHON_FLOOR = (3, 9)
_GRACE_SECONDS = 2.0
# `command -v` first: a missing interpreter must not look like a failing one.
_SURVEY = """\
command -v {python} >/dev/null || {{ echo no-python; exit 0; }}
{python} -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])'
umask 077 && mktemp -d "${{TMPDIR:-/tmp}}/corematrix.XXXXXXXX"
"""
_SERVE = """\
trap 'rm -rf -- {directory} 2>/dev/null || {sudo}rm -rf -- {directory}' EXIT
trap 'exit 129' HUP INT TERM
{command}
"""


class SshCommand:
    """A `served.Served` on another machine."""

    def __init__(self, kernel: Kernel, source: SshSource, sources: dict[str, bytes]) -> None:
        """Connect, ship, start. Raises SshError, InfrastructureError."""
        self._connection = Connection(source.target)
        self._sudo = "sudo -n -- " if source.sudo else ""
        self._directory = ""
        try:
            self._directory = self._prepare(source)
            words = [source.python, "-I", "-S", self._ship("zip", payload.build(sources)), "serve"]
            if kernel.btf is not None and kernel.btf_external:
                btf = payload.Bundle(data=kernel.btf.read_bytes(), sha256=kernel.btf_sha256 or "btf")
                words += ["--btf", self._ship("btf", btf)]
            script = _SERVE.format(
                sudo=self._sudo, directory=shlex.quote(self._directory), command=self._sudo + shlex.join(words)
            )
            self._running = self._connection.start(f"exec sh -c {shlex.quote(script)}")
        except BaseException:
            self._remove()
            self._connection.close()
            raise
        self.channel = StreamChannel(self._running.stream)

    def said(self) -> str:
        """See `Served`."""
        return self._running.errors()

    def end(self, pid: int | None) -> None:
        """See `Served`. A command that does not heed the end of its input is killed by its pid."""
        with suppress(SshError):
            if not self._running.hang_up(_GRACE_SECONDS) and pid is not None:
                self._connection.run(f"{self._sudo}kill -KILL {pid}")
        self._remove()
        self.channel.close()
        self._connection.close()

    def _prepare(self, source: SshSource) -> str:
        """A private directory there, once its Python is known to be new enough."""
        status, output, errors = self._connection.run(_SURVEY.format(python=shlex.quote(source.python)))
        version, _, directory = output.strip().partition("\n")
        if version == "no-python":
            message = f"{source.target}: there is no {source.python}"
            raise InfrastructureError(message, remedy="install python3 (3.9 or newer) there, or set `python:`")
        if status or "/" not in directory:
            message = f"{source.target}: cannot be used: {(errors or output).strip() or f'exit status {status}'}"
            raise SshError(message)
        self._directory = directory
        if tuple(int(part) for part in version.split(".")[:2]) < _PYTHON_FLOOR:
            message = f"{source.target}: its {source.python} is Python {version}; 3.9 or newer is needed"
            raise InfrastructureError(message, remedy="install a newer one and name it: `python:` in kernels.yaml")
        return directory

    def _ship(self, suffix: str, bundle: payload.Bundle) -> str:
        path = f"{self._directory}/{bundle.sha256}.{suffix}"
        status, _, errors = self._connection.run(f"umask 077; cat > {shlex.quote(path)}", stdin=bundle.data)
        if status:
            message = f"{self._connection.target}: {path} cannot be written: {errors.strip()}"
            raise SshError(message)
        return path

    def _remove(self) -> None:
        if self._directory:
            remove = f"rm -rf -- {shlex.quote(self._directory)}"
            with suppress(SshError):  # what a command run as root has left is root's to remove
                self._connection.run(f"{remove} 2>/dev/null || {self._sudo}{remove}")


def open_session(kernel: Kernel, options: SessionOptions) -> ServedSession:
    """Ask another machine. Raises SshError, InfrastructureError; see `ServedSession`."""
    source = kernel.spec.source
    assert isinstance(source, SshSource)
    remedy = None if source.sudo else "log in as root, or set `sudo: true` in kernels.yaml"
    return ServedSession(
        kernel, options, lambda: SshCommand(kernel, source, dict(options.sources)), remedy=remedy
    )  # fmt: skip
