"""Functional tests (docs/look-inside.md): what came of each, where, and what those said that did not pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from harness.model.functional import FunctionalOutcome, FunctionalResult
from harness.model.result import CellResult
from harness.report import untrusted
from harness.report.kernels import describe
from harness.report.paint import Paint, pad
from harness.report.view import View

_MOODS = {
    FunctionalOutcome.PASSED: "good", FunctionalOutcome.FAILED: "bad", FunctionalOutcome.SKIPPED: "quiet",
}  # fmt: skip
_LINES = 12


class _Answer(NamedTuple):
    outcome: FunctionalOutcome
    reason: str | None
    output: str


def lines(view: View, paint: Paint) -> Iterator[str]:
    """A line for each test and kind of answer, with its kernels; under one that did not pass the end of its output."""
    tests = _by_test(view)
    width = max((untrusted.width(untrusted.line(name)) for name in tests), default=0)
    for name, results in tests.items():
        shown = untrusted.line(name)
        for answer, kernels in _answers(results).items():
            where = describe(kernels, list(results))
            text = f"{where}{': ' + answer.reason if answer.reason else ''}"
            mood = _MOODS.get(answer.outcome, "trouble")
            first = f"  {pad(shown, width)}  {paint(pad(str(answer.outcome), 8), mood)}  "
            yield from paint.wrapped(untrusted.line(text), " " * 6, first=first)
            shown = ""
            for text in untrusted.lines(answer.output).splitlines()[-_LINES:]:
                yield "    │ " + paint(untrusted.fit(untrusted.line(text), paint.columns - 6), "quiet")


def words(cell: CellResult) -> tuple[str, ...]:
    """The same of one cell, a sentence for each test."""
    return tuple(
        f"functional test {test.name}: {test.outcome}{f', {test.reason}' if test.reason else ''}"
        for test in cell.functional
    )


def _by_test(view: View) -> dict[str, dict[str, FunctionalResult]]:
    """Test -> kernel -> result, in the run's order."""
    found: dict[str, dict[str, FunctionalResult]] = {}
    for (subject, kernel), cell in view.cells.items():
        for result in cell.functional:
            found.setdefault(f"{view.label(subject)} / {result.name}", {})[kernel] = result
    return found


def _answers(results: dict[str, FunctionalResult]) -> dict[_Answer, list[str]]:
    found: dict[_Answer, list[str]] = {}
    for kernel, result in results.items():
        quiet = result.outcome in {FunctionalOutcome.PASSED, FunctionalOutcome.SKIPPED}
        answer = _Answer(result.outcome, result.reason, "" if quiet else result.output)
        found.setdefault(answer, []).append(kernel)
    return found
