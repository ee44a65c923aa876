"""What a user sees while a run goes on: a live block on a terminal, plain lines in a log, nothing when asked to be
quiet.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol, TextIO

from harness import ci_log
from harness.model.cell import Cell
from harness.model.result import CellResult
from harness.model.verdict import CellStatus
from harness.report import untrusted

_REDRAW_SECONDS = 0.1
_QUIET_STATUSES = frozenset({CellStatus.PASSED, CellStatus.NOT_APPLICABLE, CellStatus.SKIPPED})


class Progress(Protocol):
    """`harness.executor.Listener`, and an end."""

    def on_kernel(self, kernel_id: str, message: str) -> None: ...

    def on_cell(self, cell: Cell, message: str) -> None: ...

    def on_result(self, result: CellResult) -> None: ...

    def close(self) -> None:
        """Leave the screen clean for what is printed next."""


class QuietProgress:
    """Says nothing."""

    def on_kernel(self, kernel_id: str, message: str) -> None:
        pass

    def on_cell(self, cell: Cell, message: str) -> None:
        pass

    def on_result(self, result: CellResult) -> None:
        pass

    def close(self) -> None:
        pass


class PlainProgress(QuietProgress):
    """One line for each thing that happened to a kernel and for each finished cell: for pipes, logs and dumb
    terminals.
    """

    def __init__(self, stream: TextIO, total: int) -> None:
        self._stream = stream
        self._total = total
        self._done = 0

    def on_kernel(self, kernel_id: str, message: str) -> None:
        self._line(f"{kernel_id}: {message}")

    def on_result(self, result: CellResult) -> None:
        self._done += 1
        self._line(f"[{self._done}/{self._total}] {summary(result)}")

    def _line(self, text: str) -> None:
        self._stream.write(ci_log.plain(untrusted.line(text)) + "\n")
        self._stream.flush()


class LiveProgress:
    """The last lines of the terminal hold the count and what every active kernel is doing; what went wrong scrolls by
    above.
    """

    def __init__(
        self,
        stream: TextIO,
        total: int,
        size: Callable[[], os.terminal_size],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._total = total
        self._size = size
        self._clock = clock
        self._started = clock()
        self._drawn_at = float("-inf")
        self._drawn_lines = 0
        self._counts: Counter[CellStatus] = Counter()
        self._doing: dict[str, str] = {}

    def on_kernel(self, kernel_id: str, message: str) -> None:
        self._doing[kernel_id] = message
        self._draw()

    def on_cell(self, cell: Cell, message: str) -> None:
        self._doing[cell.kernel.id] = f"{cell.object.name}  {message}"
        self._draw()

    def on_result(self, result: CellResult) -> None:
        self._counts[result.status] += 1
        self._doing.pop(result.kernel.id, None)
        if result.status in _QUIET_STATUSES:
            self._draw()
        else:
            self._erase()
            self._stream.write(untrusted.line(summary(result)) + "\n")
            self._draw(now=True)

    def close(self) -> None:
        self._erase()
        self._stream.flush()

    def _draw(self, *, now: bool = False) -> None:
        if not now and self._clock() - self._drawn_at < _REDRAW_SECONDS:
            return
        self._erase()
        width, height = self._size()
        lines = [self._headline(), *(f"  {kernel}  {doing}" for kernel, doing in self._doing.items())]
        shown = [untrusted.line(line)[: max(1, width - 1)] for line in lines[: max(1, height - 2)]]
        self._stream.write("".join(f"{line}\n" for line in shown))
        self._stream.flush()
        self._drawn_lines = len(shown)
        self._drawn_at = self._clock()

    def _erase(self) -> None:
        if self._drawn_lines:
            self._stream.write(f"\x1b[{self._drawn_lines}A\x1b[J")  # ECMA-48: cursor up, erase to the end of the screen
        self._drawn_lines = 0

    def _headline(self) -> str:
        seconds = int(self._clock() - self._started)
        counts = ", ".join(f"{self._counts[status]} {status}" for status in CellStatus if self._counts[status])
        done = f"{sum(self._counts.values())}/{self._total} cells"
        return f"{done}  {counts}  {seconds // 60}:{seconds % 60:02}"


def progress_for(stream: TextIO, total: int, *, quiet: bool, environ: Mapping[str, str] = os.environ) -> Progress:
    """Live on a terminal that can move its cursor, plain otherwise."""
    if quiet:
        return QuietProgress()
    if stream.isatty() and environ.get("TERM", "dumb") != "dumb":
        return LiveProgress(stream, total, lambda: os.get_terminal_size(stream.fileno()))
    return PlainProgress(stream, total)


def summary(result: CellResult) -> str:
    """One line on a finished cell."""
    seconds = result.seconds.get("total")
    took = f" ({seconds:.1f} s)" if seconds is not None else ""
    first_line = (result.reason or "").partition("\n")[0]
    return f"{result.status:<14} {result.id}{took}{f': {first_line}' if first_line else ''}"
