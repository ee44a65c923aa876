"""`run --baseline`: the gate, end to end but for the guests, which answer with facts written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.commands import executors
from harness.errors import GuestLostError
from harness.judge import lost
from harness.model.cell import Cell
from harness.model.result import CellResult
from tests.support.clang import compile_bpf
from tests.support.facts import begun, facts, judged, prog

KERNELS = ("debian-6.1-cloud-amd64", "debian-6.12-cloud-amd64")
Behaviour = Callable[[Cell], dict[str, Any] | GuestLostError]


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Gate:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "cache"))
    objects = tmp_path / "objects"
    objects.mkdir()
    data = compile_bpf('SEC("raw_tp/sys_enter") int prog(void *ctx) { return 0; }')
    for name in ("first", "second"):
        (objects / f"{name}.bpf.o").write_bytes(data)
    return Gate(objects, monkeypatch, capsys)


class Gate:
    """`corematrix run objects -k ...` whose cells come out as `behave` says."""

    def __init__(self, objects: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.objects = objects
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def run(self, *arguments: str, behave: Behaviour = lambda _cell: facts([prog()]), objects: str = ".") -> int:
        class Fake:
            def __init__(self, _services: object) -> None:
                pass

            def run(self, plan: Any, _listener: object) -> Any:
                yield from (answer(cell, behave(cell)) for cell in plan.cells)

        self._monkeypatch.setattr(executors, "LocalExecutor", Fake)
        kernels = [] if "-k" in arguments else [word for kernel in KERNELS for word in ("-k", kernel)]
        status = cli.main(["run", str(self.objects / objects), *kernels, "--quiet", *arguments])
        self.out, self.err = self._capsys.readouterr()
        return status


def answer(cell: Cell, behaved: dict[str, Any] | GuestLostError) -> CellResult:
    blank = begun(cell.kernel.id, cell.object.name, settings=cell.settings, loader=cell.loader)
    return lost(blank, behaved) if isinstance(behaved, GuestLostError) else judged(behaved, cell=blank)


def refuse(where: str) -> Behaviour:
    """Every program on kernels and objects that hold `where` is rejected."""
    return lambda cell: facts([prog(loaded=where not in str(cell.id))])


def test_no_baseline_where_one_was_asked_for_is_an_error_before_anything_runs(gate: Gate) -> None:
    assert gate.run("--baseline", "base.json") == 2
    assert "there is no such baseline" in gate.err and "--update-baseline" in gate.err
    assert not Path("corematrix-runs").exists()
    assert gate.run("--update-baseline") == 2
    Path("base.json").write_text("{}")
    assert gate.run("--baseline", "base.json") == 2


def test_it_is_made_on_request_and_then_holds(gate: Gate) -> None:
    assert gate.run("--baseline", "base.json", "--update-baseline") == 0
    assert len(json.loads(Path("base.json").read_text())["cells"]) == 4
    assert gate.run("--baseline", "base.json") == 0
    assert "Since the baseline\n\nno difference" in gate.out


def test_a_regression_that_no_expectation_forbids_is_status_1(gate: Gate) -> None:
    """The cells pass, and the programs are still worse than they were."""
    assert gate.run("--baseline", "base.json", "--update-baseline") == 0
    grown = facts([prog(verifier={"processed_insns": 900_000, "insn_limit": 1_000_000})])
    assert gate.run("--baseline", "base.json", behave=lambda _cell: grown) == 1
    assert "4 passed" in gate.out and "90% of the verifier's limit" in gate.out
    assert gate.run("--baseline", "base.json", "--cost-limit", "95", behave=lambda _cell: grown) == 0
    assert gate.run("--baseline", "base.json", behave=refuse("6.12-cloud-amd64/second")) == 1
    assert "loaded before, now rejected at verifier" in gate.out
    stored = sorted(Path("corematrix-runs").glob("*/changes.json"))
    assert any(json.loads(path.read_text())["regressed"] for path in stored)


def test_lost_coverage_is_told_from_what_was_not_asked_for(gate: Gate) -> None:
    assert gate.run("--baseline", "base.json", "--update-baseline") == 0
    # Chosen by the user: less is no loss.
    assert gate.run("--baseline", "base.json", "-k", KERNELS[0]) == 0
    assert gate.run("--baseline", "base.json", "--only", f"{KERNELS[0]}/first@python") == 0
    assert gate.run("--baseline", "base.json", objects="first.bpf.o") == 0
    # An object that the directory no longer holds, a kernel that the matrix no longer has: lost.
    (gate.objects / "second.bpf.o").unlink()
    assert gate.run("--baseline", "base.json") == 1
    assert "gone: this cell was judged before (lost coverage)" in gate.out
    data = json.loads(Path("base.json").read_text())
    for cell in data["cells"]:
        cell["id"] = cell["id"].replace("debian-6.12", "debian-6.99").replace("second", "first")
        cell["kernel"]["id"] = cell["kernel"]["id"].replace("debian-6.12", "debian-6.99")
        cell["object"]["name"] = "first"
    Path("other.json").write_text(json.dumps(data))
    assert gate.run("--baseline", "other.json", "-k", "debian-6.1*") == 0  # 6.99 is not in the glob
    assert gate.run("--baseline", "other.json", "-k", "debian-6.*-cloud-amd64") == 1
    assert "debian-6.99-cloud-amd64" in gate.out


def test_trouble_is_neither_pass_nor_regression_and_never_a_baseline(gate: Gate) -> None:
    assert gate.run("--baseline", "base.json", "--update-baseline") == 0
    before = Path("base.json").read_bytes()

    def dies(cell: Cell) -> Any:
        return GuestLostError("panic") if "6.12" in str(cell.id) else facts([prog()])

    assert gate.run("--baseline", "base.json", behave=dies) == 7
    assert "Trouble: neither better nor worse" in gate.out and "Regressions" not in gate.out
    assert gate.run("--baseline", "base.json", "--update-baseline", behave=dies) == 7
    assert "stays as it was: 2 cells were not judged" in gate.err
    assert Path("base.json").read_bytes() == before


def test_updating_accepts_what_changed_and_keeps_what_was_not_run(gate: Gate) -> None:
    assert gate.run("--baseline", "base.json", "--update-baseline") == 0
    grown = facts([prog(verifier={"processed_insns": 900_000, "insn_limit": 1_000_000})])
    update = ("--baseline", "base.json", "--update-baseline", "-k", KERNELS[1])
    assert gate.run(*update, behave=lambda _cell: grown) == 0
    assert "Regressions (2)" in gate.out
    cells = {cell["id"]: cell for cell in json.loads(Path("base.json").read_text())["cells"]}
    assert len(cells) == 4
    figures = {name: cell["progs"][0]["verifier"] for name, cell in cells.items()}
    assert figures[f"{KERNELS[0]}/first@python"] is None
    assert figures[f"{KERNELS[1]}/first@python"]["processed_insns"] == 900_000
    half_grown = lambda cell: grown if "6.12" in str(cell.id) else facts([prog()])  # noqa: E731
    assert gate.run("--baseline", "base.json", behave=half_grown) == 0


@pytest.mark.parametrize("wrong", ["stack=1", "stack_depth=", "stack_depth=x", "processed_insns"])
def test_an_unknown_figure_is_refused(gate: Gate, wrong: str) -> None:
    Path("base.json").write_text("{}")
    assert gate.run("--baseline", "base.json", "--cost-absolute", wrong) == 2
    assert "figures: processed_insns" in gate.err
