"""`--shard i/n` and `merge`: every cell once, no part much dearer than another, and the whole put together again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness import cli, report
from harness.commands.merge import merge
from harness.errors import FetchError, GuestLostError, UsageError
from harness.executor import shard
from harness.executor.costs import Costs
from harness.executor.shard import Shard
from harness.judge import lost
from harness.model.cell import Cell
from harness.model.plain_json import to_json
from harness.model.result import CellResult, RunResult, run_from_json
from harness.report import json_format
from harness.store import Store
from tests.support import cells as make
from tests.support.facts import begun, facts, judged, prog, run_of


@st.composite
def plans(draw: st.DrawFn) -> tuple[tuple[Cell, ...], int, Costs]:
    """Cells of some kernels, a number of shards that they allow, and costs for some of them."""
    shape = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
    cells = tuple(make.cell(f"k{k}", f"o{o}") for k, objects in enumerate(shape) for o in range(objects))
    seconds = st.floats(0.01, 500)
    boots = draw(st.dictionaries(st.sampled_from([f"k{k}" for k in range(len(shape))]), seconds))
    some = draw(st.lists(st.sampled_from(cells), max_size=20))
    loads: dict[str, dict[str, float]] = {}
    for cell in some:
        loads.setdefault(cell.kernel.id, {})[str(cell.id).partition("/")[2]] = draw(seconds)
    return cells, draw(st.integers(1, min(len(cells), 12))), Costs(boots=boots, loads=loads)


def cost_of(part: list[Cell], costs: Costs) -> float:
    """What a machine pays: one boot for each kernel it has cells of, and the cells."""
    boots = {cell.kernel.id: costs.boot(cell.kernel) for cell in part}
    return sum(boots.values()) + sum(costs.load(cell) for cell in part)


@given(plans(), st.randoms(use_true_random=False))
def test_parts_are_disjoint_complete_balanced_and_the_same_for_everyone(
    plan: tuple[tuple[Cell, ...], int, Costs], order: random.Random
) -> None:
    cells, count, costs = plan
    parts = [shard.cut(cells, Shard(index=index, count=count), costs) for index in range(1, count + 1)]
    ids = [str(cell.id) for part in parts for cell in part.cells]
    assert sorted(ids) == sorted(str(cell.id) for cell in cells)
    assert all(part.cells for part in parts)
    assert len({part.record["plan"] for part in parts}) == 1
    shuffled = list(cells)
    order.shuffle(shuffled)
    again = shard.partition(shuffled, count, costs)
    assert [sorted(part) for part in again] == [sorted(str(cell.id) for cell in part.cells) for part in parts]
    by_id = {str(cell.id): cell for cell in cells}
    paid = [cost_of([by_id[identity] for identity in part], costs) for part in again]
    # Graham 1966, list scheduling: the fullest part exceeds the mean by at most one piece, and a piece is at most a
    # fair share of the uncut plan and the one cell, and the boot, by which dealing out can exceed it.
    dearest = max(costs.load(cell) for cell in cells) + max(costs.boot(cell.kernel) for cell in cells)
    whole = cost_of(list(cells), costs)
    assert max(paid) <= sum(paid) / count + whole / count + dearest + 1e-6


def test_a_kernel_is_not_torn_apart_without_need() -> None:
    cells = [make.cell(f"k{k}", f"o{o}") for k in range(6) for o in range(5)]
    parts = shard.partition(cells, 3, Costs())
    assert sorted(len({identity.partition("/")[0] for identity in part}) for part in parts) == [2, 2, 2]


def test_known_costs_move_cells() -> None:
    cells = [make.cell("k0", f"o{o}") for o in range(4)]
    costs = Costs(boots={"k0": 0.1}, loads={"k0": {"o0@python": 300.0}})
    parts = shard.partition(cells, 2, costs)
    assert sorted(map(len, parts)) == [1, 3] or ["k0/o0@python"] in [part[:1] for part in parts]
    assert max(cost_of([make.cell("k0", i[3:5]) for i in part], costs) for part in parts) < 303


def test_cells_that_do_not_run_are_in_one_part() -> None:
    cells = [make.cell("k0", f"o{o}") for o in range(2)]
    cells += [make.cell("k0", f"n{o}", not_applicable="other architecture") for o in range(3)]
    parts = shard.partition(cells, 2, Costs())
    assert sorted(map(len, parts)) == [1, 4]


def test_more_shards_than_cells_are_refused() -> None:
    with pytest.raises(UsageError, match="3 shards, but only 2 cells"):
        shard.cut([make.cell("a"), make.cell("b")], Shard(index=1, count=3), Costs())


@pytest.mark.parametrize("text", ["0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3", ""])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        shard.parse(text)


def test_costs_are_remembered_by_the_cache_and_damage_is_not_believed(tmp_path: Path) -> None:
    results = [
        replace(judged(facts([prog()]), cell=begun("k", name)), seconds={"boot": boot, "load": load})
        for name, boot, load in (("a", 4.0, 2.0), ("b", 0.0, 3.0))
    ]
    with Store(tmp_path) as store:
        Costs.measured(results).store(store)
        known = Costs.stored(store, ["k", "unknown"])
        assert known.boot(make.kernel_spec("k")) == 4.0
        assert known.load(make.cell("k", "b")) == 3.0
        assert known.load(make.cell("unknown", "b")) == 3.0
        assert known.load(make.cell("unknown", "c")) == Costs().load(make.cell("unknown", "c"))
        store.put_entry("costs", "k", {"boot": "soon", "cells": [1]})
        assert Costs.stored(store, ["k"]) == Costs()


# --- merge


def whole_and_shards(count: int) -> tuple[RunResult, list[RunResult]]:
    """A run, and what it would have been in parts."""
    cells = [make.cell(f"k{k}", f"o{o}") for k in range(3) for o in range(3)]
    results = {str(cell.id): judged(facts([prog()]), cell=begun(cell.kernel.id, cell.object.name)) for cell in cells}
    parts = [shard.cut(cells, Shard(index=index, count=count), Costs()) for index in range(1, count + 1)]
    shards = [run_of(*(results[str(cell.id)] for cell in part.cells), shard=part.record) for part in parts]
    return run_of(*results.values()), shards


def named(*runs: RunResult) -> dict[Path, RunResult]:
    return {Path(f"run-{number}.json"): run for number, run in enumerate(runs)}


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_merged_run_equals_the_whole_one(count: int, order: random.Random) -> None:
    whole, shards = whole_and_shards(count)
    jsonschema.validate(to_json(shards[0]), json_format.schema())
    order.shuffle(shards)
    merged = merge(named(*(run_from_json(to_json(run)) for run in shards)))
    assert replace(merged, host={}) == replace(whole, host={})
    assert report.render("markdown", merged) == report.render("markdown", whole)


def test_a_missing_shard_is_no_pass() -> None:
    _, shards = whole_and_shards(3)
    with pytest.raises(UsageError, match="shard 2/3 is missing"):
        merge(named(shards[0], shards[2]))


def test_a_shard_given_twice_is_told_with_its_files() -> None:
    _, shards = whole_and_shards(2)
    with pytest.raises(UsageError, match=r"shard 1/2 is there 2 times: run-0\.json, run-1\.json"):
        merge(named(shards[0], shards[0], shards[1]))


def test_shards_of_different_cuts_do_not_mix() -> None:
    _, two = whole_and_shards(2)
    _, three = whole_and_shards(3)
    with pytest.raises(UsageError, match="different numbers of shards"):
        merge(named(two[0], three[1], three[2]))
    other = replace(two[1], shard={**(two[1].shard or {}), "plan": "f" * 64})
    with pytest.raises(UsageError, match="different plans"):
        merge(named(two[0], other))


def test_a_whole_run_is_no_shard() -> None:
    whole, _ = whole_and_shards(2)
    with pytest.raises(UsageError, match=r"run-0\.json: not a shard"):
        merge(named(whole))


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        ({"positions": [0]}, "does not fit"),
        ({"positions": "abc"}, "does not fit"),
        ({"positions": None}, "does not fit"),
        ({"of_cells": 4}, "is taken, or is none"),
        ({"of_cells": 10}, "is in no shard"),
    ],
)
def test_damaged_records_are_told(damage: dict[str, object], complaint: str) -> None:
    _, (only,) = whole_and_shards(1)
    with pytest.raises(UsageError, match=complaint):
        merge(named(replace(only, shard={**(only.shard or {}), **damage})))


def test_merge_on_the_command_line_keeps_logs_and_consoles_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole, shards = whole_and_shards(2)
    for number, run in enumerate(shards):
        directory = tmp_path / f"shard-{number}"
        (directory / "logs" / "k").mkdir(parents=True)
        (directory / "consoles").mkdir()
        (directory / "run.json").write_text(report.render("json", run))
        (directory / "logs" / "k" / f"{number}.log").write_text(f"log {number}")
        (directory / "consoles" / "k-1.log").write_text(f"console {number}")
    assert cli.main(["merge", "shard-0", "shard-1", "--json", "all.json"]) == 0
    (stored,) = Path("corematrix-runs").iterdir()
    data = json.loads((stored / "run.json").read_text())
    assert [cell["id"] for cell in data["cells"]] == [cell.id for cell in whole.cells]
    assert data == json.loads(Path("all.json").read_text())
    assert {path.read_text() for path in (stored / "consoles").iterdir()} == {"console 0", "console 1"}
    assert {path.read_text() for path in (stored / "logs" / "k").iterdir()} == {"log 0", "log 1"}
    assert cli.main(["merge", "shard-0"]) == 2
    assert "shard 2/2 is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("becomes", "status"),
    [
        (lambda cell: judged(facts([prog(loaded=False)]), cell=begun(cell.kernel.id, cell.object.name)), 1),
        (lambda cell: lost(cell, FetchError("404")), 4),
        (lambda cell: lost(cell, GuestLostError("panic")), 7),
    ],
)
def test_the_status_of_merge_is_that_of_the_run_it_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, becomes: Callable[[CellResult], CellResult], status: int
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "cache"))
    _, shards = whole_and_shards(2)
    first, *rest = shards[1].cells
    shards[1] = replace(shards[1], cells=(becomes(first), *rest))
    for number, part in enumerate(shards):
        Path(f"{number}.json").write_text(json.dumps(to_json(part)))
    assert cli.main(["merge", "0.json", "1.json"]) == status


def test_a_shard_with_a_baseline_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.bpf.o").write_bytes(b"")
    parser_options = ["run", str(tmp_path / "x.bpf.o"), "--shard", "1/2", "--baseline", "base.json"]
    assert cli.main(parser_options) == 2
    assert "corematrix: " in capsys.readouterr().err
