"""The one SSH door: a connection to another machine, and commands run there. The one home of paramiko.

A host key nobody vouched for is an error, never added. Keys come from the agent, the row, or ssh's default files;
passwords are not asked for. What a row does not say is looked up in ~/.ssh/config (HostName, User, Port, IdentityFile,
ProxyJump). A host `vsock/CID` is a guest of this machine, reached without a network.
"""

from __future__ import annotations

import errno
import getpass
import re
import socket
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import paramiko

from harness.errors import InfrastructureError
from harness.model.machines import SshTarget, parse_target

_CONNECT_SECONDS = 30.0
_DEFAULT_PORT = 22
_STDERR_KEPT = 1 << 16
_VSOCK = re.compile(r"vsock/(\d+)")


class SshError(InfrastructureError):
    """A machine could not be reached, does not prove who it is, does not let us in, or a command failed there."""


class RunningCommand:
    """A command on the other machine with its standard streams. Its standard error is drained and its end kept."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self.stream = channel
        self._errors = bytearray()
        self._thread = threading.Thread(target=self._drain, name="ssh-stderr", daemon=True)
        self._thread.start()

    def errors(self) -> str:
        """What it said on standard error so far (its end, when that is long)."""
        if self.stream.closed or self.stream.eof_received:
            self._thread.join(timeout=1.0)
        return bytes(self._errors).decode("utf-8", "replace")

    def hang_up(self, seconds: float) -> bool:
        """Close its standard input; whether it ends within `seconds`."""
        with suppress(OSError):
            self.stream.shutdown_write()
        return self.stream.status_event.wait(seconds)

    def _drain(self) -> None:
        with suppress(OSError):
            while data := self.stream.recv_stderr(4096):
                self._errors += data
                del self._errors[:-_STDERR_KEPT]


class Connection:
    """A connection to `target`, through its jump hosts. A context manager."""

    def __init__(self, target: SshTarget) -> None:
        """Connect and log in. Raises SshError with what a user can do."""
        self.target = target
        self._chain: list[paramiko.SSHClient] = []
        try:
            for hop in _hops(_configured(target)):
                self._chain.append(_connect(hop, self._chain[-1] if self._chain else None))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def run(self, command: str, *, stdin: bytes = b"", timeout: float = _CONNECT_SECONDS) -> tuple[int, str, str]:
        """Run a shell command to its end: its exit status, output and errors. Raises SshError after `timeout` seconds
        or when the connection breaks.
        """
        running = self.start(command, timeout)
        stream = running.stream
        try:
            stream.sendall(stdin)
            stream.shutdown_write()
            output = bytearray()
            while data := stream.recv(1 << 16):
                output += data
            if not stream.status_event.wait(timeout):
                raise TimeoutError
            return stream.recv_exit_status(), output.decode("utf-8", "replace"), running.errors()
        except OSError as error:
            message = f"{self.target}: a command was not heard of any more: {error or 'no answer'}"
            raise SshError(message) from error
        finally:
            stream.close()

    def start(self, command: str, timeout: float = _CONNECT_SECONDS) -> RunningCommand:
        """Start a shell command and leave it running. Raises SshError."""
        try:
            transport = self._chain[-1].get_transport()
            if transport is None:
                raise EOFError
            channel = transport.open_session(timeout=timeout)
            channel.settimeout(timeout)
            channel.exec_command(command)
        except (paramiko.SSHException, EOFError, OSError) as error:
            message = f"{self.target}: no command can be run: {error or 'the connection is gone'}"
            raise SshError(message) from error
        return RunningCommand(channel)

    def close(self) -> None:
        """Hang up, the last hop first."""
        while self._chain:
            self._chain.pop().close()


def _connect(hop: SshTarget, through: paramiko.SSHClient | None) -> paramiko.SSHClient:
    client = paramiko.SSHClient()
    port = hop.port or _DEFAULT_PORT
    try:
        client.set_missing_host_key_policy(paramiko.RejectPolicy())
        client.load_system_host_keys()
        if hop.known_hosts is not None:
            client.load_host_keys(str(hop.known_hosts))
        client.connect(
            hop.host, port, hop.user or getpass.getuser(), key_filename=str(hop.key) if hop.key else None,
            timeout=_CONNECT_SECONDS, banner_timeout=_CONNECT_SECONDS, auth_timeout=_CONNECT_SECONDS,
            sock=_vsock(hop.host, port) or _tunnel(through, hop.host, port),
        )  # fmt: skip
    except (paramiko.SSHException, OSError, EOFError) as error:
        client.close()
        raise _explained(hop, error) from error
    return client


def _vsock(host: str, port: int) -> socket.socket | None:
    """A connection to a guest by its context id, where the host is `vsock/CID` (systemd's spelling); None for others.
    Raises OSError.
    """
    match = _VSOCK.fullmatch(host)
    if match is None:
        return None
    if not hasattr(socket, "AF_VSOCK"):
        raise OSError(errno.EAFNOSUPPORT, "this system has no vsock")
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        connection.settimeout(_CONNECT_SECONDS)
        connection.connect((int(match[1]), port))
    except BaseException:
        connection.close()
        raise
    return connection


def _tunnel(through: paramiko.SSHClient | None, host: str, port: int) -> paramiko.Channel | None:
    transport = through.get_transport() if through is not None else None
    if transport is None:
        return None
    return transport.open_channel("direct-tcpip", (host, port), ("127.0.0.1", 0), timeout=_CONNECT_SECONDS)


def _explained(hop: SshTarget, error: BaseException) -> SshError:
    """What went wrong in words, and the remedy."""
    port = f"-p {hop.port} " if hop.port else ""
    known = hop.known_hosts or "~/.ssh/known_hosts"
    if isinstance(error, paramiko.BadHostKeyException):
        message = f"{hop}: its host key is not the one in {known}: another machine, or one set up anew"
        return SshError(message, remedy="find out which before you change known_hosts")
    if isinstance(error, paramiko.AuthenticationException):
        return SshError(
            f"{hop}: not let in as {hop.user or getpass.getuser()}: {error}",
            remedy="load the key into ssh-agent, or name it: `key:` in kernels.yaml",
        )
    if "not found in known_hosts" in str(error):
        message = f"{hop}: its host key is not known; it is never added by itself"
        return SshError(message, remedy=f"ssh-keyscan {port}{hop.host}, compare its fingerprint, add it to {known}")
    if _VSOCK.fullmatch(hop.host):
        remedy = "is there /dev/vhost-vsock, and a guest of that CID?"
        return SshError(f"{hop}: cannot be reached: {error}", remedy=remedy)
    return SshError(f"{hop}: cannot be reached: {error or type(error).__name__}", remedy=f"try `ssh {port}{hop.host}`")


def _hops(target: SshTarget) -> list[SshTarget]:
    """The machines in the order they are connected to. What opens the last opens those before, unless they say else."""
    if target.jump is None:
        return [target]
    jump = _configured(target.jump)
    shared = replace(jump, key=jump.key or target.key, known_hosts=jump.known_hosts or target.known_hosts)
    return [*_hops(shared), target]


def _configured(target: SshTarget) -> SshTarget:
    """`target` with what ~/.ssh/config knows of it where it says nothing itself."""
    path = Path("~/.ssh/config").expanduser()
    if not path.is_file():
        return target
    try:
        found = paramiko.SSHConfig.from_path(str(path)).lookup(target.host)
    except (paramiko.SSHException, OSError, ValueError) as error:
        message = f"{path}: cannot be read: {error}"
        raise SshError(message) from error
    keys = [Path(name).expanduser() for name in found.get("identityfile", ())]
    jump = found.get("proxyjump")
    return replace(
        target,
        host=found.get("hostname", target.host),
        user=target.user or found.get("user"),
        port=target.port or (int(found["port"]) if "port" in found else None),
        key=target.key or next((key for key in keys if key.is_file()), None),
        jump=target.jump or (parse_target(jump) if jump and jump != "none" else None),
    )
