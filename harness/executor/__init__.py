"""How many guests, where, and in what order. Cells go in, results come out as they are ready.

`Executor` is the seam: `local.LocalExecutor` is the pool on this machine, `cluster.DaskExecutor` (docs/cluster.md)
sends cells to workers elsewhere. `shard` cuts a run for machines that do not know of each other.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from harness.executor.plan import Plan
from harness.model.cell import Cell
from harness.model.result import CellResult

__all__ = ["Executor", "Listener", "Plan"]


class Listener(Protocol):
    """Told what goes on, always from the thread that consumes `Executor.run`."""

    def on_kernel(self, kernel_id: str, message: str) -> None:
        """Something happened to a kernel: fetched, unpacked, a guest of it booted or was lost."""

    def on_cell(self, cell: Cell, message: str) -> None:
        """A cell is being judged, and this is what its guest is doing."""

    def on_result(self, result: CellResult) -> None:
        """A cell is done. Called once the consumer has taken the result, so that nothing announced can be lost."""


class Executor(Protocol):
    """Runs a plan. Every cell of the plan comes out exactly once, in the order of completion.

    Closing the iterator (or an exception in its consumer) ends every guest before it returns.
    """

    def run(self, plan: Plan, listener: Listener) -> Generator[CellResult, None, None]:
        """Results as they come."""
