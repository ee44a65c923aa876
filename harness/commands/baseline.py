"""`run --baseline`: what a run is compared with, and when it may replace it; the cost options, which `diff` has too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

from harness import matrix, report
from harness.errors import UsageError
from harness.model.cell import Cell
from harness.model.kernel import KernelSpec
from harness.model.result import CellResult, RunResult, VerifierStats
from harness.report.diff import CostLimits, Diff, diff
from harness.report.view import TROUBLE
from harness.rundir import read_run, write_whole

_FIGURES = tuple(item.name for item in fields(VerifierStats) if item.name not in {"insn_limit", "log", "log_excerpt"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--baseline`, `--update-baseline` and the cost options."""
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="an earlier run's JSON; a regression is status 1")
    parser.add_argument(
        "--update-baseline", action="store_true", help="make this run the baseline: FILE is written, or made"
    )
    add_cost_arguments(parser)


def add_cost_arguments(parser: argparse.ArgumentParser) -> None:
    """When growth of a verifier figure is a regression."""
    usual = CostLimits()
    absolute = ", ".join(f"{name}={value}" for name, value in usual.absolute.items())
    add = parser.add_argument
    add("--cost-percent", type=float, default=usual.percent, metavar="P", help="a verifier figure that grew by more "
        "percent, and by more than its --cost-absolute, is a regression (default: %(default)g)")  # fmt: skip
    add("--cost-absolute", action="append", default=[], metavar="FIGURE=N",
        help=f"growth of one figure up to which nothing is a regression (repeatable; default: {absolute})")  # fmt: skip
    add("--cost-limit", type=float, default=usual.of_limit * 100, metavar="P", help="percent of the verifier's "
        "instruction limit; a program that comes to need more is a regression (default: %(default)g)")  # fmt: skip


def cost_limits(options: argparse.Namespace) -> CostLimits:
    """From the cost options. UsageError for a figure the verifier does not have."""
    absolute = dict(CostLimits().absolute)
    for assignment in options.cost_absolute:
        name, _, number = assignment.partition("=")
        if name not in _FIGURES or not number.isdigit():
            message = f"--cost-absolute {assignment}: expected FIGURE=N"
            raise UsageError(message, remedy=f"figures: {', '.join(_FIGURES)}")
        absolute[name] = int(number)
    return CostLimits(percent=options.cost_percent, absolute=absolute, of_limit=options.cost_limit / 100)


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What this run was asked for. What the user left out is not lost; what the matrix or a directory lost is."""

    kernels: Sequence[KernelSpec]  # all of the matrix, chosen or not
    cells: Sequence[Cell]
    globs: Sequence[str]
    only: Sequence[str]
    arch: str | None
    whole_directories: bool
    settings_given: bool = False

    def covers(self, cell: CellResult) -> bool:
        """Should this cell of the baseline have been run again?"""
        chosen = {item.kernel.id for item in self.cells}
        return (
            (cell.kernel.id in chosen or cell.kernel.id not in {kernel.id for kernel in self.kernels})
            and (not self.globs or any(fnmatchcase(cell.kernel.id, glob) for glob in self.globs))
            and (self.arch is None or cell.kernel.arch == self.arch)
            and (not self.only or any(fnmatchcase(cell.id, matrix.escape(pattern)) for pattern in self.only))
            and cell.loader in {item.loader for item in self.cells}
            and (self.whole_directories or cell.object.name in {item.object.name for item in self.cells})
            and (not self.settings_given or cell.id in {str(item.id) for item in self.cells})
        )


class Baseline:
    """The baseline of a run, read before anything is booted."""

    def __init__(self, options: argparse.Namespace) -> None:
        """UsageError when there is none and none is to be made, or when it is no run."""
        self._path: Path | None = options.baseline
        self._update: bool = options.update_baseline
        self._limits = cost_limits(options)
        self.run: RunResult | None = None
        if self._path is None:
            if self._update:
                message = "--update-baseline without --baseline FILE"
                raise UsageError(message, remedy="name the file it is kept in")
        elif self._path.exists() or not self._update:
            self.run = self._read(self._path)

    @staticmethod
    def _read(path: Path) -> RunResult:
        if not path.exists():
            message = f"{path}: there is no such baseline"
            raise UsageError(message, remedy="add --update-baseline to make it from this run")
        return read_run(path)

    def compare(self, new: RunResult, selection: Selection) -> Diff | None:
        """What changed since, None without a baseline. Cells that were not asked for are left out."""
        if self.run is None:
            return None
        base = replace(self.run, cells=tuple(cell for cell in self.run.cells if selection.covers(cell)))
        return diff(base, new, self._limits)

    def closes_gate(self, found: Diff | None) -> bool:
        """Is the status 1 for what changed? Who updates the baseline has accepted it."""
        return found is not None and found.regressed and not self._update

    def update(self, new: RunResult, text: str, selection: Selection) -> str | None:
        """Write the run as the new baseline if that is wanted; a line for people.

        Cells not asked for keep what the baseline says. A run with trouble is no baseline: what it lacks would never
        be missed again.
        """
        if not self._update or self._path is None:
            return None
        unjudged = [cell for cell in new.cells if cell.status in TROUBLE]
        if unjudged:
            return f"baseline: {self._path} stays as it was: {len(unjudged)} cells were not judged ({unjudged[0].id})"
        write_whole(self._path / "run.json" if self._path.is_dir() else self._path, self._merged(new, text, selection))
        return f"baseline: {self._path} is this run from now on"

    def _merged(self, new: RunResult, text: str, selection: Selection) -> str:
        here = {cell.id for cell in new.cells}
        kept = [cell for cell in (self.run.cells if self.run else ())
                if cell.id not in here and not selection.covers(cell)]  # fmt: skip
        if not kept:
            return text
        return report.render("json", replace(new, cells=(*kept, *new.cells)))
