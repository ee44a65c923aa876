"""`run --executor`: who runs the cells."""

from __future__ import annotations

import argparse

from harness.errors import UsageError
from harness.executor import Executor
from harness.executor.costs import Costs
from harness.executor.judging import Judging
from harness.executor.local import LocalExecutor
from harness.model.cell import Cell


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--executor", choices=("local", "dask"), default="local", help="where guests run (default: this machine)")
    add("--scheduler", metavar="ADDRESS", help="--executor dask: tcp://HOST:PORT or tls://HOST:PORT")
    add("--patience", type=float, default=60.0, metavar="S", help="--executor dask: how long to wait for a worker that "
        "can do what is left (default: %(default)g s)")  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """UsageError unless the options fit each other."""
    if (options.executor == "dask") != bool(options.scheduler):
        message = "--executor dask and --scheduler ADDRESS go together"
        raise UsageError(message, remedy="see docs/cluster.md")


def choose(options: argparse.Namespace, judging: Judging, cells: tuple[Cell, ...]) -> Executor:
    """The executor asked for."""
    if options.executor == "local":
        return LocalExecutor(judging.services())
    # Dask takes a second to import, and need not be installed.
    from harness.executor.cluster import DaskExecutor

    costs = Costs.stored(judging.store, {cell.kernel.id for cell in cells})
    return DaskExecutor(judging, options.scheduler, costs=costs, patience=options.patience)
