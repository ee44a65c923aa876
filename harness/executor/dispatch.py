"""Which worker judges which cell, when machines differ: pure bookkeeping, no clock, no network.

Workers come and go and have slots for guests. Cells of a kernel go where a guest of it runs, then where its files are
cached; a worker without QEMU for an architecture, or without the memory, never gets its cells. What a lost worker had
in hand waits again; a result counts once, whoever sends it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.executor.costs import Costs
from harness.executor.plan import by_kernel, guest_cost_mb
from harness.model.cell import Cell
from harness.model.kernel import KernelSpec

# Another guest of a kernel is worth its boot from this many seconds of waiting work for each guest there is.
_WORTH_BOOTS = 1.0


@dataclass(frozen=True, kw_only=True)
class Ability:
    """What a worker announced: `slots` guests at a time in `memory_mb`, of `arches`; ids of the `kernels` it has. A
    guest for which there is not the memory now, though there may be later (`total_mb`), runs there alone.
    """

    slots: int
    memory_mb: int
    arches: frozenset[str]
    total_mb: int = 0
    kernels: frozenset[str] = frozenset()


@dataclass(kw_only=True)
class _Worker:
    name: str
    ability: Ability
    cached: set[str]
    cells: dict[str, Cell] = field(default_factory=dict)
    memory_mb: int = 0
    # Kernels with a guest here that has nothing to do now, the latest first.
    warm: deque[str] = field(default_factory=deque)

    def has_room(self, kernel: KernelSpec) -> bool:
        fits = self.memory_mb + guest_cost_mb(kernel) <= self.ability.memory_mb
        return len(self.cells) < self.ability.slots and (fits or not self.cells)

    def can(self, kernel: KernelSpec) -> bool:
        memory_mb = max(self.ability.memory_mb, self.ability.total_mb)
        return kernel.arch.name in self.ability.arches and guest_cost_mb(kernel) <= memory_mb


@dataclass(kw_only=True)
class _Waiting:
    """The cells of a kernel that nobody has; `load` is about what one costs, `boot` what a guest does, in seconds."""

    spec: KernelSpec
    cells: deque[Cell]
    load: float
    boot: float
    serving: int = 0

    @property
    def work(self) -> float:
        return len(self.cells) * self.load

    def is_worth_a_guest(self) -> bool:
        return self.serving == 0 or self.work > _WORTH_BOOTS * self.boot * self.serving


class Dispatcher:
    """Hands out cells. Not for several threads."""

    def __init__(self, cells: Iterable[Cell], costs: Costs | None = None) -> None:
        costs = costs or Costs()
        self._waiting = {
            spec.id: _Waiting(
                spec=spec, cells=deque(group), boot=costs.boot(spec), load=sum(map(costs.load, group)) / len(group)
            )
            for spec, group in by_kernel(cells)
        }
        self._left = {str(cell.id): cell for waiting in self._waiting.values() for cell in waiting.cells}
        self._workers: dict[str, _Worker] = {}
        self._losses: Counter[str] = Counter()

    @property
    def unfinished(self) -> int:
        """How many cells have no result yet."""
        return len(self._left)

    @property
    def in_hand(self) -> int:
        """How many cells some worker is judging."""
        return sum(len(worker.cells) for worker in self._workers.values())

    def workers(self) -> tuple[str, ...]:
        return tuple(self._workers)

    def join(self, name: str, ability: Ability) -> None:
        """A worker has come."""
        self._workers[name] = _Worker(name=name, ability=ability, cached=set(ability.kernels))

    def leave(self, name: str) -> tuple[Cell, ...]:
        """A worker is lost: what it had in hand waits again, first in line. Returns those cells."""
        worker = self._workers.pop(name, None)
        if worker is None:
            return ()
        for cell in worker.cells.values():
            self._losses[str(cell.id)] += 1
            self._waiting[cell.kernel.id].serving -= 1
            self._waiting[cell.kernel.id].cells.appendleft(cell)
        return tuple(worker.cells.values())

    def lossy(self, limit: int) -> tuple[tuple[Cell, int], ...]:
        """Unfinished cells that so many workers, or more, were lost with or gave back, and how many."""
        return tuple(
            (self._left[identity], losses)
            for identity, losses in self._losses.items()
            if losses >= limit and identity in self._left
        )

    def assign(self) -> list[tuple[str, Cell]]:
        """Cells for every slot that can use one now, with the worker each goes to. Slots are filled by turns."""
        assigned: list[tuple[str, Cell]] = []
        free = [worker for worker in self._workers.values() if len(worker.cells) < worker.ability.slots]
        while free:
            given = [(worker, self._choose(worker)) for worker in free]
            free = [worker for worker, cell in given if cell is not None]
            assigned += [(worker.name, cell) for worker, cell in given if cell is not None]
        return assigned

    def finished(self, name: str, cell: Cell) -> bool:
        """A result came. False when it is not wanted: the cell has one already, or was taken from this worker."""
        if not self._take_back(name, cell):
            return False
        worker = self._workers[name]
        if cell.kernel.id in worker.warm:
            worker.warm.remove(cell.kernel.id)
        worker.warm.appendleft(cell.kernel.id)
        worker.cached.add(cell.kernel.id)
        return self._left.pop(str(cell.id), None) is not None

    def has(self, name: str, cell: Cell) -> bool:
        """Whether this worker has this cell in hand."""
        worker = self._workers.get(name)
        return worker is not None and str(cell.id) in worker.cells

    def again(self, name: str, cell: Cell, *, counts: bool = True) -> None:
        """A worker could not judge a cell: it waits again, first in line. `counts`: as lost, for the cell may be to
        blame.
        """
        if self._take_back(name, cell):
            self._losses[str(cell.id)] += counts
            self._waiting[cell.kernel.id].cells.appendleft(cell)

    def drop(self, cell: Cell) -> bool:
        """Give up a waiting cell. False when it is not waiting."""
        waiting = self._waiting[cell.kernel.id].cells
        if cell not in waiting:
            return False
        waiting.remove(cell)
        return self._left.pop(str(cell.id), None) is not None

    def stranded(self) -> tuple[Cell, ...]:
        """Waiting cells that no worker present can ever judge."""
        workers = self._workers.values()
        return tuple(
            cell
            for waiting in self._waiting.values()
            if waiting.cells and not any(worker.can(waiting.spec) for worker in workers)
            for cell in waiting.cells
        )

    def _take_back(self, name: str, cell: Cell) -> bool:
        worker = self._workers.get(name)
        if worker is None or worker.cells.pop(str(cell.id), None) is None:
            return False
        worker.memory_mb -= guest_cost_mb(cell.kernel)
        self._waiting[cell.kernel.id].serving -= 1
        return True

    def _choose(self, worker: _Worker) -> Cell | None:
        waiting = self._best(worker)
        if waiting is None:
            return None
        if waiting.spec.id in worker.warm:
            worker.warm.remove(waiting.spec.id)
        cell = waiting.cells.popleft()
        waiting.serving += 1
        worker.cells[str(cell.id)] = cell
        worker.memory_mb += guest_cost_mb(cell.kernel)
        return cell

    def _best(self, worker: _Worker) -> _Waiting | None:
        """The kernel with a guest here; else of those cached here, else of all, the one that has waited work most in
        need of another guest.
        """
        if len(worker.cells) >= worker.ability.slots:
            return None
        for kernel in worker.warm:
            waiting = self._waiting.get(kernel)
            if waiting and waiting.cells and worker.has_room(waiting.spec):
                return waiting
        best, best_rank = None, (False, False, 0.0)
        for kernel, waiting in self._waiting.items():
            if not waiting.cells or not waiting.is_worth_a_guest() or not worker.can(waiting.spec):
                continue
            rank = (waiting.serving == 0, kernel in worker.cached, waiting.work / (waiting.serving + 1))
            if rank > best_rank and worker.has_room(waiting.spec):
                best, best_rank = waiting, rank
        return best
