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

from harness import kernels
from harness.config import load_matrix
from harness.store import Store
from tests.support.cluster import Cluster, link
from tests.support.tls import authority, certificate

pytest.importorskip("distributed")
pytestmark = [pytest.mark.vm, pytest.mark.network]

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ("debian-6.1-cloud-amd64", "debian-5.10-cloud-amd64")
OBJECTS = ("task_state", "cpu_time", "exe_name")
# What a run says of where and when, not of the object.
CIRCUMSTANCES = {"seconds", "verification_usec", "log_excerpt", "notes"}


class Submitter:
    """`corematrix run` of the small matrix; its progress can be awaited. `local` finds what one machine finds."""

    saved = False  # whether its cache begins with saved guests

    def __init__(self, directory: Path, cache: Path, source: Path) -> None:
        self.directory = directory
        self._source = source
        self.runs: list[subprocess.Popen[str]] = []
        self.cache = directory / "cache-submitter"
        link(cache, self.cache, saved=self.saved)

    def start(self, name: str, *words: str, **env: str) -> subprocess.Popen[str]:
        objects = [str(ROOT / f"programs/build/{name}.bpf.o") for name in OBJECTS]
        kernels = [word for kernel in KERNELS for word in ("-k", kernel)]
        command = [
            sys.executable, "-m", "harness.cli", "run", *objects, *kernels, "--cold",
            "--matrix", str(ROOT / "kernels.yaml"), "--output", str(self.directory / name),
            "--json", str(self.directory / f"{name}.json"), *words,
        ]  # fmt: skip
        self.runs.append(
            subprocess.Popen(
                command, cwd=self._source, env={**os.environ, "COREMATRIX_CACHE": str(self.cache), **env}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return self.runs[-1]

    def dask(self, name: str, cluster: Cluster, *words: str, **env: str) -> subprocess.Popen[str]:
        """With `--isolate` (a guest for every cell) five cells take longer than a loaded machine needs to let a test
        speak after the first.
        """
        return self.start(name, "--executor", "dask", "--scheduler", cluster.address, *words, **env)

    def result(self, name: str) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.directory / f"{name}.json").read_text())
        return data


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, cache: Path, source: Path) -> dict[str, Any]:
    """What this machine alone finds."""
    submitter = Submitter(tmp_path_factory.mktemp("local"), cache, source)
    settled(submitter.start("local", "--jobs", "1"))
    return submitter.result("local")


def settled(run: subprocess.Popen[str], status: int = 0, seconds: float = 500) -> str:
    """Progress to the end of a run, which must have this status, and say nothing that is not ours."""
    _, all_said = run.communicate(timeout=seconds)
    assert run.returncode == status, all_said
    assert "Traceback" not in all_said
    said = all_said
    for ours in ("Dask distributed", "https://distributed.dask.org"):
        said = said.replace(ours, "")
    assert "distributed" not in said  # a line of its loggers
    return all_said


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
    cluster: Cluster, submitter: Submitter, cache: Path, source: Path, expected: dict[str, Any]
) -> None:
    tmp_path = submitter.directory
    for name in ("one", "two", "three"):
        cluster.worker(name, cache=cache)
    nothing = tmp_path / "no-qemu"
    nothing.mkdir()
    (nothing / "gpgv").symlink_to("/usr/bin/gpgv")
    cluster.worker("bare", PATH=str(nothing))
    cluster.worker("old", PYTHONPATH=str(another_version(source, tmp_path / "other")))
    said = settled(submitter.dask("cluster", cluster))
    assert "refused: it runs corematrix 7." in said
    assert "no architecture: it has no QEMU" in said
    assert not cluster.marked("qemu-system")
    found = submitter.result("cluster")
    assert len(found["cells"]) == len(KERNELS) * len(OBJECTS)
    assert essence(found["cells"]) == essence(expected["cells"])
    assert found["host"]["guest_packages"] == expected["host"]["guest_packages"]
    (stored,) = (tmp_path / "cluster").glob("*Z")
    for cell in found["cells"]:
        for prog in cell["progs"]:
            assert "processed" in (stored / prog["verifier"]["log"]).read_text()
    assert not list(tmp_path.glob("cache-*/tmp/*/*"))


