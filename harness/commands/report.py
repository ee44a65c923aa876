"""`corematrix report RUN --format F`: a stored run in another format."""

from __future__ import annotations

import argparse
import os
import shutil
from functools import cache, partial
from pathlib import Path
from typing import TextIO

from harness import report
from harness.commands.source_paths import source_path
from harness.errors import UsageError
from harness.model.result import RunResult
from harness.model.sweep import SweepResult
from harness.rundir import read_run, read_run_or_sweep, read_sweep, write_whole

_OF_SWEEPS = ("compat", "compat-html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's JSON, or its directory; for --format compat "
        "also a sweep's JSON")  # fmt: skip
    formats = "; ".join(f"{name}: {format.purpose}" for name, format in report.FORMATS.items())
    parser.add_argument("--format", choices=sorted(report.FORMATS), default="terminal", help=formats)
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="an earlier run, for formats that compare")
    parser.add_argument("--sweep", type=Path, metavar="FILE", help="--format compat: a sweep of the same objects "
        "(`sweep --json`), for kernels that were not booted")  # fmt: skip
    parser.add_argument("-v", "--verbose", action="store_true", help="terminal: the ledger of what is as expected, too")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there instead of standard output")


def run(options: argparse.Namespace, stdout: TextIO, _stderr: TextIO) -> int:
    """Render; the status is 0 whatever the run's own was."""
    width, _ = shutil.get_terminal_size((100, 24))
    colour = options.output is None and stdout.isatty() and "NO_COLOR" not in os.environ
    baseline = read_run(options.baseline) if options.baseline else None
    found, swept = _read(options)
    text = report.render(
        options.format, found, width=width, colour=colour, baseline=baseline, verbose=options.verbose, sweep=swept,
        source_path=cache(partial(source_path, Path.cwd())),
    )  # fmt: skip
    if options.output:
        write_whole(options.output, text)
    else:
        stdout.write(text)
    return 0


def _read(options: argparse.Namespace) -> tuple[RunResult, SweepResult | None]:
    """The run, and a sweep beside it or instead of it, where the format can say something of one."""
    if options.format not in _OF_SWEEPS:
        if options.sweep:
            message = f"--sweep is for --format {' and '.join(_OF_SWEEPS)}"
            raise UsageError(message)
        return read_run(options.run), None
    found = read_run_or_sweep(options.run)
    swept = read_sweep(options.sweep) if options.sweep else None
    if isinstance(found, RunResult):
        return found, swept
    if swept is not None:
        message = f"{options.run} is a sweep, and --sweep names another"
        raise UsageError(message, remedy="name a run, and the sweep with --sweep")
    return RunResult(tool=found.tool, host={}, started=found.started, seconds=found.seconds, cells=()), found
