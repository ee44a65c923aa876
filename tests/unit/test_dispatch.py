"""Who gets which cell: every cell once, whatever joins, leaves, fails or answers twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from harness.executor.dispatch import Ability, Dispatcher
from harness.executor.plan import guest_cost_mb
from harness.model.cell import Cell
from tests.support import cells as make

PLENTY = 100_000


def ability(slots: int = 1, *, arches: str = "x86_64", memory_mb: int = PLENTY, kernels: str = "") -> Ability:
    return Ability(
        slots=slots, memory_mb=memory_mb, arches=frozenset(arches.split()), kernels=frozenset(kernels.split())
    )


def grid(kernels: int, objects: int) -> list[Cell]:
    return [make.cell(f"k{k}", f"o{o}") for k in range(kernels) for o in range(objects)]


def arm_cell(name: str = "arm") -> Cell:
    return Cell(kernel=make.kernel_spec(name, arch="arm64"), object=make.object_file())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_cell_has_one_result_whatever_happens_to_workers(data: st.DataObject) -> None:
    cells = grid(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6)))
    dispatcher = Dispatcher(cells)
    results: Counter[str] = Counter()
    old: list[tuple[str, Cell]] = []
    hands: list[tuple[str, Cell]] = []
    names = 0
    for _step in range(400):
        if not dispatcher.unfinished:
            break
        event = data.draw(st.sampled_from(["join", "leave", "finish", "finish", "finish", "again", "late"]))
        if event == "join" or not dispatcher.workers():
            names += 1
            dispatcher.join(f"w{names}", ability(data.draw(st.integers(1, 3)), kernels="k1"))
        elif event == "leave":
            name = data.draw(st.sampled_from(dispatcher.workers()))
            gone = [item for item in hands if item[0] == name]
            assert Counter(str(c.id) for c in dispatcher.leave(name)) == Counter(str(c.id) for _, c in gone)
            hands = [item for item in hands if item[0] != name]
            old += gone
        elif event == "late" and old:
            assert not dispatcher.finished(*data.draw(st.sampled_from(old)))
        elif hands:
            name, cell = hands.pop(data.draw(st.integers(0, len(hands) - 1)))
            if event == "again":
                dispatcher.again(name, cell)
            else:
                assert dispatcher.finished(name, cell)
                results[str(cell.id)] += 1
                old.append((name, cell))
        hands += dispatcher.assign()
        assert dispatcher.in_hand == len(hands)
    while dispatcher.unfinished:
        dispatcher.join("last", ability(4)) if not dispatcher.workers() else None
        hands += dispatcher.assign()
        name, cell = hands.pop()
        assert dispatcher.finished(name, cell)
        results[str(cell.id)] += 1
    assert results == Counter({str(cell.id): 1 for cell in cells})


def test_cells_go_where_their_kernel_is_cached() -> None:
    dispatcher = Dispatcher(grid(3, 2))
    dispatcher.join("a", ability(kernels="k2"))
    dispatcher.join("b", ability(kernels="k1"))
    assert [(name, cell.kernel.id) for name, cell in dispatcher.assign()] == [("a", "k2"), ("b", "k1")]


def test_a_worker_stays_with_the_kernel_whose_guest_runs() -> None:
    dispatcher = Dispatcher(grid(2, 3))
    dispatcher.join("a", ability())
    seen = []
    while dispatcher.unfinished:
        ((name, cell),) = dispatcher.assign()
        seen.append(cell.kernel.id)
        dispatcher.finished(name, cell)
    assert seen in (["k0"] * 3 + ["k1"] * 3, ["k1"] * 3 + ["k0"] * 3)


def test_a_long_queue_gets_help_and_a_short_one_does_not() -> None:
    long, short = Dispatcher(grid(1, 50)), Dispatcher(grid(1, 3))
    for dispatcher in (long, short):
        dispatcher.join("a", ability())
        dispatcher.join("b", ability())
    assert len(long.assign()) == 2
    assert len(short.assign()) == 1


def test_no_worker_gets_what_it_cannot_do() -> None:
    big: Any = make.kernel_spec("big", memory=4096)
    dispatcher = Dispatcher([*grid(1, 1), arm_cell(), Cell(kernel=big, object=make.object_file())])
    dispatcher.join("x86", ability(9, memory_mb=1024))
    assert [cell.kernel.id for _, cell in dispatcher.assign()] == ["k0"]
    assert {cell.kernel.id for cell in dispatcher.stranded()} == {"arm", "big"}
    dispatcher.join("arm", ability(9, arches="arm64"))
    assert [(name, cell.kernel.id) for name, cell in dispatcher.assign()] == [("arm", "arm")]
    assert [dispatcher.drop(cell) for cell in dispatcher.stranded()] == [True]
    assert dispatcher.stranded() == ()


def test_memory_limits_what_runs_at_once() -> None:
    one = guest_cost_mb(make.kernel_spec())
    dispatcher = Dispatcher(grid(5, 1))
    dispatcher.join("a", ability(5, memory_mb=2 * one + 1))
    assert len(dispatcher.assign()) == 2


def test_a_worker_whose_memory_others_use_now_runs_one_guest_at_a_time() -> None:
    one = guest_cost_mb(make.kernel_spec())
    dispatcher = Dispatcher(grid(3, 1))
    dispatcher.join("a", replace(ability(3, memory_mb=one - 1), total_mb=one))
    ((name, cell),) = dispatcher.assign()
    assert dispatcher.stranded() == ()
    dispatcher.finished(name, cell)
    assert len(dispatcher.assign()) == 1


def test_what_the_scheduler_took_with_it_counts_for_no_cell() -> None:
    dispatcher = Dispatcher(grid(1, 1))
    dispatcher.join("a", ability())
    for _ in range(5):
        ((name, cell),) = dispatcher.assign()
        assert dispatcher.has(name, cell)
        dispatcher.again(name, cell, counts=False)
        assert not dispatcher.has(name, cell)
    assert dispatcher.lossy(1) == ()


def test_losses_are_counted_by_cell() -> None:
    dispatcher = Dispatcher(grid(1, 1))
    for number in range(3):
        dispatcher.join(f"w{number}", ability())
        ((name, cell),) = dispatcher.assign()
        assert dispatcher.lossy(number + 1) == ()
        assert dispatcher.leave(name) == (cell,)
    assert dispatcher.lossy(3) == ((cell, 3),)
    assert dispatcher.drop(cell)
    assert not dispatcher.drop(cell)
    assert dispatcher.unfinished == 0
    assert dispatcher.lossy(1) == ()
