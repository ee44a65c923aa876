"""Functional tests run: their files read before anything boots, the commands run in the guest after the verdicts, each
with a result of its own.

A test may leave anything behind, so its guest is ended after it; the next cell gets another.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from harness.backends import execution
from harness.backends.execution import Command, Exit, OnOutput
from harness.errors import ConfigError, CorematrixError, GuestLostError, InfrastructureError, Interrupted, UsageError
from harness.executor.collected import Collected
from harness.model.bpf_object import ObjectFile
from harness.model.cell import Cell
from harness.model.expectation import NONE, Expectations
from harness.model.functional import FunctionalOutcome, FunctionalResult, FunctionalTest
from harness.model.reading import matches
from harness.model.result import CellResult
from harness.model.verdict import CellStatus, Verdict
from harness.rundir import RunDirectory

# Told to the command, so that one test can serve several kernels and settings.
_ENVIRONMENT = ("COREMATRIX_KERNEL", "COREMATRIX_RELEASE", "COREMATRIX_OBJECT", "COREMATRIX_SETTINGS")
_OUTCOME = {"timeout": FunctionalOutcome.TIMEOUT, "crashed": FunctionalOutcome.CRASHED}
_STATUS = {
    FunctionalOutcome.FAILED: CellStatus.FAILED, FunctionalOutcome.TIMEOUT: CellStatus.TIMEOUT,
    FunctionalOutcome.CRASHED: CellStatus.CRASHED, FunctionalOutcome.ERROR: CellStatus.ERROR,
}  # fmt: skip
_KEPT_STATUSES = frozenset({CellStatus.FAILED, CellStatus.TIMEOUT, CellStatus.CRASHED, CellStatus.ERROR})


class Executes(Protocol):
    """What a session can do besides judging."""

    def execute(self, command: Command, *, seconds: float, on_output: OnOutput) -> Exit:
        """Run a command to its end. GuestLostError, UsageError."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A test with the bytes of its files, for one architecture; it needs nothing more of this machine."""

    test: FunctionalTest
    command: Command = field(repr=False)

    @property
    def digest(self) -> str:
        """Of all that was read for it."""
        digest = hashlib.sha256()
        for item in self.command.files:
            digest.update(b"%s\0%o\0%d\0" % (item.path.encode(), item.mode, len(item.data)))
            digest.update(item.data)
        return digest.hexdigest()


# (object, architecture) -> its tests
Tests = Mapping[tuple[str, str], tuple[Prepared, ...]]


def prepare(cells: Iterable[Cell], expectations: Mapping[str, Expectations]) -> Tests:
    """The tests of every object and architecture among the cells. ConfigError for a file that is not there."""
    found: dict[tuple[str, str], dict[str, Prepared]] = {}
    for cell in cells:
        own, arch = expectations.get(cell.object.name, NONE), cell.kernel.arch
        for test in () if cell.not_applicable else own.tests:
            row = found.setdefault((cell.object.name, arch.name), {})
            if test.name not in row and test.covers(cell.id, arch.name):
                row[test.name] = _prepared(test, Path(own.where or "").parent, cell.object, arch.name, arch.uname)
    return {key: tuple(row.values()) for key, row in found.items()}


def _prepared(test: FunctionalTest, beside: Path, object_: ObjectFile, arch: str, machine: str) -> Prepared:
    words = [word.replace("{arch}", arch) for word in test.files]
    try:
        files = execution.gather([str(beside / word) for word in words])
    except UsageError as error:
        message = f"{test.where}.files: {error.message}"
        raise ConfigError(message) from error
    own = execution.GuestFile(path=_object_name(object_), data=object_.path.read_bytes(), mode=0o644)
    command = Command(
        argv=tuple(word.replace("{arch}", arch) for word in test.run), files=files, env=dict(test.env)
    )  # fmt: skip
    command = execution.with_libraries(command, [str(beside / word) for word in words], machine)
    return Prepared(test=test, command=replace(command, files=(*command.files, own)))


def _object_name(object_: ObjectFile) -> str:
    return object_.name.rpartition("/")[2] + ".bpf.o"


