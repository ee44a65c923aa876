"""A run cut into `n` parts of about equal cost for `n` machines that do not know of each other.

Every machine cuts the whole plan by itself and takes its own part, so the cut depends on nothing but the cells (not
even their order) and the costs given. What each wrote down about the cut (`Cut.record`) lets `corematrix merge` see
that all of it came together.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UsageError
from harness.executor.costs import Costs
from harness.executor.plan import by_kernel
from harness.model.cell import Cell


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Part `index` (from 1) of `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


@dataclass(frozen=True, kw_only=True)
class Cut:
    """One part: its cells in the plan's order, and what `run.json` says about it."""

    cells: tuple[Cell, ...]
    record: dict[str, Any]


def parse(text: str) -> Shard:
    """`2/5` -> a shard; ValueError for anything else (argparse says so)."""
    index, _, count = text.partition("/")
    shard = Shard(index=int(index), count=int(count))
    if not 1 <= shard.index <= shard.count:
        raise ValueError(text)
    return shard


def cut(cells: Sequence[Cell], shard: Shard, costs: Costs) -> Cut:
    """This shard's part of the plan. UsageError when a shard would have nothing to run."""
    parts = partition(cells, shard.count, costs)
    chosen = set(parts[shard.index - 1])
    ids = [str(cell.id) for cell in cells]
    plan = "\n".join(f"{number} {identity}" for number, part in enumerate(parts, 1) for identity in sorted(part))
    record = {
        "index": shard.index, "count": shard.count, "of_cells": len(cells),
        "plan": hashlib.sha256(plan.encode()).hexdigest(),
        "positions": [position for position, identity in enumerate(ids) if identity in chosen],
    }  # fmt: skip
    return Cut(cells=tuple(cell for cell in cells if str(cell.id) in chosen), record=record)


def partition(cells: Sequence[Cell], count: int, costs: Costs) -> list[list[str]]:
    """Identities of the cells in each of `count` parts, each cell in exactly one.

    Cells of a kernel stay together, since every part that has one pays for its boot, unless they are more than a fair
    share. The largest piece goes to the emptiest part (Graham's LPT rule), so that no part exceeds the mean by more
    than a piece.
    """
    running = [cell for cell in cells if not cell.not_applicable]
    if len(running) < count:
        message = f"{count} shards, but only {len(running)} cells to run"
        raise UsageError(message, remedy=f"take --shard i/{max(1, len(running))} or fewer")
    parts: list[list[str]] = [[] for _ in range(count)]
    # Nothing to run, nothing to weigh; they are in the report all the same.
    parts[0] += [str(cell.id) for cell in cells if cell.not_applicable]
    emptiest = [(0.0, number) for number in range(count)]
    for piece in sorted(_pieces(running, count, costs), key=lambda piece: (-piece.cost, piece.ids)):
        cost, number = heapq.heappop(emptiest)
        parts[number] += piece.ids
        heapq.heappush(emptiest, (cost + piece.cost, number))
    return parts


@dataclass(frozen=True)
class _Piece:
    """Cells of one kernel, the costliest first, that one guest judges."""

    boot: float
    loads: tuple[tuple[float, str], ...]

    @property
    def cost(self) -> float:
        return self.boot + sum(cost for cost, _ in self.loads)

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(identity for _, identity in self.loads)

    def split(self, ways: int) -> list[_Piece]:
        """In as many pieces, at most one for each cell, dealt out by turns."""
        ways = min(ways, len(self.loads))
        return [_Piece(self.boot, self.loads[number::ways]) for number in range(ways)]


def _pieces(cells: Iterable[Cell], count: int, costs: Costs) -> list[_Piece]:
    whole = [
        _Piece(costs.boot(kernel), tuple(sorted(((costs.load(cell), str(cell.id)) for cell in group), reverse=True)))
        for kernel, group in by_kernel(cells)
    ]
    fair = sum(piece.cost for piece in whole) / count
    pieces = [part for piece in whole for part in piece.split(math.ceil(piece.cost / fair))]
    while len(pieces) < count:  # each part gets something to judge
        largest = max((piece for piece in pieces if len(piece.loads) > 1), key=lambda piece: (piece.cost, piece.ids))
        pieces.remove(largest)
        pieces += largest.split(2)
    return pieces
