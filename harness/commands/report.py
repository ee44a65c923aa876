"""`corematrix report RUN --format F`: a stored run in another format."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import TextIO

from harness import report
from harness.rundir import read_run, write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's JSON, or its directory")
    formats = "; ".join(f"{name}: {format.purpose}" for name, format in report.FORMATS.items())
    parser.add_argument("--format", choices=sorted(report.FORMATS), default="terminal", help=formats)
    parser.add_argument("--baseline", type=Path, metavar="RUN", help="an earlier run, for formats that compare")
    parser.add_argument("-v", "--verbose", action="store_true", help="terminal: the ledger of what is as expected, too")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write there instead of standard output")


def run(options: argparse.Namespace, stdout: TextIO, _stderr: TextIO) -> int:
    """Render; the status is 0 whatever the run's own was."""
    width, _ = shutil.get_terminal_size((100, 24))
    colour = options.output is None and stdout.isatty() and "NO_COLOR" not in os.environ
    baseline = read_run(options.baseline) if options.baseline else None
    text = report.render(
        options.format, read_run(options.run), width=width, colour=colour, baseline=baseline, verbose=options.verbose
    )
    if options.output:
        write_whole(options.output, text)
    else:
        stdout.write(text)
    return 0
