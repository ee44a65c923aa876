"""`run --shard i/n`: what the command line says about parts of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from harness.errors import UsageError
from harness.executor import shard
from harness.executor.costs import Costs
from harness.model.cell import Cell
from harness.rundir import read_run
from harness.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--shard", type=shard.parse, metavar="i/n", help="only part i of n, cut by estimated cost; see `merge`")
    add("--costs", metavar="RUN|cache", help="--shard: durations from an earlier run, or from this cache, in "
        "place of a table; must be the same for every shard")  # fmt: skip


def part(cells: tuple[Cell, ...], options: argparse.Namespace) -> shard.Cut:
    """The cells of this shard; all of them, and an empty record, where none was asked for. UsageError."""
    if options.shard is None:
        if options.costs:
            message = "--costs is for --shard"
            raise UsageError(message)
        return shard.Cut(cells=cells, record={})
    if options.baseline or options.update_baseline:
        message = "--shard: a part cannot be compared with a whole baseline"
        raise UsageError(message, remedy="`corematrix merge` the shards, then `corematrix diff BASELINE MERGED`")
    return shard.cut(cells, options.shard, _costs(cells, options.costs))


def _costs(cells: Sequence[Cell], where: str | None) -> Costs:
    """Never the cache unasked: machines that do not share one would cut differently, and `merge` would refuse them."""
    if where == "cache":
        with Store.default() as store:
            return Costs.stored(store, {cell.kernel.id for cell in cells})
    return Costs.measured(read_run(Path(where)).cells) if where else Costs()
