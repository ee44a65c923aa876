"""The one subprocess door: short commands run to their end (`run`), long-lived ones kept in hand (`spawn`).

Every child leads its own session, so that whatever it forks dies with it, and none is left behind on a timeout, an
exception or Ctrl-C. Children get the C locale: what they say is read by code.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness.errors import InfrastructureError

# Between SIGTERM and SIGKILL: QEMU flushes and leaves on SIGTERM within milliseconds.
_GRACE_SECONDS = 2.0


class CommandError(InfrastructureError):
    """A command could not be started, failed, or was too slow; `result` is what it said, if it ran to an end."""

    def __init__(self, message: str, *, result: Completed | None = None, remedy: str | None = None) -> None:
        super().__init__(message, remedy=remedy)
        self.result = result


class ToolMissingError(CommandError):
    """The command is not installed."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A command that ran to its end. `returncode` is negative for a signal, as in `subprocess`."""

    args: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output as text; bytes that are not UTF-8 are replaced."""
        return self.stdout.decode("utf-8", "replace")


class Process:
    """A running child and its process group."""

    def __init__(self, args: Sequence[str], popen: subprocess.Popen[bytes]) -> None:
        self.args = tuple(args)
        self._popen = popen

    @property
    def pid(self) -> int:
        """Also the id of its process group and session."""
        return self._popen.pid

    @property
    def stdin(self) -> IO[bytes] | None:
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        return self._popen.stdout

    def poll(self) -> int | None:
        """The exit status, or None while it runs."""
        return self._popen.poll()

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait up to `timeout` seconds: the exit status, or None when it still runs."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return None

    def kill(self, *, grace: float = _GRACE_SECONDS) -> int:
        """End the whole group: SIGTERM, then SIGKILL after `grace` seconds (0: at once). Returns the exit status."""
        if grace > 0 and self._popen.poll() is None:
            _signal_group(self.pid, signal.SIGTERM)
            self.wait(grace)
        # Also when the leader is gone: its children may not be. A group id stays reserved while it has members.
        _signal_group(self.pid, signal.SIGKILL)
        status = self._popen.wait()
        for pipe in (self._popen.stdin, self._popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return status

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.kill()


def which(name: str) -> Path | None:
    """The command's file, or None."""
    found = shutil.which(name)
    return None if found is None else Path(found)


def run(
    args: Sequence[str | Path],
    *,
    timeout: float = 60.0,
    stdin: bytes | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    remedy: str | None = None,
) -> Completed:
    """Run a command to its end and return what it said.

    `timeout` in seconds; `env` is added to ours; `remedy` is what a user can do when the command is missing or fails.
    Raises ToolMissingError, or CommandError for a timeout and (with `check`) for a non-zero status.
    """
    words = [str(arg) for arg in args]
    popen = _popen(
        words, cwd=cwd, env=env, remedy=remedy, stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL
    )
    with _group(popen):
        try:
            stdout, stderr = popen.communicate(stdin, timeout)
        except subprocess.TimeoutExpired as error:
            message = f"{shlex.join(words)}: did not end within {timeout:g} s"
            raise CommandError(message, remedy=remedy) from error
    result = Completed(args=tuple(words), returncode=popen.returncode, stdout=stdout, stderr=stderr)
    if check and result.returncode:
        message = f"{shlex.join(words)}: {_status(result.returncode)}{_last_words(stderr or stdout)}"
        raise CommandError(message, result=result, remedy=remedy)
    return result


def spawn(
    args: Sequence[str | Path],
    *,
    stdin: int | IO[bytes] | None = None,
    stdout: int | IO[bytes] | None = None,
    stderr: int | IO[bytes] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    die_with_parent: bool = True,
    remedy: str | None = None,
) -> Process:
    """Start a long-lived command and return it; use it as a context manager, or call `kill()`.

    Streams left out go to /dev/null; `PIPE` of this module gives a pipe. With `die_with_parent` (where util-linux's
    setpriv is installed) the kernel kills the child when the *thread* that started it ends, so that a SIGKILL of ours
    leaves no guest behind (prctl(2), PR_SET_PDEATHSIG): start children from threads that outlive them. Raises
    ToolMissingError.
    """
    words = [str(arg) for arg in args]
    if die_with_parent and which("setpriv") and which(words[0]):
        command = ["setpriv", "--pdeathsig", "KILL", "--", *words]
    else:
        command = words
    null = subprocess.DEVNULL
    popen = _popen(
        command, cwd=cwd, env=env, remedy=remedy, pass_fds=pass_fds,
        stdin=null if stdin is None else stdin,
        stdout=null if stdout is None else stdout,
        stderr=null if stderr is None else stderr,
    )  # fmt: skip
    return Process(words, popen)


PIPE = subprocess.PIPE
STDOUT = subprocess.STDOUT


def _popen(
    words: list[str],
    *,
    cwd: Path | None,
    env: Mapping[str, str] | None,
    remedy: str | None,
    stdin: int | IO[bytes],
    stdout: int | IO[bytes] = PIPE,
    stderr: int | IO[bytes] = PIPE,
    pass_fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "LC_ALL": "C", **(env or {})}
    try:
        return subprocess.Popen(
            words, cwd=cwd, env=environment, stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=tuple(pass_fds),
            start_new_session=True,
        )  # fmt: skip
    except FileNotFoundError as error:
        if cwd is not None and not cwd.is_dir():
            message = f"{shlex.join(words)}: no directory {cwd}"
            raise CommandError(message) from error
        message = f"{words[0]}: command not found"
        raise ToolMissingError(message, remedy=remedy) from error
    except OSError as error:
        message = f"{shlex.join(words)}: cannot be started: {error.strerror}"
        raise CommandError(message, remedy=remedy) from error


@contextlib.contextmanager
def _group(popen: subprocess.Popen[bytes]) -> Iterator[None]:
    """Whatever happens inside, the group is gone afterwards and the leader is reaped."""
    try:
        yield
    finally:
        _signal_group(popen.pid, signal.SIGKILL)
        popen.wait()
        for pipe in (popen.stdin, popen.stdout, popen.stderr):
            if pipe is not None:
                pipe.close()


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


def _status(returncode: int) -> str:
    return f"exit status {returncode}" if returncode >= 0 else f"killed by {signal_name(-returncode)}"


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; `signal 99` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _last_words(output: bytes, lines: int = 5) -> str:
    text = output.decode("utf-8", "replace").strip().splitlines()[-lines:]
    return ": " + "; ".join(line.strip() for line in text) if text else ""
