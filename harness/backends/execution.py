"""A command in a guest: its files gathered here, its output passed on as it comes, its exit status given back.

A dynamic executable of this machine finds other libraries in the guest than here: it is sent with its own, and run by
its own dynamic linker from a directory apart.
"""

from __future__ import annotations

import base64
import io
import os
import platform
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from harness import proc
from harness.backends import Backend
from harness.errors import GuestLostError, UsageError
from harness.transport import ChannelClosedError, ChannelTimeoutError

_MOST = 60 << 20  # wire.MAX_PAYLOAD less room for the request itself
_CHUNK = 1 << 12
_PUT_SECONDS = 120.0
_LIBRARIES = "libraries"
_LISTED = re.compile(r"(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)")
OnOutput = Callable[[str, bytes], None]


@dataclass(frozen=True, kw_only=True)
class GuestFile:
    """A file for the guest: `path` relative to its working directory (or absolute)."""

    path: str
    data: bytes
    mode: int = 0o755


@dataclass(frozen=True, kw_only=True)
class Command:
    """What is to be run. `argv` None is Python's prompt; `terminal` (rows, columns) gives it a terminal."""

    argv: tuple[str, ...] | None
    files: tuple[GuestFile, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    terminal: tuple[int, int] | None = None


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How it ended: an exit status, or the number of a signal."""

    status: int | None
    signal: int | None

    @property
    def code(self) -> int:
        """As a shell would say it."""
        return 128 + self.signal if self.signal is not None else self.status or 0


def run(session: Backend, command: Command, *, seconds: float, on_output: OnOutput, stdin: int | None = None) -> Exit:
    """Run it to its end. `on_output` gets `stdout` or `stderr` and bytes; its input is what the descriptor `stdin`
    gives (None: nothing). Raises GuestLostError, UsageError.
    """
    blob = b"".join(item.data for item in command.files)
    if len(blob) > _MOST:
        message = f"the files are {len(blob) >> 20} MiB; a guest takes {_MOST >> 20} at a time"
        raise UsageError(message, remedy="send fewer, or strip them")
    request = {
        "op": "exec", "argv": None if command.argv is None else list(command.argv), "env": dict(command.env),
        "files": [{"path": item.path, "mode": item.mode, "size": len(item.data)} for item in command.files],
        "terminal": None if command.terminal is None else list(command.terminal),
    }  # fmt: skip

    def pass_on(message: dict[str, Any]) -> None:
        if message.get("phase") == "exec":
            on_output(str(message["stream"]), base64.b64decode(message["data"]))
        elif message.get("phase") == "started":
            threading.Thread(target=_feed, args=(session, stdin), name="input", daemon=True).start()

    answer = session.request(request, blob=blob, seconds=seconds, wanted="exit", on_progress=pass_on)
    if answer["error"] is not None:
        message = f"the files could not be written in the guest: {answer['error']}"
        raise UsageError(message)
    return Exit(status=answer["status"], signal=answer["signal"])


def put(session: Backend, files: Sequence[GuestFile]) -> None:
    """Leave files in a guest for what comes after. Raises GuestLostError, UsageError."""
    command = Command(argv=("python3", "-I", "-S", "-c", ""), files=tuple(files))
    run(session, command, seconds=_PUT_SECONDS, on_output=lambda _stream, _data: None)


def _feed(session: Backend, stdin: int | None) -> None:
    """What comes in here goes there, until one of the two ends."""
    with suppress(ChannelClosedError, ChannelTimeoutError, GuestLostError, OSError):
        while stdin is not None and (data := os.read(stdin, _CHUNK)):
            session.send({"op": "input", "data": base64.b64encode(data).decode()})
        session.send({"op": "input", "data": None})


def gather(words: Sequence[str]) -> tuple[GuestFile, ...]:
    """The files of `--file HOST[:GUEST]`; without GUEST under their own name. Raises UsageError."""
    found = {}
    for word in words:
        host, _, guest = word.partition(":")
        path = Path(host)
        try:
            found[guest or path.name] = GuestFile(
                path=guest or path.name, data=path.read_bytes(), mode=path.stat().st_mode & 0o777
            )
        except OSError as error:
            message = f"--file {word}: {error.strerror}"
            raise UsageError(message) from error
    return tuple(found.values())


def with_libraries(command: Command, sources: Sequence[str], machine: str) -> Command:
    """The same command with the libraries its executable needs, where that is one of the files and dynamic.

    `sources` are the words of `--file` that `command.files` came from, `machine` the guest's `uname -m`.
    """
    by_name = {item.path: Path(word.partition(":")[0]) for item, word in zip(command.files, sources, strict=True)}
    if not command.argv or _file_name(command.argv[0]) not in by_name:
        return command
    program = _file_name(command.argv[0])
    linker = _linker(next(item.data for item in command.files if item.path == program))
    if linker is None or machine != platform.machine():
        return command
    said = proc.run([linker, "--list", by_name[program]], remedy=f"is {by_name[program]} whole?").text
    libraries = [Path(match[1]) for line in said.splitlines() if (match := _LISTED.search(line.strip()))]
    files = tuple(_library(path) for path in dict.fromkeys([*libraries, Path(linker)]))
    start = (f"./{_LIBRARIES}/{Path(linker).name}", "--library-path", f"./{_LIBRARIES}", f"./{program}")
    return Command(
        argv=(*start, *command.argv[1:]), files=(*command.files, *files), env=command.env, terminal=command.terminal
    )


def _file_name(word: str) -> str:
    return str(PurePosixPath(word.removeprefix("./")))


def _library(path: Path) -> GuestFile:
    return GuestFile(path=f"{_LIBRARIES}/{path.name}", data=path.read_bytes())


def _linker(data: bytes) -> str | None:
    """The dynamic linker an executable asks for, None for a static one and for what is no ELF."""
    try:
        segments = ELFFile(io.BytesIO(data)).iter_segments("PT_INTERP")
        return next((segment.data().rstrip(b"\0").decode() for segment in segments), None)
    except ELFError:
        return None
