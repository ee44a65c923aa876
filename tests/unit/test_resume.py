"""An interrupted run goes on: results survive SIGKILL at any point, and what was judged is not judged again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import cli
from harness.commands import resume
from harness.model.expectation import Expectations, expectations_from
from harness.model.lock import Lock, Package
from harness.rundir import RunDirectory, write_whole
from tests.support import cells as make
from tests.support.facts import begun, facts, judged, prog

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "programs" / "build"
KERNELS = ("debian-6.1-cloud-amd64", "debian-5.10-cloud-amd64")
OBJECTS = ("task_state.bpf.o", "sizes.bpf.o", "user_read.bpf.o")
PIN = Package(name="linux", version="1", arch="amd64", filename="linux.deb", size=1, sha256="3" * 64)


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    directory = tmp_path / "objects"
    directory.mkdir()
    for name in OBJECTS:
        if not (PROGRAMS / name).is_file():
            pytest.skip("programs/ is not built (make -C programs)")
        shutil.copy(PROGRAMS / name, directory)
    return directory


def run(tmp_path: Path, objects: Path, *more: str, at: int = 0) -> subprocess.CompletedProcess[str]:
    kernels = [word for kernel in KERNELS for word in ("-k", kernel)]
    command = [
        sys.executable, "-m", "tests.support.fake_run", str(tmp_path / "asked"), str(at), "run", str(objects), *kernels,
        "--quiet", "--jobs", "1", "--output", str(tmp_path / "runs"), *more,
    ]  # fmt: skip
    environment = {**os.environ, "COREMATRIX_CACHE": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run, for copying."""
    place = tmp_path_factory.mktemp("finished")
    (place / "objects").mkdir()
    for name in OBJECTS:
        if not (PROGRAMS / name).is_file():
            pytest.skip("programs/ is not built (make -C programs)")
        shutil.copy(PROGRAMS / name, place / "objects")
    run(place, place / "objects")
    (place / "asked").unlink()
    return place


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """A copy of a whole run, to be resumed."""
    return shutil.copytree(finished, tmp_path / "copy")


def asked(tmp_path: Path) -> list[str]:
    path = tmp_path / "asked"
    return path.read_text().splitlines() if path.exists() else []


