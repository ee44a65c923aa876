"""`corematrix diff BASE NEW`: what changed between two stored runs; status 1 when something regressed."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path
from typing import TextIO

from harness.commands import baseline
from harness.report import diff_format
from harness.report.diff import diff
from harness.rundir import read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", type=Path, metavar="BASE", help="the earlier run: its JSON, or its directory")
    parser.add_argument("new", type=Path, metavar="NEW", help="the later run")
    parser.add_argument("--format", choices=diff_format.FORMATS, default="terminal")
    baseline.add_cost_arguments(parser)


def run(options: argparse.Namespace, stdout: TextIO, _stderr: TextIO) -> int:
    """Compare and print."""
    found = diff(read_run(options.base), read_run(options.new), baseline.cost_limits(options))
    width, _ = shutil.get_terminal_size((100, 24))
    colour = stdout.isatty() and "NO_COLOR" not in os.environ
    stdout.write(diff_format.render(options.format, found, width=width, colour=colour))
    return 1 if found.regressed else 0
