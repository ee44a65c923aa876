from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from harness.errors import InfrastructureError
from harness.model.plain_json import to_json
from harness.model.result import CellResult, KernelResult, ObjectResult, ProgResult, RunResult, VerifierStats
from harness.rundir import RunDirectory, file_name, logs_of, read_run, write_whole
from tests.support import cells as make

STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def result(name: str = "task_state") -> CellResult:
    cell = make.cell(object_name=name)
    return CellResult.begin(
        cell.id, KernelResult(id="k", arch="x86_64"), ObjectResult(name=name, path="o.bpf.o", sha256="0" * 64)
    )


def test_runs_of_one_second_get_directories_of_their_own(tmp_path: Path) -> None:
    paths = [RunDirectory.create(tmp_path / "runs", STARTED).path.name for _ in range(3)]
    assert paths == ["20260102T030405Z", "20260102T030405Z-2", "20260102T030405Z-3"]


def test_a_place_that_is_a_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(InfrastructureError, match="cannot make a directory for this run"):
        RunDirectory.create(tmp_path / "runs", STARTED)


@pytest.mark.parametrize(
    ("identity", "name"),
    [
        ("debian-6.1/task_state@python", "debian-6.1/task_state@python"),
        ("k/o[on=1]@python", "k/o[on=1]@python"),
        ("k/../../etc/passwd@python", "k/%2E./%2E./etc/passwd@python"),
        ("k/./x", "k/%2E/x"),
        ("k//x", "k/%2E/x"),
        ("/etc/passwd", "%2E/etc/passwd"),
        ("k/.hidden", "k/%2Ehidden"),
        ("k/a b\n\x1b[31m", "k/a%20b%0A%1B[31m"),
        ("k/gr\u00fcn", "k/gr%C3%BCn"),
    ],
)
def test_no_identity_leads_out_of_the_directory(identity: str, name: str, tmp_path: Path) -> None:
    assert file_name(identity) == name
    assert (tmp_path / file_name(identity)).resolve().is_relative_to(tmp_path)


def test_long_names_stay_apart_and_fit_a_file_system() -> None:
    names = {file_name("x" * 300 + end) for end in "ab"}
    assert len(names) == 2
    assert max(map(len, names)) <= 200


def test_a_cell_is_on_disk_as_soon_as_it_is_kept(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, STARTED)
    kept = result("net/tcp")
    directory.keep_cell(kept)
    path = directory.path / "cells" / "debian-6.1-cloud-amd64" / "net" / "tcp@python.json"
    assert json.loads(path.read_text()) == to_json(kept)


def test_logs_lie_beside_and_the_result_says_where(tmp_path: Path) -> None:
    directory = RunDirectory.create(tmp_path, STARTED)
    progs = (ProgResult(name="a", verifier=VerifierStats()), ProgResult(name="b", verifier=VerifierStats()))
    facts = {"progs": [{"name": "a", "log": "processed 3 insns\n"}, {"name": "b", "log": ""}]}
    kept = directory.keep_logs(replace(result(), progs=progs), logs_of(facts))
    first, second = (prog.verifier for prog in kept.progs)
    assert first is not None
    assert first.log == "logs/debian-6.1-cloud-amd64/task_state@python/a.log"
    assert (directory.path / first.log).read_text() == "processed 3 insns\n"
    assert second == VerifierStats()


def test_a_stored_run_is_read_from_its_file_and_its_directory(tmp_path: Path) -> None:
    run = RunResult(tool={}, host={}, started="2026-01-02", seconds=1.0, cells=(result(),))
    directory = RunDirectory.create(tmp_path, STARTED)
    path = directory.write("run.json", json.dumps(to_json(run)))
    assert read_run(path) == run
    assert read_run(directory.path) == run


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_whole(tmp_path / "run.json", "old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InfrastructureError, match=r"run\.json: No space left"):
        write_whole(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.json"]


def test_an_interrupted_write_leaves_nothing_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "run.json", "new")
    assert list(tmp_path.iterdir()) == []
