"""The pool with guests that boot, answer, die and hang on cue; real guests are in tests/vm."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import FetchError, GuestLostError, Interrupted
from harness.executor.attempts import Answer
from harness.executor.local import MOST_FAILED_BOOTS, LocalExecutor, Services
from harness.executor.memory import MemoryBudget
from harness.executor.plan import Limits, Plan, available_memory_mb, guest_cost_mb, host_limits
from harness.executor.queue import WORTH_A_GUEST
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec
from harness.model.result import CellResult, KernelResult, ObjectResult
from harness.model.verdict import CellStatus
from harness.progress import QuietProgress
from tests.support import cells as make

WIDE = Limits(jobs=4, memory_mb=100_000)


class World:
    """Services whose guests do what `behave` says for a cell; counts what happened."""

    def __init__(
        self,
        behave: Callable[[Cell], dict[str, Any]] = lambda _cell: {},
        *,
        boot: Callable[[KernelSpec], None] = lambda _spec: None,
        provide: Callable[[KernelSpec], None] = lambda _spec: None,
    ) -> None:
        self.behave = behave
        self.boot = boot
        self.provided = provide
        self.boots: Counter[str] = Counter()
        self.alive = 0
        self.most_alive = 0
        self.lock = threading.Lock()

    def services(self) -> Services:
        return Services(
            provide=self._provide, open_session=self._open, conclude=self._conclude, give_up=self._give_up
        )

    def _provide(self, spec: KernelSpec, _on_event: Callable[[str], None]) -> Kernel:
        self.provided(spec)
        return make.kernel(spec)

    def _open(self, kernel: Kernel, _say: Callable[[str], None]) -> FakeSession:
        with self.lock:
            self.boots[kernel.spec.id] += 1
        self.boot(kernel.spec)
        return FakeSession(self)

    def _conclude(self, cell: Cell, _kernel: Kernel, _session: object, answer: Answer) -> CellResult:
        result = begun(cell)
        if answer.facts is None:
            assert answer.lost is not None
            status = CellStatus(answer.lost.status)
            return replace(result, status=status, reason=answer.lost.message, attempts=answer.attempts)
        return replace(result, status=CellStatus.PASSED, attempts=answer.attempts)

    def _give_up(self, cell: Cell, _kernel: Kernel | None, error: BaseException) -> CellResult:
        return replace(begun(cell), status=CellStatus.ERROR, reason=str(error))


class FakeSession:
    def __init__(self, world: World) -> None:
        self.world = world
        self.closed = False
        with world.lock:
            world.alive += 1
            world.most_alive = max(world.most_alive, world.alive)

    def ask(self, cell: Cell, **_request: Any) -> dict[str, Any]:
        assert not self.closed
        return self.world.behave(cell)

    def close(self) -> None:
        with self.world.lock:
            self.world.alive -= not self.closed
            self.closed = True


def begun(cell: Cell) -> CellResult:
    return CellResult.begin(
        cell.id,
        KernelResult(id=cell.kernel.id, arch=cell.kernel.arch.name),
        ObjectResult(name=cell.object.name, path=str(cell.object.path), sha256=cell.object.sha256),
    )


def grid(kernels: int, objects: int) -> tuple[Cell, ...]:
    return tuple(make.cell(f"kernel-{k}", f"object-{o}") for k in range(kernels) for o in range(objects))


def run(
    world: World, cells: tuple[Cell, ...], limits: Limits = WIDE, *, isolate: bool = False
) -> dict[str, CellResult]:
    plan = Plan(cells=cells, limits=limits, isolate=isolate)
    results = list(LocalExecutor(world.services()).run(plan, QuietProgress()))
    assert len(results) == len(cells)
    assert world.alive == 0
    return {result.id: result for result in results}


def test_every_cell_comes_out_once_from_one_guest_for_each_kernel() -> None:
    world = World()
    results = run(world, grid(5, 4))
    assert {result.status for result in results.values()} == {CellStatus.PASSED}
    assert len(results) == 20
    assert world.boots == {f"kernel-{k}": 1 for k in range(5)}


def test_isolate_gives_every_cell_a_guest() -> None:
    world = World()
    run(world, grid(2, 3), isolate=True)
    assert world.boots == {"kernel-0": 3, "kernel-1": 3}


def test_idle_threads_help_with_a_long_queue_but_not_with_a_short_one() -> None:
    gate = threading.Barrier(2, timeout=10)

    def meet(_cell: Cell) -> dict[str, Any]:
        if not gate.broken:
            gate.wait()  # only two guests at once can pass
            gate.abort()
        return {}

    def forgiving(cell: Cell) -> dict[str, Any]:
        try:
            return meet(cell)
        except threading.BrokenBarrierError:
            return {}

    world = World(forgiving)
    run(world, grid(1, WORTH_A_GUEST * 4), Limits(jobs=2, memory_mb=100_000))
    assert world.boots["kernel-0"] == 2
    short = World()
    run(short, grid(1, WORTH_A_GUEST - 1), Limits(jobs=2, memory_mb=100_000))
    assert short.boots["kernel-0"] == 1


def lingering(_cell: Cell) -> dict[str, Any]:
    """Long enough for a guest too many to be seen beside this one."""
    threading.Event().wait(0.05)
    return {}


def test_memory_bounds_how_many_guests_run() -> None:
    world = World(lingering)
    run(world, grid(6, 2), Limits(jobs=6, memory_mb=2 * guest_cost_mb(make.kernel_spec())))
    assert world.most_alive == 2


def test_a_guest_larger_than_the_budget_runs_alone() -> None:
    world = World(lingering)
    run(world, grid(3, 1), Limits(jobs=3, memory_mb=1))
    assert world.most_alive == 1


def test_a_kernel_that_cannot_be_fetched_costs_only_its_own_cells() -> None:
    def provide(spec: KernelSpec) -> None:
        if spec.id == "kernel-1":
            message = "no such package"
            raise FetchError(message)

    results = run(World(provide=provide), grid(3, 2))
    assert Counter(result.status for result in results.values()) == {CellStatus.PASSED: 4, CellStatus.ERROR: 2}
    assert results["kernel-1/object-0@python"].reason == "no such package"


def test_a_bug_of_ours_costs_only_its_cell() -> None:
    def behave(cell: Cell) -> dict[str, Any]:
        if cell.object.name == "object-1":
            raise KeyError(cell.object.name)
        return {}

    results = run(World(behave), grid(1, 3))
    assert results["kernel-0/object-1@python"].status is CellStatus.ERROR
    assert results["kernel-0/object-2@python"].status is CellStatus.PASSED


def test_a_thread_that_cannot_go_on_ends_the_run_instead_of_hanging_it() -> None:
    def broken(*_arguments: Any) -> CellResult:
        message = "disk full"
        raise OSError(message)

    world = World()
    services = replace(world.services(), conclude=broken, give_up=broken)
    with pytest.raises(OSError, match="disk full"):
        list(LocalExecutor(services).run(Plan(cells=grid(2, 2), limits=WIDE), QuietProgress()))
    assert world.alive == 0


def test_a_guest_that_dies_is_replaced_and_the_other_cells_go_on() -> None:
    def behave(cell: Cell) -> dict[str, Any]:
        if cell.object.name == "object-1":
            raise GuestLostError("panic", status="crashed")
        return {}

    world = World(behave)
    results = run(world, grid(1, 4))
    assert [result.status for result in results.values()].count(CellStatus.PASSED) == 3
    crashed = results["kernel-0/object-1@python"]
    assert (crashed.status, crashed.attempts) == (CellStatus.CRASHED, 2)
    assert world.boots["kernel-0"] == 3


def test_a_kernel_that_never_boots_is_tried_a_few_times_not_for_every_cell() -> None:
    def boot(spec: KernelSpec) -> None:
        if spec.id == "kernel-0":
            raise GuestLostError("no hello", status="timeout")

    world = World(boot=boot)
    results = run(world, grid(2, 20), replace(WIDE, jobs=2))
    # Each of the two threads may come to serve it, when the other kernel is done early.
    assert MOST_FAILED_BOOTS <= world.boots["kernel-0"] <= 2 * MOST_FAILED_BOOTS
    assert Counter(result.status for result in results.values()) == {CellStatus.TIMEOUT: 20, CellStatus.PASSED: 20}


def test_closing_the_results_early_ends_every_guest() -> None:
    release = threading.Event()

    class Hanging(FakeSession):
        def ask(self, cell: Cell, **_request: Any) -> dict[str, Any]:
            if cell.object.name == "object-0":
                return {}
            release.wait(10)
            raise GuestLostError("ended", status="crashed")

        def close(self) -> None:
            super().close()
            release.set()

    world = World()
    services = replace(world.services(), open_session=lambda _kernel, _say: Hanging(world))
    plan = Plan(cells=grid(2, 3), limits=WIDE)
    with closing(LocalExecutor(services).run(plan, QuietProgress())) as results:
        next(results)
    assert world.alive == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("guest-")]


def test_the_listener_hears_everything_from_the_consumers_thread() -> None:
    threads = set()

    class Listener(QuietProgress):
        def on_kernel(self, kernel_id: str, message: str) -> None:
            threads.add(threading.current_thread())

        def on_result(self, result: CellResult) -> None:
            threads.add(threading.current_thread())

    list(LocalExecutor(World().services()).run(Plan(cells=grid(3, 3), limits=WIDE), Listener()))
    assert threads == {threading.current_thread()}


def test_a_result_is_announced_only_once_its_consumer_has_it() -> None:
    """A signal may come between any two instructions; what a line of progress called judged must be kept."""
    taken = set()

    class Listener(QuietProgress):
        def on_result(self, result: CellResult) -> None:
            assert result.id in taken
            raise Interrupted("ended by SIGINT")

    def consume() -> None:
        with closing(LocalExecutor(World().services()).run(Plan(cells=grid(1, 3), limits=WIDE), Listener())) as results:
            for result in results:
                taken.add(result.id)

    with pytest.raises(Interrupted):
        consume()
    assert len(taken) == 1


def test_an_empty_plan_ends_at_once() -> None:
    assert run(World(), ()) == {}


def test_memory_budget_waits_for_room() -> None:
    budget = MemoryBudget(100)
    entered = threading.Event()

    def second() -> None:
        with budget.take(60):
            entered.set()

    with budget.take(60):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.05)
    thread.join(5)
    assert entered.is_set()


@pytest.mark.parametrize(
    ("meminfo", "cgroup", "expected"),
    [
        ("MemTotal: 9 kB\nMemAvailable:  2097152 kB\n", "max\n", 2048),
        ("MemAvailable:  2097152 kB\n", str(512 * 2**20), 512),
        ("nonsense", None, 1024),
    ],
)
def test_available_memory_is_the_least_of_machine_and_cgroup(
    tmp_path: Path, meminfo: str, cgroup: str | None, expected: int
) -> None:
    (tmp_path / "meminfo").write_text(meminfo)
    if cgroup is not None:
        (tmp_path / "memory.max").write_text(cgroup)
    assert available_memory_mb(tmp_path / "meminfo", tmp_path / "memory.max") == expected


def test_host_limits_follow_the_user() -> None:
    assert host_limits(7).jobs == 7
    assert host_limits().jobs >= 1