def run_tests(
    tests: Tests, cell: Cell, result: CellResult, *, session: Callable[[], Executes], end: Callable[[], None],
    directory: RunDirectory, refuse: str | None, on_progress: Callable[[dict[str, str]], None],
) -> CellResult:  # fmt: skip
    """The cell's result with those of its tests. `session` gives a guest of the cell's kernel, `end` ends it; `refuse`
    says why none may be run here.
    """
    due = [item for item in tests.get((cell.object.name, cell.kernel.arch.name), ())
           if item.test.covers(cell.id, cell.kernel.arch.name)]  # fmt: skip
    for item in due:
        why = refuse or _not_due(item.test, result)
        if why is not None:
            found, said = _skipped(item, why), b""
        else:
            on_progress({"phase": "functional test", "prog": item.test.name})
            found, said = _run(item, cell, result, session)
            end()
        result = _with(result, _logged(found, said, result, directory))
    return result


def _not_due(test: FunctionalTest, result: CellResult) -> str | None:
    """Why a test need not be run: nothing it could test is loaded."""
    named = [prog for prog in result.progs if matches(test.program, prog.name)]
    if any(prog.verdict is Verdict.LOADED for prog in named):
        return None
    if result.status in {CellStatus.ERROR, CellStatus.TIMEOUT, CellStatus.CRASHED}:
        return f"the cell was not judged ({result.status})"
    said = ", ".join(f"{prog.name} {prog.verdict}" for prog in named)
    return f"no program of it is loaded here ({said})" if said else f"no program matches {', '.join(test.program)}"


def _skipped(item: Prepared, why: str) -> FunctionalResult:
    return FunctionalResult(
        name=item.test.name, argv=item.test.run, outcome=FunctionalOutcome.SKIPPED, reason=why
    )  # fmt: skip


def _run(
    item: Prepared, cell: Cell, result: CellResult, session: Callable[[], Executes]
) -> tuple[FunctionalResult, bytes]:
    """The result, and all that the command said."""
    test, said, started = item.test, Collected(), time.monotonic()
    values = (cell.kernel.id, result.kernel.release or "", _object_name(cell.object), _settings(cell))
    command = replace(item.command, env={**dict(zip(_ENVIRONMENT, values, strict=True)), **item.command.env})
    blank = FunctionalResult(name=test.name, argv=test.run, outcome=FunctionalOutcome.ERROR)
    try:
        done = session().execute(command, seconds=test.timeout, on_output=said.add)
        blank = _ended(blank, done, test)
    except Interrupted:
        raise
    except GuestLostError as lost:
        outcome = _OUTCOME.get(lost.status, FunctionalOutcome.ERROR)
        words = f"not done within {test.timeout} s" if lost.status == "timeout" else lost.message
        blank = replace(blank, outcome=outcome, reason=words)
    except CorematrixError as error:
        blank = replace(blank, reason=error.message)
    return replace(blank, output=said.end(), seconds=round(time.monotonic() - started, 3)), said.all()


def _ended(blank: FunctionalResult, done: Exit, test: FunctionalTest) -> FunctionalResult:
    passed = done.signal is None and done.status == test.status
    how = f"killed by signal {done.signal}" if done.signal is not None else f"exit status {done.status}"
    return replace(
        blank,
        outcome=FunctionalOutcome.PASSED if passed else FunctionalOutcome.FAILED,
        status=done.status,
        signal=done.signal,
        reason=None if passed else f"{how}, {test.status} is expected" if test.status else how,
    )


def _settings(cell: Cell) -> str:
    return ",".join(f"{name}={value}" for name, value in cell.settings)


def _logged(found: FunctionalResult, said: bytes, result: CellResult, directory: RunDirectory) -> FunctionalResult:
    if said:
        with suppress(InfrastructureError):  # a full disk: the result's own end of it is left
            return replace(found, log=directory.keep_output(result.id, found.name, said))
    return found


def _with(result: CellResult, found: FunctionalResult) -> CellResult:
    """One test more. A failed one breaks what the object promises; one that was lost is trouble, unless the cell has
    worse to say already.
    """
    result = replace(result, functional=(*result.functional, found))
    status = _STATUS.get(found.outcome)
    if status is None or (status is not CellStatus.FAILED and result.status in _KEPT_STATUSES):
        return result
    text = f"functional test {found.name}: {found.reason}"
    before = result.reason if result.status is CellStatus.FAILED else None
    return replace(result, status=status, reason="; ".join(part for part in (before, text) if part))
