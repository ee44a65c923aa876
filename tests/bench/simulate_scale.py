"""How far the cluster executor carries: 100,000 cells on 200 workers, guests replaced by time.

    python -m tests.bench.simulate_scale model [--cells N] [--workers N] [--plot docs/scale.svg]
    python -m tests.bench.simulate_scale dask [--cells N] [--processes N] [--slots N]

`model` runs the dispatcher that real runs use, against a clock that jumps from event to event: durations are drawn
from those measured in real runs (tests/bench/durations.json), workers are unlike each other, get lost and are
replaced, guests are lost and boot again. It measures the dispatcher's own time and memory, and the makespan against a
bound that no schedule can beat. `dask` measures what the model leaves out: the same executor on a real scheduler and
real worker processes whose guests take no time.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TextIO

from harness.executor.costs import Costs
from harness.executor.dispatch import Ability, Dispatcher
from harness.executor.judging import Judging
from harness.executor.plan import Limits, Plan
from harness.model.cell import Cell
from harness.model.sources import GuestPackages
from harness.progress import QuietProgress
from harness.rundir import RunDirectory
from harness.store import Store
from tests.support import cells as make

_DURATIONS = json.loads(Path(__file__).with_name("durations.json").read_text())
_OBJECTS = 200


@dataclass
class Outcome:
    """What came of one simulated run, times in seconds. `busy` is (time, workers with a cell), for the plot."""

    cells: int = 0
    makespan: float = 0.0
    bound: float = 0.0
    boots: int = 0
    lost_workers: int = 0
    dispatch: float = 0.0
    results: Counter[str] = field(default_factory=Counter)
    busy: list[tuple[float, int]] = field(default_factory=list)


def plan(cells: int) -> tuple[Cell, ...]:
    """Cells of kernels x 200 objects; every fifth kernel is arm64."""
    kernels = [
        make.kernel_spec(f"k{number:04}", arch="arm64" if number % 5 == 4 else "x86_64")
        for number in range(-(-cells // _OBJECTS))
    ]
    objects = [make.object_file(f"o{number}") for number in range(_OBJECTS)]
    pairs = itertools.product(kernels, objects)
    return tuple(Cell(kernel=kernel, object=object_) for kernel, object_ in itertools.islice(pairs, cells))


class Simulation:
    """A clock, workers of unlike speed, and the real dispatcher between them."""

    def __init__(self, cells: Sequence[Cell], workers: int, *, worker_loss: float, guest_loss: float) -> None:
        """`worker_loss` is an hour's, `guest_loss` a cell's probability."""
        self._random = random.Random(1)
        self._dispatcher = Dispatcher(cells, Costs())
        self._load = {str(cell.id): self._random.choice(_DURATIONS["load"]) for cell in cells}
        self._boot = {cell.kernel.id: self._random.choice(_DURATIONS["boot"]) for cell in cells}
        self._events: list[tuple[float, int, str, Any]] = []
        self._number = itertools.count()
        self._speed: dict[str, float] = {}
        self._guest: dict[str, str] = {}
        self._arm: set[str] = set()
        self._worker_loss, self._guest_loss = worker_loss, guest_loss
        self._now = 0.0
        self.outcome = Outcome(cells=len(cells))
        for _ in range(workers):
            self._join()
        self.outcome.bound = self._bound(cells)

    def run(self) -> Outcome:
        while self._dispatcher.unfinished:
            self._assign()
            self._now, _, kind, what = heapq.heappop(self._events)
            if kind == "done":
                self._done(*what)
            else:
                self._lose(what)
        self.outcome.makespan = self._now
        return self.outcome

    def _bound(self, cells: Sequence[Cell]) -> float:
        """Every cell's work and a boot of every kernel have to be done by somebody, at the speeds there are; those of
        arm64 by the workers that can.
        """
        work: dict[str, float] = {}
        for cell in cells:
            work[cell.kernel.arch.name] = work.get(cell.kernel.arch.name, 0.0) + self._load[str(cell.id)]
        for kernel in {cell.kernel.id: cell.kernel for cell in cells}.values():
            work[kernel.arch.name] += self._boot[kernel.id]
        arm_speed = sum(speed for name, speed in self._speed.items() if name in self._arm)
        return max(sum(work.values()) / sum(self._speed.values()), work.get("arm64", 0.0) / arm_speed)

    def _join(self) -> None:
        name = f"w{next(self._number)}"
        arches = {"x86_64", "arm64"} if self._random.random() < 0.5 else {"x86_64"}
        self._speed[name] = self._random.uniform(0.6, 1.4)
        self._arm |= {name} if "arm64" in arches else set()
        self._dispatcher.join(name, Ability(slots=1, memory_mb=4096, arches=frozenset(arches)))
        if self._worker_loss:
            self._at(self._now + self._random.expovariate(self._worker_loss / 3600), "lost", name)

    def _at(self, when: float, kind: str, what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._number), kind, what))

    def _assign(self) -> None:
        started = time.thread_time()
        given = self._dispatcher.assign()
        self.outcome.dispatch += time.thread_time() - started
        for name, cell in given:
            cold = self._guest.get(name) != cell.kernel.id
            boots = int(cold)
            if self._random.random() < self._guest_loss:
                boots += 1  # lost and asked again
            self._guest[name] = cell.kernel.id
            self.outcome.boots += boots
            load = self._load[str(cell.id)] * (1 + boots - cold)
            self._at(self._now + (load + boots * self._boot[cell.kernel.id]) / self._speed[name], "done", (name, cell))
        if given:
            self.outcome.busy.append((self._now, self._dispatcher.in_hand))

    def _done(self, name: str, cell: Cell) -> None:
        started = time.thread_time()
        wanted = self._dispatcher.finished(name, cell)
        self.outcome.dispatch += time.thread_time() - started
        self.outcome.results[str(cell.id)] += wanted
        self.outcome.busy.append((self._now, self._dispatcher.in_hand))

    def _lose(self, name: str) -> None:
        self._dispatcher.leave(name)
        self.outcome.lost_workers += 1
        self._join()


def model(chosen: argparse.Namespace, out: TextIO) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cells = plan(chosen.cells)
    rows = []
    for name, worker_loss, guest_loss in (("no failures", 0.0, 0.0), ("failures", 0.5, 0.01)):
        simulation = Simulation(cells, chosen.workers, worker_loss=worker_loss, guest_loss=guest_loss)
        started = time.process_time()
        found = simulation.run()
        assert set(found.results.values()) == {1}, "a cell without a result, or with two"
        assert len(found.results) == len(cells)
        rows.append((name, found))
        out.write(
            f"{name}: {found.cells} cells, {chosen.workers} workers: makespan {found.makespan:.0f} s, "
            f"{found.makespan / found.bound:.3f} of the bound ({found.bound:.0f} s); {found.boots} boots; "
            f"{found.lost_workers} workers lost; dispatching {found.dispatch / found.cells * 1e6:.0f} us a cell "
            f"({time.process_time() - started:.0f} s of CPU in all)\n"
        )
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    out.write(f"memory of plan, dispatcher and simulation: {grown} MB\n")
    if chosen.plot:
        chosen.plot.write_text(svg(rows, chosen.workers), encoding="utf-8")
    return 0


def svg(rows: Sequence[tuple[str, Outcome]], workers: int) -> str:
    """Workers that have a cell, over time, one line for each run; the bound as a dashed upright."""
    width, height, left, bottom = 720, 300, 60, 260
    last = max(found.makespan for _, found in rows)
    parts = []
    for (name, found), colour in zip(rows, ("#2563eb", "#dc2626"), strict=True):
        step = max(1, len(found.busy) // 600)
        kept = [*found.busy[::step], found.busy[-1]]
        places = [(left + when / last * (width - left - 20), bottom - count / workers * 220) for when, count in kept]
        dots = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        at = left + found.bound / last * (width - left - 20)
        y = 40 if not parts else 56
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{dots}"/>'
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="30" y2="{bottom}" stroke="{colour}" stroke-dasharray="4 3"/>'
            f'<text x="{left + 10}" y="{bottom - y + 24}" fill="{colour}">{name}: {found.makespan:.0f} s, '
            f"{found.makespan / found.bound:.2f} of the bound</text>"
        )
    axis = (
        f'<path d="M{left} 30V{bottom}H{width - 20}" fill="none" stroke="#888"/>'
        f'<text x="8" y="44">{workers}</text><text x="8" y="{bottom}">0</text>'
        f'<text x="8" y="16">workers with a cell</text><text x="{width - 90}" y="{bottom + 24}">{last:.0f} s</text>'
    )
    style = 'font-family="sans-serif" font-size="13" fill="#666"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>'
    return f"{head}\n{axis}\n{chr(10).join(parts)}\n</svg>\n"


def dask(chosen: argparse.Namespace, out: TextIO) -> int:
    from harness.executor.cluster import DaskExecutor
    from tests.support.cluster import Cluster

    cells = tuple(cell for cell in plan(chosen.cells))
    with tempfile.TemporaryDirectory() as name, Cluster(Path(name)) as cluster:
        for number in range(chosen.processes):
            cluster.worker(
                f"w{number}", threads=chosen.slots, preload="tests.bench.stub_worker",
                STUB_SECONDS=str(chosen.seconds), STUB_LOSS=str(chosen.loss),
            )  # fmt: skip
        with Store(Path(name, "cache")) as store:
            judging = Judging(
                store=store, guest=GuestPackages(repositories=(), suites=(), packages=()), lock=None, expectations={},
                directory=RunDirectory(Path(name, "run")), today=date(2026, 1, 1), rerun=str,
            )  # fmt: skip
            whole = Plan(cells=cells, limits=Limits(jobs=1, memory_mb=1))
            executor = DaskExecutor(judging, cluster.address)
            started, cpu, first = time.monotonic(), time.process_time(), 0.0
            seen: Counter[str] = Counter()
            for result in executor.run(whole, QuietProgress()):
                first = first or time.monotonic()
                seen[result.id] += 1
                assert result.status == "passed", result.reason
            took = time.monotonic() - first
        assert len(seen) == len(cells)
        assert set(seen.values()) == {1}
        scheduler = _peak_mb(cluster.processes["scheduler"].pid)
    out.write(
        f"{len(cells)} cells, {chosen.processes} processes of {chosen.slots} slots: {took:.0f} s after the first "
        f"result ({first - started:.0f} s to that), {took / len(cells) * 1e3:.2f} ms a cell, of which our CPU "
        f"{(time.process_time() - cpu) / len(cells) * 1e3:.2f} ms; at most {scheduler} MB in the scheduler, "
        f"{_peak_mb('self')} MB here\n"
    )
    return 0


def _peak_mb(pid: int | str) -> int:
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) // 1024


def main(words: list[str], out: TextIO) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("model", "dask"))
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--slots", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=0.0, help="what a cell takes on average (exponential)")
    parser.add_argument("--loss", type=float, default=0.0, help="probability that a cell takes its worker with it")
    chosen = parser.parse_args(words)
    return (model if chosen.what == "model" else dask)(chosen, out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
