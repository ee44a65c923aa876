"""`corematrix exec KERNEL -- CMD`: a command in a guest of a kernel, with files of yours."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from harness import backends, config, kernels, matrix
from harness.apt.guest import fetch_guest
from harness.backends import execution
from harness.boot import GuestPackages
from harness.commands.arguments import positive
from harness.errors import UsageError
from harness.model.kernel import KernelSpec
from harness.model.machines import with_this_machine
from harness.report import untrusted
from harness.session import SessionOptions
from harness.store import Store

_SECONDS = 600
_OUTPUTS = {"stdout": 1, "stderr": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_kernel_arguments(parser)
    parser.add_argument(
        "--timeout", type=positive, default=_SECONDS, metavar="S", help="seconds it may take (default: %(default)s)"
    )
    parser.add_argument("command", nargs="+", metavar="CMD", help="the command and its arguments, after --")


def add_kernel_arguments(parser: argparse.ArgumentParser) -> None:
    """What `exec` and `shell` have in common."""
    add = parser.add_argument
    add("kernel", metavar="KERNEL", help="a kernel of the matrix, by id; `local` for this machine's own")
    add("--file", action="append", default=[], metavar="HOST[:GUEST]", help="a file to take along, into the working "
        "directory (/tmp) under its own name or as GUEST (repeatable); an executable brings its libraries")  # fmt: skip
    add("--matrix", type=Path, metavar="FILE", help="default: ./kernels.yaml, else the built-in matrix")
    add("--cold", action="store_true", help="boot; do not restore a saved guest")
    add("--yes-on-this-machine", action="store_true", help="agree that on the backends local and ssh "
        "the command runs on a real machine")  # fmt: skip


def run(options: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> int:  # noqa: ARG001 - output goes as it is
    """Run it; its own exit status (128 + N for signal N)."""
    files = execution.gather(options.file)

    def pass_on(stream: str, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(_OUTPUTS[stream], view) :]

    with opened(options, stderr) as session:
        command = execution.Command(argv=tuple(options.command), files=files)
        command = execution.with_libraries(command, options.file, session.kernel.spec.arch.uname)
        return execution.run(session, command, seconds=options.timeout, on_output=pass_on, stdin=_input()).code


def _input() -> int | None:
    """Standard input, unless somebody sits at it: `shell` is for them."""
    return None if sys.stdin is None or sys.stdin.isatty() else 0


def one_kernel(rows: Sequence[KernelSpec], name: str) -> KernelSpec:
    """The row of that name; a glob will do where it matches one only. Raises NothingJudgedError, UsageError."""
    spec, *more = matrix.select_kernels(rows, matrix.KernelSelector(globs=(name,)))
    if more:
        message = f"{name!r} names {1 + len(more)} kernels"
        raise UsageError(message, remedy=f"one of {', '.join(row.id for row in (spec, *more))}")
    return spec


@contextmanager
def opened(options: argparse.Namespace, stderr: TextIO) -> Iterator[backends.Backend]:
    """A session on the kernel asked for. Raises NothingJudgedError, UsageError and what its backend raises."""
    loaded = config.load_matrix(options.matrix)
    spec = one_kernel(with_this_machine(loaded.kernels, [options.kernel]), options.kernel)
    if spec.backend in backends.MACHINES and not options.yes_on_this_machine:
        message = f"{spec.id} is no guest: the command would run, as root, on a real machine"
        raise UsageError(message, remedy="add --yes-on-this-machine when you mean it")

    def say(line: str) -> None:
        stderr.write(untrusted.line(line) + "\n")

    with Store.default() as store:
        kernel = kernels.provide(spec, store, loaded.lock, say)
        packages = GuestPackages(paths=(), provenance=())
        if spec.backend in backends.NEEDS_PACKAGES:
            debs = fetch_guest(loaded.guest, spec.arch, store, loaded.lock, say)
            packages = GuestPackages(paths=debs.paths, provenance=tuple(debs.provenance()))
        session = backends.open_session(
            kernel, SessionOptions(store=store, packages=packages, cold=options.cold, on_event=say)
        )
        try:
            yield session
        finally:
            session.close()