def test_a_worker_killed_with_a_cell_in_hand_is_replaced_by_one_that_joins_late(
    cluster: Cluster, submitter: Submitter, cache: Path
) -> None:
    cluster.worker("one", cache=cache)
    run = submitter.dask("killed", cluster, "--isolate")
    said = await_line(run, "[1/6]")
    cluster.worker("two", cache=cache)
    said += await_line(run, "[2/6]")
    cluster.kill("one")
    said += settled(run)
    results = [line for line in said.splitlines() if line.startswith("[")]
    assert len(results) == 6
    assert "is lost" in said
    identities = [cell["id"] for cell in submitter.result("killed")["cells"]]
    assert len(set(identities)) == 6
    assert not cluster.marked("qemu-system")


@pytest.mark.ondemand
def test_a_worker_that_hangs_is_given_up_and_what_it_says_later_is_not_taken(
    tmp_path: Path, source: Path, submitter: Submitter, cache: Path, expected: dict[str, Any]
) -> None:
    """Dask gives a silent worker up after `worker-ttl`: minutes, unless told otherwise."""
    with Cluster(tmp_path, source, env={"DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "10s"}) as cluster:
        cluster.worker("one", cache=cache)
        run = submitter.dask("hangs", cluster, "--isolate")
        said = await_line(run, "[1/6]")
        cluster.until(lambda: cluster.guests("one"), "the worker has no guest in hand")
        cluster.stop("one")
        cluster.worker("two", cache=cache)
        said += await_line(run, "is lost")
        cluster.go_on("one")
        said += settled(run)
        assert len([line for line in said.splitlines() if line.startswith("[")]) == 6
        assert essence(submitter.result("hangs")["cells"]) == essence(expected["cells"])
        cluster.until(lambda: not cluster.marked("qemu-system"), "a guest is left")


def test_an_interrupted_run_leaves_nothing_on_any_worker_and_goes_on_when_resumed(
    cluster: Cluster, submitter: Submitter, cache: Path, expected: dict[str, Any]
) -> None:
    cluster.worker("one", cache=cache)
    run = submitter.dask("interrupted", cluster, "--isolate")
    await_line(run, "[1/6]")
    run.send_signal(signal.SIGINT)
    settled(run, 130, 60)
    assert not cluster.marked("qemu-system")
    assert not list(submitter.directory.glob("cache-one/tmp/*/*"))
    cells = submitter.result("interrupted")["cells"]
    assert len(cells) == 6
    assert {cell["status"] for cell in cells} == {"passed", "error"}
    settled(submitter.dask("interrupted", cluster, "--resume", "latest"))
    found = submitter.result("interrupted")
    kept = len([cell for cell in cells if cell["status"] == "passed"])
    assert f"resumed: {kept} results" in str(found["notes"])
    assert essence(found["cells"]) == essence(expected["cells"])
    assert found["host"]["guest_packages"] == expected["host"]["guest_packages"]


def test_a_guest_that_is_only_booting_does_not_outlive_its_run(
    cluster: Cluster, submitter: Submitter, cache: Path
) -> None:
    cluster.worker("one", cache=cache)
    run = submitter.dask("booting", cluster)
    cluster.until(lambda: cluster.guests("one"), "no guest is begun", 120)
    run.send_signal(signal.SIGTERM)
    settled(run, 130, 60)
    assert not cluster.marked("qemu-system")
    assert not list(submitter.directory.glob("cache-one/tmp/*/*"))
    assert {cell["status"] for cell in submitter.result("booting")["cells"]} == {"error"}


def test_a_killed_scheduler_ends_the_run_with_what_it_has_and_another_goes_on(
    cluster: Cluster, submitter: Submitter, cache: Path, expected: dict[str, Any]
) -> None:
    cluster.worker("one", cache=cache)
    run = submitter.dask("lost", cluster, "--isolate")
    await_line(run, "[1/6]")
    cluster.kill("scheduler")
    cluster.killed |= {"one"}  # Dask's workers leave when their scheduler has
    settled(run, 4, 120)
    cells = submitter.result("lost")["cells"]
    assert len(cells) == 6
    assert {cell["status"] for cell in cells} == {"passed", "error"}
    assert all("scheduler is lost" in cell["reason"] for cell in cells if cell["status"] == "error")
    cluster.until(lambda: not cluster.marked("qemu-system"), "a guest is left", 120)
    cluster.scheduler("another")
    cluster.worker("two", cache=cache)
    settled(submitter.dask("lost", cluster, "--resume", "latest"))
    assert essence(submitter.result("lost")["cells"]) == essence(expected["cells"])


@pytest.mark.ondemand
def test_a_scheduler_that_comes_back_at_once_is_found_again(
    cluster: Cluster, submitter: Submitter, cache: Path, expected: dict[str, Any]
) -> None:
    cluster.worker("one", cache=cache)
    run = submitter.dask("back", cluster, "--isolate")
    said = await_line(run, "[1/6]")
    cluster.kill("scheduler")
    cluster.killed |= {"one"}
    cluster.scheduler("another")
    cluster.worker("two", cache=cache)
    said += settled(run)
    assert len([line for line in said.splitlines() if line.startswith("[")]) == 6
    assert essence(submitter.result("back")["cells"]) == essence(expected["cells"])


def test_a_worker_that_reaches_no_repository_is_sent_everything_but_what_is_damaged(
    cluster: Cluster, submitter: Submitter, cache: Path, expected: dict[str, Any]
) -> None:
    """Its own cache is empty. Of the submitter's one kernel is not what was stored."""
    nowhere = "http://127.0.0.1:9"
    cluster.worker("far", http_proxy=nowhere, https_proxy=nowhere, HTTP_PROXY=nowhere, HTTPS_PROXY=nowhere)
    damaged = damage(submitter.cache, KERNELS[1])
    said = settled(submitter.dask("far", cluster), 4)
    cells = submitter.result("far")["cells"]
    sound = [cell for cell in cells if cell["kernel"]["id"] == KERNELS[0]]
    assert essence(sound) == essence([cell for cell in expected["cells"] if cell["kernel"]["id"] == KERNELS[0]])
    others = [cell for cell in cells if cell["kernel"]["id"] == KERNELS[1]]
    assert {cell["status"] for cell in others} == {"error"}
    assert all(damaged.name in cell["reason"] and "damaged" in cell["reason"] for cell in others), said


def damage(cache: Path, identity: str) -> Path:
    """Change a byte of a kernel's file in a cache, which has no hard links to another; the file."""
    matrix = load_matrix(ROOT / "kernels.yaml")
    spec = next(spec for spec in matrix.kernels if spec.id == identity)
    path = kernels.provide(spec, Store(cache), matrix.lock, lambda _line: None).vmlinuz
    assert path is not None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    path.write_bytes(data)
    return path


def test_a_stranger_to_tls_is_told_so(tmp_path: Path, source: Path, submitter: Submitter) -> None:
    """Without a certificate, with another authority's, and without TLS: a message, and status 4."""
    ours, others = authority(tmp_path / "ours"), authority(tmp_path / "others")
    with Cluster(tmp_path, source, scheme="tls", env=certificate(ours, "cluster")) as cluster:
        assert cluster.address.startswith("tls://")
        for env in ({}, certificate(others, "stranger")):
            said = settled(submitter.dask("stranger", cluster, "--quiet", **env), 4, 120)
            assert said.startswith("corematrix: --scheduler tls://")
            assert "cannot be reached" in said
            assert len(said.splitlines()) == 2  # the error, its remedy
