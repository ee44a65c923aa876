"""`corematrix diff BASE NEW`: what changed between two stored runs; status 1 when something regressed.

`corematrix diff --kernels A B RUN`, `corematrix diff --history RUN`: what changes between the kernels of one.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from harness.commands import baseline, looking
from harness.commands.run import exit_status
from harness.errors import NothingJudgedError, UsageError
from harness.model.result import RunResult
from harness.report import config_suspects, diff_format, kernel_diff, kernel_diff_format
from harness.report.diff import diff
from harness.report.view import TROUBLE
from harness.rundir import read_run
from harness.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="two runs (BASE NEW), or one with --kernels or --history: "
        "their JSON, or their directories")  # fmt: skip
    add("--kernels", nargs=2, metavar=("A", "B"), help="compare two kernels of one run, by id")
    add("--history", action="store_true", help="compare all kernels of one run, neighbour by neighbour")
    add("--format", choices=diff_format.FORMATS, default="terminal", help="text: the same without colour")
    baseline.add_cost_arguments(parser)


def run(options: argparse.Namespace, stdout: TextIO, _stderr: TextIO) -> int:
    """Compare and print. Status 1 for a regression; without one, that of the new run's cells that came to nothing."""
    width, _ = shutil.get_terminal_size((100, 24))
    colour = stdout.isatty() and "NO_COLOR" not in os.environ
    if options.kernels or options.history:
        stdout.write(_between_kernels(options, width, colour))
        return 0
    base, new = _paths(options.runs, 2, "BASE and NEW")
    now = read_run(new)
    found = diff(read_run(base), now, baseline.cost_limits(options))
    stdout.write(diff_format.render(options.format, found, width=width, colour=colour))
    lost = [cell for cell in now.cells if cell.status in TROUBLE]
    return 1 if found.regressed else exit_status(lost) if lost else 0


def _compared(stored: RunResult, first: str, second: str, sources: config_suspects.Sources) -> kernel_diff.KernelDiff:
    """Two kernels of a run, and the config switches that may be behind what differs."""
    found = kernel_diff.compare(stored, first, second, sources.btf_of)
    pair = replace(stored, cells=tuple(cell for cell in stored.cells if cell.kernel.id in {first, second}))
    return replace(found, config_suspects=config_suspects.suspects(pair, sources))


def _paths(paths: Sequence[Path], count: int, what: str) -> Sequence[Path]:
    if len(paths) != count:
        message = f"{what} wanted, {len(paths)} given"
        raise UsageError(message, remedy="corematrix diff BASE NEW, or corematrix diff --kernels A B RUN")
    return paths


def _between_kernels(options: argparse.Namespace, width: int, colour: bool) -> str:
    (path,) = _paths(options.runs, 1, "one run")
    stored = read_run(path)
    pairs = kernel_diff.history(stored) if options.history else [tuple(options.kernels)]
    if not pairs:
        message = f"{path}: no two kernels of one architecture in this run: nothing to compare"
        raise NothingJudgedError(message, remedy="run the object on more kernels")
    with Store.default() as store:

        sources = looking.sources(store)
        found = [_compared(stored, first, second, sources) for first, second in pairs]
    return kernel_diff_format.render(options.format, found, width=width, colour=colour)
