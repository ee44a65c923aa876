"""The whole gate matrix on a cluster, and what takes minutes to befall one, so on demand (with a few cells all of it is
in test_cluster.py). Real scheduler, real workers with caches of their own, real guests; every run must find what one
machine finds, each cell once.

    python -m pytest -m 'vm and ondemand' tests/vm/test_cluster_gate.py
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.store import Store
from tests.support.cluster import Cluster
from tests.support.tls import authority, certificate
from tests.vm.test_cluster import ROOT, Submitter, await_line, essence, settled

pytest.importorskip("distributed")
pytestmark = [pytest.mark.vm, pytest.mark.network, pytest.mark.ondemand]

SECONDS = 1500
WORKERS = ("one", "two", "three")


class Gate(Submitter):
    """`corematrix run programs/build` on the gate's kernels, or on some. Guests that the cache has saved are restored,
    here and on the workers: booting and saving 11 kernels on each takes minutes.
    """

    saved = True

    def start(self, name: str, *words: str, **env: str) -> subprocess.Popen[str]:
        command = [
            sys.executable, "-m", "harness.cli", "run", str(ROOT / "programs/build"), "--matrix",
            str(ROOT / "kernels.yaml"), "--output", str(self.directory / name),
            "--json", str(self.directory / f"{name}.json"), *words,
        ]  # fmt: skip
        run = subprocess.Popen(
            command, cwd=self._source, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            env={**os.environ, "COREMATRIX_CACHE": str(self.cache), **env},
        )  # fmt: skip
        self.runs.append(run)
        return run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package as it is now (see test_cluster.py)."""
    directory = tmp_path_factory.mktemp("source")
    shutil.copytree(ROOT / "harness", directory / "harness", ignore=shutil.ignore_patterns("__pycache__"))
    return directory


@pytest.fixture(scope="module")
def cache() -> Path:
    if not (ROOT / "programs/build/task_state.bpf.o").is_file():
        pytest.skip("programs/ is not built (make -C programs)")
    return Store.default().root


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, cache: Path, source: Path) -> dict[str, Any]:
    """What this machine alone finds, by cell."""
    gate = Gate(tmp_path_factory.mktemp("local"), cache, source)
    _, said = gate.start("local").communicate(timeout=SECONDS)
    assert gate.runs[-1].returncode == 0, said
    return by_cell(gate.result("local"))


@pytest.fixture
def cluster(tmp_path: Path, source: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, source) as running:
        yield running


@pytest.fixture
def gate(tmp_path: Path, cache: Path, source: Path) -> Iterator[Gate]:
    made = Gate(tmp_path, cache, source)
    yield made
    for run in made.runs:
        run.kill()
        run.communicate()


def by_cell(result: dict[str, Any]) -> dict[str, Any]:
    """Cells by identity, each once, without what depends on where and when."""
    cells = {cell["id"]: essence({**cell, "start": None}) for cell in result["cells"]}
    assert len(cells) == len(result["cells"])
    return cells


def test_three_workers_find_on_the_gate_what_one_machine_finds_and_one_of_them_is_killed(
    cluster: Cluster, gate: Gate, cache: Path, expected: dict[str, Any]
) -> None:
    """A fourth has no QEMU; the killed one has a guest in hand, and comes back."""
    for name in WORKERS:
        cluster.worker(name, cache=cache)
    nothing = gate.directory / "no-qemu"
    nothing.mkdir()
    cluster.worker("bare", PATH=str(nothing))
    run = gate.dask("gate", cluster)
    said = await_line(run, "[40/")
    cluster.until(lambda: cluster.guests("two"), "the worker has no guest in hand")
    cluster.kill("two")
    said += await_line(run, "is lost")
    cluster.worker("two-again", cache=cache)
    said += settled(run, 0, SECONDS)
    found = by_cell(gate.result("gate"))
    assert "no architecture: it has no QEMU" in said
    assert "goes elsewhere" in said
    assert found == expected
    assert not cluster.marked("qemu-system")