def stored(tmp_path: Path) -> dict[str, Any]:
    (path,) = (tmp_path / "runs").glob("*/run.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def timeless(run: dict[str, Any]) -> list[dict[str, Any]]:
    return [{**cell, "seconds": None} for cell in run["cells"]]


def test_killed_at_every_point_the_next_run_goes_on_and_comes_to_the_same(tmp_path: Path, objects: Path) -> None:
    """Writes and renames all over a run, killed there; then resumed. Nothing is judged that was kept, nothing
    that was not is missing.
    """
    whole = tmp_path / "whole"
    whole.mkdir()
    done = run(whole, objects)
    expected = timeless(stored(whole))
    steps = int(done.stderr.rsplit("steps ", 1)[1])
    assert len(expected) == 6
    assert steps >= 2 * 6
    for at in range(1, steps + 1, max(1, steps // 6)):
        place = tmp_path / str(at)
        place.mkdir()
        assert run(place, objects, at=at).returncode == -signal.SIGKILL
        kept = {json.loads(path.read_text())["id"] for path in (place / "runs").glob("*/cells/**/*.json")}
        (place / "asked").unlink(missing_ok=True)
        if not list((place / "runs").glob("*/plan.json")):  # killed before there was anything to go on with
            assert not kept
            continue
        again = run(place, objects, "--resume", "latest")
        assert again.returncode == done.returncode, again.stderr
        assert timeless(stored(place)) == expected
        assert stored(place)["host"]["guest_packages"] == stored(whole)["host"]["guest_packages"]
        assert not set(asked(place)) & kept
        assert set(asked(place)) | kept == {cell["id"] for cell in expected}
        assert not list((place / "runs").rglob(".*.tmp"))


def test_a_whole_run_resumed_asks_nobody(finished: Path, again: Path) -> None:
    (again / "asked").unlink(missing_ok=True)
    run(again, finished / "objects", "--resume", "latest")
    assert asked(again) == []
    packages = stored(again)["host"]["guest_packages"]
    assert [row["name"] for row in packages["x86_64"]] == ["python-for-x86_64"]  # none was fetched this time
    assert stored(again)["cells"] == stored(finished)["cells"]
    assert "resumed: 6 results are those of the run that was interrupted" in stored(again)["notes"]


@pytest.mark.parametrize(
    ("damage", "anew"),
    [
        (lambda _cell: "", True),
        (lambda cell: json.dumps(cell)[:100], True),
        (lambda cell: json.dumps({**cell, "status": "crashed"}), True),
        (lambda cell: json.dumps({**cell, "status": "error"}), True),
        (lambda cell: json.dumps({**cell, "id": "another"}), True),
        (lambda _cell: "[" * 100_000, True),
        (lambda cell: json.dumps({**cell, "status": "failed"}), False),
    ],
)
def test_only_what_was_judged_is_kept(finished: Path, again: Path, damage: Any, anew: bool) -> None:
    path = next((again / "runs").glob("*/cells/debian-6.1-cloud-amd64/sizes@python.json"))
    path.write_text(damage(json.loads(path.read_text())))
    run(again, finished / "objects", "--resume", "latest")
    assert asked(again) == (["debian-6.1-cloud-amd64/sizes@python"] if anew else [])


def test_another_object_is_judged_again(again: Path) -> None:
    shutil.copy(PROGRAMS / "type_ids.bpf.o", again / "objects" / "sizes.bpf.o")
    run(again, again / "objects", "--resume", "latest")
    assert sorted(asked(again)) == sorted(f"{kernel}/sizes@python" for kernel in KERNELS)


def test_another_object_is_judged_again_also_by_the_run_after_one_that_was_killed(again: Path) -> None:
    """The second run knew the other object and judged nothing: the third must not take the first one's results."""
    shutil.copy(PROGRAMS / "type_ids.bpf.o", again / "objects" / "sizes.bpf.o")
    killed = run(again, again / "objects", "--resume", "latest", at=3)  # its plan is written, and nothing else
    assert killed.returncode == -signal.SIGKILL
    (plan,) = (again / "runs").glob("*/plan.json")
    assert len(json.loads(plan.read_text())["cells"]) == len(KERNELS) * len(OBJECTS)
    run(again, again / "objects", "--resume", "latest")
    assert set(asked(again)) == {f"{kernel}/sizes@python" for kernel in KERNELS}


class Asked:
    """What `resume.keep` is asked with; one plain cell."""

    cell = make.cell()
    expectations: Mapping[str, Expectations] = {}
    lock = Lock(kernels={make.cell().kernel.id: (PIN,)}, guest={"amd64": (PIN,)})
    tests: Mapping[Any, Any] = {}

    def keep(self, directory: Path, **more: bool) -> set[str]:
        return set(resume.keep(RunDirectory(directory), (self.cell,), self.expectations, self.lock, self.tests, **more))


def changed(**changes: Any) -> Callable[[Asked], None]:
    def change(asked: Asked) -> None:
        asked.cell = replace(asked.cell, **changes)

    return change


def of_asked(**changes: Any) -> Callable[[Asked], None]:
    return lambda asked: [setattr(asked, name, value) for name, value in changes.items()] and None


KERNEL, OBJECT = make.cell().kernel, make.cell().object
DEPENDS: dict[str, Callable[[Asked], None]] = {
    "another object": changed(object=replace(OBJECT, sha256="2" * 64)),
    "memory": changed(kernel=replace(KERNEL, memory_mb=512)),
    "kernel arguments": changed(kernel=replace(KERNEL, kernel_args=("quiet",))),
    "source": changed(kernel=replace(KERNEL, source=replace(KERNEL.source, package="other"))),  # type: ignore[type-var]
    "it has become not applicable": changed(not_applicable="for arm64"),
    "an expectation": of_asked(expectations={OBJECT.name: expectations_from({"rules": []}, "x.yaml")}),
    "the kernel's package": of_asked(lock=replace(Asked.lock, kernels={KERNEL.id: (replace(PIN, version="2"),)})),
    "the guest's packages": of_asked(lock=replace(Asked.lock, guest={"amd64": (replace(PIN, version="2"),)})),
    "no lock": of_asked(lock=None),
    "a functional test": of_asked(tests={(OBJECT.name, "x86_64"): (SimpleNamespace(digest="1"),)}),
}


@pytest.fixture
def judged_once(tmp_path: Path) -> Asked:
    """A run of one cell, judged."""
    asked = Asked()
    assert asked.keep(tmp_path) == set()
    result = judged(facts([prog()]), cell=begun(KERNEL.id, OBJECT.name))
    RunDirectory(tmp_path).keep_cell(result)
    return asked


@pytest.mark.parametrize("change", DEPENDS)
def test_whatever_a_result_depends_on_has_it_judged_again(judged_once: Asked, tmp_path: Path, change: str) -> None:
    assert judged_once.keep(tmp_path) == {str(judged_once.cell.id)}
    DEPENDS[change](judged_once)
    assert judged_once.keep(tmp_path) == set()
    assert judged_once.keep(tmp_path) == set()  # nor by the run after that: the result is gone


def test_another_version_of_ours_judges_again(
    judged_once: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resume, "__version__", "0.0.1")
    assert judged_once.keep(tmp_path) == set()


def test_tags_and_rows_of_other_kernels_make_no_difference(judged_once: Asked, tmp_path: Path) -> None:
    judged_once.cell = replace(judged_once.cell, kernel=replace(KERNEL, tags=frozenset({"other"})))
    judged_once.lock = replace(judged_once.lock, kernels={**judged_once.lock.kernels, "another": (PIN,)})
    assert judged_once.keep(tmp_path) == {str(judged_once.cell.id)}


def test_what_was_not_compared_is_not_kept_for_a_run_of_both_loaders(judged_once: Asked, tmp_path: Path) -> None:
    assert judged_once.keep(tmp_path, compared=True) == set()
    (path,) = (tmp_path / "cells").rglob("*.json")
    told = {**json.loads(path.read_text()), "comparison": {"loader_version": "libbpf 1.1.2", "reason": None}}
    path.write_text(json.dumps(told))
    assert judged_once.keep(tmp_path, compared=True) == {str(judged_once.cell.id)}


def test_the_latest_run_is_the_one_begun_last(tmp_path: Path) -> None:
    for number, name in enumerate(("b", "c", "a")):
        RunDirectory(tmp_path / name).write(resume.PLAN, "{}")
        os.utime(tmp_path / name / resume.PLAN, ns=(number, number))
    (tmp_path / "d").mkdir()
    found = resume.open_directory(Namespace(resume="latest", output=tmp_path), datetime.now(UTC))
    assert found.path == tmp_path / "a"


def test_digests_do_not_depend_on_the_process() -> None:
    """Sets print in an order of their own in every process (PYTHONHASHSEED)."""
    script = (
        "from harness.commands import resume; from harness.config import load_matrix; from pathlib import Path;"
        "from harness.model.cell import Cell; from harness.model.expectation import NONE;"
        "from tests.support import cells;"
        "m = load_matrix(Path('kernels.yaml'));"
        "print([resume._digest(Cell(kernel=k, object=cells.object_file()), NONE, m.lock) for k in m.kernels])"
    )
    said = [
        subprocess.run([sys.executable, "-c", script], cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": seed},
                       capture_output=True, text=True, check=True).stdout
        for seed in "123"
    ]  # fmt: skip
    assert len(set(said)) == 1
    assert len(said[0]) > 100


def test_guests_of_two_runs_are_both_listed(finished: Path, again: Path) -> None:
    """A newer package by the second run: results of both kinds of guest are in it."""
    (path,) = (again / "runs").glob("*/guest_packages.json")
    older = {"name": "python-for-x86_64", "version": "2", "sha256": "2" * 64}
    path.write_text(json.dumps({"x86_64": [older], "arm64": [older], "s390x": "damaged"}))
    next((again / "runs").glob("*/cells/debian-6.1-cloud-amd64/sizes@python.json")).unlink()
    run(again, finished / "objects", "--resume", "latest")
    found = stored(again)["host"]["guest_packages"]
    assert {arch: [row["version"] for row in rows] for arch, rows in found.items()} == {"x86_64": ["2", "3"]}
    assert json.loads(path.read_text()) == found


@pytest.mark.parametrize("given", ["latest", "nowhere", "."])
def test_where_no_run_was_begun(
    given: str, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "cache"))
    assert cli.main(["run", str(objects), "-k", KERNELS[0], "--resume", given]) == 2
    assert "no run was begun" in capsys.readouterr().err


@pytest.mark.parametrize("plan", ["", "[]", "{}", '{"cells": []}', '{"cells": {"x": 1}}', "\x00"])
def test_a_damaged_plan_keeps_nothing(plan: str, tmp_path: Path) -> None:
    directory, cell = RunDirectory(tmp_path), make.cell()
    write_whole(tmp_path / resume.PLAN, plan)
    assert resume.keep(directory, (cell,), {}, None) == {}
    assert str(cell.id) in json.loads((tmp_path / resume.PLAN).read_text())["cells"]
