"""`corematrix doctor`: what this machine can do; each lack with the command that mends it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TextIO

from harness import config, doctor
from harness.errors import InfrastructureError
from harness.report import untrusted
from harness.store import Store

_MARKS = {True: "ok", False: "LACKS", None: "-"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--matrix", type=Path, metavar="FILE", help="default: ./kernels.yaml, else the built-in matrix")


def run(options: argparse.Namespace, stdout: TextIO, _stderr: TextIO) -> int:
    """Print findings as they are made; status 4 when something lacks."""
    findings = []
    with Store.default() as store:
        for finding in doctor.examine(config.load_matrix(options.matrix), store):
            findings.append(finding)
            stdout.write(f"{_MARKS[finding.ok]:<5}  {finding.name:<15} {untrusted.line(finding.text)}\n")
            if finding.remedy:
                stdout.write(f"{'':<7}{'':<15} -> {finding.remedy}\n")
            stdout.flush()
    return InfrastructureError.exit_status if doctor.lacking(findings) else 0