def test_a_run_of_the_gate_is_interrupted_loses_its_scheduler_and_two_workers_and_comes_to_the_same(
    tmp_path: Path, source: Path, gate: Gate, cache: Path, expected: dict[str, Any]
) -> None:
    """Three runs, the second and third resumed: Ctrl-C, then the scheduler killed, then one worker hangs and another is
    killed. Nothing is left after each, and no result is made twice.
    """
    judged = len([cell for cell in expected.values() if cell["status"] != "not_applicable"])
    with Cluster(tmp_path, source, env={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "15s"}) as cluster:
        for name in WORKERS:
            cluster.worker(name, cache=cache, saved=True)
        run = gate.dask("gate", cluster)
        await_line(run, "[40/")
        run.send_signal(signal.SIGINT)
        settled(run, 130, 120)
        assert not cluster.marked("qemu-system")
        assert not list(tmp_path.glob("cache-*/tmp/*/*"))
        kept = passed(gate.result("gate"))
        assert kept >= 40

        run = gate.dask("gate", cluster, "--resume", "latest")
        await_line(run, f"[40/{judged - kept}]")
        cluster.kill("scheduler")
        said = settled(run, 4, 300)
        assert "scheduler is lost" in said
        cluster.until(lambda: not cluster.marked("qemu-system"), "a guest is left", 180)
        kept, before = passed(gate.result("gate")), kept
        assert kept >= before + 40

        cluster.scheduler("another")
        for name in WORKERS:
            cluster.processes[name].wait(60)
            cluster.worker(name)
        run = gate.dask("gate", cluster, "--resume", "latest")
        said = await_line(run, f"[20/{judged - kept}]")
        cluster.until(lambda: cluster.guests("one"), "the worker has no guest in hand")
        cluster.stop("one")
        said += await_line(run, "is lost")
        cluster.until(lambda: cluster.guests("two"), "the worker has no guest in hand")
        cluster.kill("two")
        said += settled(run, 0, SECONDS)
        assert len([line for line in said.splitlines() if line.startswith("[")]) == judged - kept
        assert by_cell(gate.result("gate")) == expected


def passed(result: dict[str, Any]) -> int:
    return len([cell for cell in result["cells"] if cell["status"] == "passed"])


def test_a_slow_worker_costs_time_and_nothing_else(cluster: Cluster, gate: Gate, cache: Path) -> None:
    """One worker runs a tenth of the time."""
    few = ("-k", "debian-6.1-cloud-amd64", "-k", "debian-5.10-cloud-amd64")
    settled(gate.start("alone", *few), 0, SECONDS)
    cluster.worker("one", cache=cache)
    cluster.worker("slow", cache=cache)
    process = cluster.processes["slow"]
    over = threading.Event()

    def slow_down() -> None:
        while not over.wait(0.1):
            os.kill(process.pid, signal.SIGSTOP)
            over.wait(0.9)
            os.kill(process.pid, signal.SIGCONT)

    thread = threading.Thread(target=slow_down)
    thread.start()
    try:
        said = settled(gate.dask("slow", cluster, *few), 0, SECONDS)
    finally:
        over.set()
        thread.join()
    found = by_cell(gate.result("slow"))
    assert found == by_cell(gate.result("alone"))
    judged = [cell for cell in found.values() if cell["status"] != "not_applicable"]
    assert len([line for line in said.splitlines() if line.startswith("[")]) == len(judged)


def test_tls_by_dasks_own_configuration(
    tmp_path: Path, source: Path, gate: Gate, cache: Path, expected: dict[str, Any]
) -> None:
    """Certificates of our own authority (who has none of it: test_cluster.py)."""
    ours = authority(tmp_path / "ours")
    kernel = "debian-6.1-cloud-amd64"
    with Cluster(tmp_path, source, scheme="tls", env=certificate(ours, "cluster")) as cluster:
        assert cluster.address.startswith("tls://")
        cluster.worker("one", cache=cache)
        settled(gate.dask("tls", cluster, "-k", kernel, **certificate(ours, "submitter")))
        assert by_cell(gate.result("tls")) == {
            name: cell for name, cell in expected.items() if name.startswith(f"{kernel}/")
        }
        assert not cluster.marked("qemu-system")


def test_a_cluster_without_qemu_says_what_is_missing(gate: Gate, cluster: Cluster, cache: Path) -> None:
    """Every cell is an error, and the run ends."""
    nothing = gate.directory / "no-qemu"
    nothing.mkdir()
    cluster.worker("bare", cache=cache, PATH=str(nothing))
    settled(gate.dask("nobody", cluster, "-k", "debian-6.1-cloud-amd64", "--patience", "5"), 4)
    cells = json.loads((gate.directory / "nobody.json").read_text())["cells"]
    judged = [cell for cell in cells if cell["status"] != "not_applicable"]
    assert judged
    assert all(cell["status"] == "error" and "x86_64" in cell["reason"] for cell in judged)
