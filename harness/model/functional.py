"""Functional tests: commands that an object's expectations name, to be run in the guest (docs/look-inside.md), and what
came of them.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from harness.model import reading
from harness.model.arch import ARCHITECTURES
from harness.model.cell import CellId

_SECONDS = 60
_KEYS = {"name", "run", "files", "env", "timeout", "status", "program", "kernels", "arches", "settings"}


@dataclass(frozen=True, kw_only=True)
class FunctionalTest:
    """One item of `tests:`; `where` is its place in the file.

    `files` are HOST[:GUEST], HOST relative to the expectations file; in `run` and `files` stands `{arch}` for the
    guest's architecture. `timeout` in seconds, `status` the exit status that is a pass, `program` globs over programs
    one of which must be loaded.
    """

    where: str
    name: str
    run: tuple[str, ...]
    files: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    timeout: int = _SECONDS
    status: int = 0
    program: tuple[str, ...] = ("*",)
    kernels: tuple[str, ...] = ("*",)
    arches: tuple[str, ...] = ()
    settings: tuple[tuple[str, str], ...] = ()

    def covers(self, cell: CellId, arch: str) -> bool:
        """Is it to be run in this cell?"""
        return (
            reading.matches(self.kernels, cell.kernel)
            and (not self.arches or arch in self.arches)
            and set(self.settings) <= set(cell.settings)
        )


class FunctionalOutcome(StrEnum):
    """What became of a functional test. Only PASSED is a pass."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    ERROR = "error"


@dataclass(frozen=True, kw_only=True)
class FunctionalResult:
    """One functional test in one cell. `output` is the end of what it said on both streams, as it said it; `log` the
    whole, a path below the run's directory.
    """

    name: str
    argv: tuple[str, ...]
    outcome: FunctionalOutcome
    status: int | None = None
    signal: int | None = None
    reason: str | None = None
    output: str = ""
    log: str | None = None
    seconds: float = 0.0


def tests_from(entries: Sequence[Any], where: str) -> tuple[FunctionalTest, ...]:
    """The list under `tests:` of the file `where`. ConfigError, naming the path to the key."""
    tests = tuple(_test(entry, f"{where}: tests[{number}]") for number, entry in enumerate(entries))
    names = [test.name for test in tests]
    for test in tests:
        if names.count(test.name) > 1:
            reading.fail(f"{test.where}.name", f"two tests are called {test.name!r}: give each a `name`")
    return tests


def _test(data: Any, where: str) -> FunctionalTest:
    entry = reading.keys(data, where, _KEYS)
    run = _command(entry.get("run"), where)
    return FunctionalTest(
        where=where,
        name=reading.text(entry, "name", where) or PurePosixPath(run[0]).name,
        run=run,
        files=reading.words(entry, "files", where),
        env=reading.settings_of(entry.get("env") or {}, f"{where}.env"),
        timeout=_number(entry, "timeout", where, _SECONDS, least=1),
        status=_number(entry, "status", where, 0, least=0),
        program=reading.words(entry, "program", where) or ("*",),
        kernels=reading.words(entry, "kernels", where) or ("*",),
        arches=reading.words(entry, "arches", where, ARCHITECTURES),
        settings=reading.settings_of(entry.get("settings") or {}, f"{where}.settings"),
    )


def _command(value: Any, where: str) -> tuple[str, ...]:
    """A list of words, or a line that is cut as a shell would (no shell runs it: a guest has none)."""
    try:
        words = shlex.split(value) if isinstance(value, str) else value
    except ValueError as error:
        reading.fail(f"{where}.run", str(error))
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        reading.fail(f"{where}.run", f"a command or a list of its words wanted, found {value!r}")
    return tuple(words)


def _number(entry: Any, key: str, where: str, default: int, *, least: int) -> int:
    value = entry.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        reading.fail(f"{where}.{key}", f"a whole number of at least {least} wanted, found {value!r}")
    return int(value)
