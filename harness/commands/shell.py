"""`corematrix shell KERNEL`: an interactive guest with the loader in it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from harness.backends import execution
from harness.commands.exec import add_kernel_arguments, opened

_A_MONTH = 30 * 86400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_kernel_arguments(parser)
    parser.add_argument("command", nargs="*", metavar="CMD", help="after --: what to run instead of Python's prompt, "
        "such as a busybox given with --file: -- busybox sh")  # fmt: skip


def run(options: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> int:
    """Connect this terminal (or pipe) to it until it ends; its exit status."""
    files = execution.gather(options.file)

    def show(_stream: str, data: bytes) -> None:
        stdout.flush()
        os.write(1, data)

    with opened(options, stderr) as session:
        command = execution.Command(
            argv=tuple(options.command) or None, files=files, terminal=_size() if sys.stdin.isatty() else None
        )
        command = execution.with_libraries(command, options.file, session.kernel.spec.arch.uname)
        with _raw_terminal():
            return execution.run(session, command, seconds=_A_MONTH, on_output=show, stdin=0).code


def _size() -> tuple[int, int]:
    columns, rows = shutil.get_terminal_size()
    return rows, columns


@contextmanager
def _raw_terminal() -> Iterator[None]:
    """Keys go to the guest as they are, Ctrl-C too; the terminal is put back whatever happens."""
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)
