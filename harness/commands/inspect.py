"""`corematrix inspect`: the work is harness.inspection's; here, what it says of the machine one sits at (`--running`).

Only light imports at the top: `inspect --btf` is meant to take a third of a second from process start to report.
"""

from __future__ import annotations

import argparse
from typing import TextIO

from harness.errors import UsageError
from harness.inspection import command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    command.add_arguments(parser, btf_required=False)
    parser.add_argument("--running", action="store_true", help="this machine's own kernel: its BTF, configuration and "
        "release; and whether each program would load on it. No root")  # fmt: skip


def run(options: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> int:
    """0; 1 where libbpf would give up on the object, with --running also where a program would be refused."""
    if options.running == bool(options.btf):
        message = "give --btf FILE, or --running" + (", not both" if options.running else "")
        raise UsageError(message)
    if not options.running:
        return command.run(options, stdout, stderr)
    if options.arch or options.kconfig or options.release or options.module:
        message = "--running takes architecture, configuration, release and modules from this machine"
        raise UsageError(message, remedy="leave out --arch, --kconfig, --release and --module, or give --btf")
    from harness.commands import running

    return running.run(options, stdout)
