"""`run --executor dask` with a real scheduler, real workers with caches of their own, and real guests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.store import Store
from tests.support.cluster import Cluster, link

pytest.importorskip("distributed")
pytestmark = [pytest.mark.vm, pytest.mark.network]

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ("debian-6.1-cloud-amd64", "debian-5.10-cloud-amd64")
OBJECTS = ("task_state", "cpu_time", "exe_name")
# What a run says of where and when, not of the object.
CIRCUMSTANCES = {"seconds", "verification_usec", "log_excerpt", "notes"}


class Submitter:
    """`corematrix run` of the small matrix; its progress can be awaited."""

    def __init__(self, directory: Path, cache: Path, source: Path) -> None:
        self.directory = directory
        self._source = source
        self.runs: list[subprocess.Popen[str]] = []
        self.cache = directory / "cache-submitter"
        link(cache, self.cache)

    def start(self, name: str, *words: str) -> subprocess.Popen[str]:
        objects = [str(ROOT / f"programs/build/{name}.bpf.o") for name in OBJECTS]
        kernels = [word for kernel in KERNELS for word in ("-k", kernel)]
        command = [
            sys.executable, "-m", "harness.cli", "run", *objects, *kernels, "--cold",
            "--matrix", str(ROOT / "kernels.yaml"), "--output", str(self.directory / name),
            "--json", str(self.directory / f"{name}.json"), *words,
        ]  # fmt: skip
        env = {**os.environ, "COREMATRIX_CACHE": str(self.cache)}
        self.runs.append(
            subprocess.Popen(
                command, cwd=self._source, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
        )
        return self.runs[-1]

    def result(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.directory / f"{name}.json").read_text())
        return data


@pytest.fixture
def cache() -> Path:
    if not (ROOT / "programs/build/task_state.bpf.o").is_file():
        pytest.skip("programs/ is not built (make -C programs)")
    return Store.default().root


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is now: who edits it meanwhile makes another build, which would be refused."""
    directory = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "harness", directory / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    return directory


@pytest.fixture
def cluster(tmp_path: Path, source: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, source) as running:
        yield running
        for name, process in running.processes.items():
            assert process.poll() is None or name in running.killed, running.log(name)


@pytest.fixture
def submitter(tmp_path: Path, cache: Path, source: Path) -> Iterator[Submitter]:
    made = Submitter(tmp_path, cache, source)
    yield made
    for run in made.runs:
        run.kill()
        run.communicate()


def await_line(run: subprocess.Popen[str], text: str) -> str:
    """Progress up to the line that holds `text`."""
    assert run.stderr is not None
    said = ""
    for line in run.stderr:
        said += line
        if text in line:
            return said
    pytest.fail(f"the run ended before it said {text!r}: {said}")


def essence(value: Any) -> Any:
    """A result without its circumstances."""
    if isinstance(value, dict):
        return {name: essence(item) for name, item in value.items() if name not in CIRCUMSTANCES}
    return [essence(item) for item in value] if isinstance(value, list) else value


def another_version(source: Path, directory: Path) -> Path:
    """The package, as another release."""
    shutil.copytree(source / "harness", directory / "harness")
    file = directory / "harness" / "__init__.py"
    assert '"0.' in file.read_text()
    file.write_text(file.read_text().replace('"0.', '"7.'))
    return directory


def test_a_cluster_of_unlike_workers_finds_what_one_machine_finds(
    cluster: Cluster, submitter: Submitter, cache: Path, source: Path, tmp_path: Path
) -> None:
    for name in ("one", "two", "three"):
        cluster.worker(name, cache=cache)
    nothing = tmp_path / "no-qemu"
    nothing.mkdir()
    (nothing / "gpgv").symlink_to("/usr/bin/gpgv")
    cluster.worker("bare", PATH=str(nothing))
    cluster.worker("old", PYTHONPATH=str(another_version(source, tmp_path / "other")))
    run = submitter.start("cluster", "--executor", "dask", "--scheduler", cluster.address)
    output, said = run.communicate(timeout=500)
    assert run.returncode == 0, said
    assert "refused: it runs corematrix 7." in said
    assert "no architecture: it has no QEMU" in said
    assert not cluster.marked("qemu-system")
    local = submitter.start("local", "--jobs", "1")
    local.communicate(timeout=500)
    found, expected = submitter.result("cluster"), submitter.result("local")
    assert len(found["cells"]) == len(KERNELS) * len(OBJECTS)
    assert essence(found["cells"]) == essence(expected["cells"])
    assert found["host"]["guest_packages"] == expected["host"]["guest_packages"]
    (stored,) = (tmp_path / "cluster").glob("*Z")
    for cell in found["cells"]:
        for prog in cell["progs"]:
            assert "processed" in (stored / prog["verifier"]["log"]).read_text()
    assert output


def test_a_worker_killed_with_a_cell_in_hand_is_replaced(cluster: Cluster, submitter: Submitter, cache: Path) -> None:
    cluster.worker("one", cache=cache)
    run = submitter.start("killed", "--executor", "dask", "--scheduler", cluster.address)
    said = await_line(run, "[1/6]")
    cluster.worker("two", cache=cache)
    said += await_line(run, "[2/6]")
    cluster.kill("one")
    _, rest = run.communicate(timeout=500)
    assert run.returncode == 0, said + rest
    results = [line for line in (said + rest).splitlines() if line.startswith("[")]
    assert len(results) == 6
    assert "is lost" in said + rest
    identities = [cell["id"] for cell in submitter.result("killed")["cells"]]
    assert len(set(identities)) == 6
    assert not cluster.marked("qemu-system")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_guest_on_any_worker(
    cluster: Cluster, submitter: Submitter, cache: Path, number: int
) -> None:
    cluster.worker("one", cache=cache)
    # A guest for every cell: five more of them take longer than a loaded machine needs to let us speak.
    run = submitter.start("interrupted", "--executor", "dask", "--scheduler", cluster.address, "--isolate")
    await_line(run, "[1/6]")
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode == 130
    cluster.until(lambda: not cluster.marked("qemu-system"), "a guest is left")
    statuses = [cell["status"] for cell in submitter.result("interrupted")["cells"]]
    assert len(statuses) == 6
    assert "error" in statuses


def test_a_killed_scheduler_ends_the_run_with_what_it_has(cluster: Cluster, submitter: Submitter, cache: Path) -> None:
    cluster.worker("one", cache=cache)
    run = submitter.start("lost", "--executor", "dask", "--scheduler", cluster.address)
    await_line(run, "[1/6]")
    cluster.kill("scheduler")
    cluster.killed |= {"one"}  # Dask's workers leave when their scheduler has
    _, said = run.communicate(timeout=120)
    assert run.returncode == 4, said
    cells = submitter.result("lost")["cells"]
    assert len(cells) == 6
    assert {cell["status"] for cell in cells} == {"passed", "error"}
    assert all("scheduler is lost" in cell["reason"] for cell in cells if cell["status"] == "error")
    cluster.until(lambda: not cluster.marked("qemu-system"), "a guest is left", 120)
