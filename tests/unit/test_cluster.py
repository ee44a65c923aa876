"""The two ends of a run on a cluster, each alone: what travels, who is refused, and a flow whose guests are made of
nothing, on a real scheduler within this process.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from harness.boot import GuestPackages
from harness.errors import FetchError, InfrastructureError, UsageError
from harness.executor import cluster, cluster_supply, cluster_worker
from harness.executor.cluster_worker import Context, Judged, Wanting
from harness.executor.judging import Judging
from harness.executor.plan import Limits, Plan
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec
from harness.model.result import CellResult
from harness.model.sources import GuestPackages as Wanted
from harness.model.sources import PathSource
from harness.model.verdict import CellStatus
from harness.progress import QuietProgress
from harness.rundir import RunDirectory, file_name
from harness.store import Store
from tests.support import cells as make
from tests.support.facts import begun

distributed = pytest.importorskip("distributed")


def judging(directory: Path, **more: Any) -> Judging:
    return Judging(
        store=Store(directory / "cache"), guest=Wanted(repositories=(), suites=(), packages=()), lock=None,
        expectations={}, directory=RunDirectory(directory / "run"), today=date(2026, 1, 1), rerun=str, **more,
    )  # fmt: skip


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run begun on a worker, which is this process with a cache of its own."""
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "worker"))
    run = uuid.uuid4().hex
    context = Context(run=run, judging=judging(tmp_path).portable(), isolate=False, retries=1, slots=1)
    cluster_worker.begin(pickle.loads(pickle.dumps(context)))
    yield run
    cluster_worker.end(run)


def path_kernel(directory: Path) -> tuple[KernelSpec, Kernel, GuestPackages]:
    """A kernel in files of the submitter's, and packages for its guests; nothing of it is real."""
    directory.mkdir()
    for name in ("bzImage", "virtio.ko", "raw.btf", "python.deb"):
        (directory / name).write_text(name)
    spec = replace(make.kernel_spec("mine"), source=PathSource(vmlinuz=directory / "bzImage"))
    digest = hashlib.sha256(b"bzImage").hexdigest()
    kernel = replace(
        make.kernel(spec), vmlinuz=directory / "bzImage", vmlinuz_sha256=digest, modules=(directory / "virtio.ko",),
        btf=directory / "raw.btf",
    )  # fmt: skip
    return spec, kernel, GuestPackages(paths=(directory / "python.deb",), provenance=({"name": "python"},))


def test_everything_that_decides_a_verdict_travels(tmp_path: Path) -> None:
    sent = judging(tmp_path, timeout=7.0, cold=True, attach=True).portable()
    assert {"guest", "lock", "expectations", "today", "timeout", "cold", "attach", "apt"} <= set(sent)
    assert not {"store", "directory", "rerun"} & set(sent)
    assert (sent["timeout"], sent["cold"], sent["attach"]) == (7.0, True, True)


def test_a_worker_says_what_it_lacks_and_takes_it_by_hash(worker: str, tmp_path: Path) -> None:
    spec, kernel, packages = path_kernel(tmp_path / "submitter")
    data = b"an object"
    sha256 = hashlib.sha256(data).hexdigest()
    cell = Cell(kernel=spec, object=replace(make.object_file(), sha256=sha256))
    assert cluster_worker.judge_cell("unknown", cell) == Wanting(what="run", why="this worker does not know the run")
    assert getattr(cluster_worker.judge_cell(worker, cell), "what", None) == "object"
    cluster_worker.receive(worker, [b"something else"])
    assert cluster_worker.lacking([sha256]) == (sha256,)
    cluster_worker.receive(worker, [data])
    assert cluster_worker.lacking([sha256]) == ()
    assert getattr(cluster_worker.judge_cell(worker, cell), "what", None) == "kernel"
    shipment, places = cluster_supply.shipment_of(kernel, packages)
    shipment = pickle.loads(pickle.dumps(shipment))
    assert set(cluster_worker.lacking(shipment.hashes())) == set(places)
    with pytest.raises(InfrastructureError, match="has not come"):
        cluster_worker.receive(worker, [], shipment)
    cluster_worker.receive(worker, [path.read_bytes() for path in places.values()], shipment)
    here = cluster_worker._runs[worker]._kernels["mine"]
    assert here.vmlinuz and here.btf and here.vmlinuz.is_relative_to(tmp_path / "worker")
    assert [path.read_text() for path in (here.vmlinuz, here.btf, *here.modules)] == ["bzImage", "raw.btf", "virtio.ko"]
    assert here.modules[0].name == "virtio.ko"  # boot goes by the names of modules
    assert cluster_worker._runs[worker]._judging.guest_packages() == {"x86_64": [{"name": "python"}]}
    assert cluster_worker.announce()["kernels"] == ["mine"]


def test_what_lies_under_another_hash_than_its_own_is_wanted_again(worker: str, tmp_path: Path) -> None:
    """A worker's blob, and a part of a kernel it was sent before: a bit of each has changed since."""
    spec, kernel, packages = path_kernel(tmp_path / "submitter")
    shipment, places = cluster_supply.shipment_of(kernel, packages)
    blobs = [path.read_bytes() for path in places.values()]
    cluster_worker.receive(worker, [b"object", *blobs], shipment)
    found = cluster_worker._runs[worker]
    digest, modules = hashlib.sha256(b"object").hexdigest(), found._kernels["mine"].modules
    (virtio,) = (digest for digest, path in places.items() if path.name == "virtio.ko")
    for path in (found.store.blob(digest), found.store.blob(virtio)):  # the second is a link of the kernel's module
        assert path is not None
        path.chmod(0o644)
        path.write_bytes(b"!" + path.read_bytes()[1:])
    assert modules[0].read_text() == "!irtio.ko"
    cell = Cell(kernel=spec, object=replace(make.object_file(), sha256=digest))
    assert getattr(cluster_worker.judge_cell(worker, cell), "what", None) == "object"
    assert cluster_worker.lacking(shipment.hashes()) == (virtio,)
    cluster_worker.receive(worker, blobs, shipment)
    assert found._kernels["mine"].modules[0].read_text() == "virtio.ko"


def test_a_damaged_cache_is_not_sent(tmp_path: Path) -> None:
    _, kernel, packages = path_kernel(tmp_path / "submitter")
    assert kernel.vmlinuz is not None
    kernel.vmlinuz.write_text("bzImagf")
    with pytest.raises(InfrastructureError, match=r"bzImage: the cache is damaged.*" + kernel.vmlinuz_sha256):
        cluster_supply.shipment_of(kernel, packages)


def test_a_run_that_was_ended_leaves_nothing_and_does_not_begin_again(tmp_path: Path, worker: str) -> None:
    """What was to begin it may come after what ends it."""
    context = cluster_worker._runs[worker].context
    cluster_worker._runs[worker]._judging.directory.write("logs/x.log", "log")
    assert list((tmp_path / "worker").glob("tmp/*/*/logs"))
    cluster_worker.end(worker)
    cluster_worker.begin(context)
    assert worker not in cluster_worker._runs
    assert not list((tmp_path / "worker").glob("tmp/*"))
    with pytest.raises(InfrastructureError, match="over"):
        cluster_worker.receive(worker, [])


def test_the_end_of_a_run_waits_for_those_that_still_write(tmp_path: Path, worker: str) -> None:
    """A cell that is being judged says last what its guest's console said."""
    found = cluster_worker._runs[worker]
    begun, consoles = threading.Event(), {}

    def judging_a_cell() -> None:
        with found.busy() as on:
            assert on
            begun.set()
            assert found._stopped.wait(10)
            found._judging.directory.keep_console("k", "its last words")

    cell = threading.Thread(target=judging_a_cell)
    cell.start()
    assert begun.wait(10)
    consoles = cluster_worker.end(worker)
    cell.join()
    assert consoles == {"consoles/k-1.log": "its last words"}
    assert not list((tmp_path / "worker").glob("tmp/*"))
    with found.busy() as on:
        assert not on


def test_a_cell_whose_end_takes_too_long_tidies_up_itself(
    tmp_path: Path, worker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download is not waited for."""
    monkeypatch.setattr(cluster_worker, "_END_SECONDS", 0.01)
    found = cluster_worker._runs[worker]
    with found.busy():
        cluster_worker.end(worker)
        found._judging.directory.write("guest_packages.json", "{}")
    assert not list((tmp_path / "worker").glob("tmp/*"))


def test_logs_of_an_object_with_an_odd_name_come_along(worker: str) -> None:
    found = cluster_worker._runs[worker]
    cell = make.cell("k", "my object")
    found._judging.directory.write(f"logs/{file_name(str(cell.id))}/p.log", "log")
    found._judging.directory.write("logs/k/other@python/p.log", "log")
    assert list(found._collect(str(cell.id))) == ["logs/k/my%20object@python/p.log"]


def test_what_a_repository_does_not_give_is_asked_of_the_submitter(
    worker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_arguments: object, **_named: object) -> Kernel:
        message = "404"
        raise FetchError(message)

    monkeypatch.setattr("harness.kernels.provide", gone)
    cluster_worker.receive(worker, [b"x"])
    cell = Cell(kernel=make.kernel_spec(), object=replace(make.object_file(), sha256=hashlib.sha256(b"x").hexdigest()))
    assert cluster_worker.judge_cell(worker, cell) == Wanting(what="kernel", why="404")


def test_who_is_refused_and_why() -> None:
    ours = cluster_worker.announce()
    assert cluster._refusal(ours) is None
    assert "runs corematrix 9.9, this is" in str(cluster._refusal({**ours, "version": "9.9"}))
    assert "another build" in str(cluster._refusal({**ours, "code": "0" * 64}))
    assert "no corematrix that answers" in str(cluster._refusal(ModuleNotFoundError("harness")))


def test_a_machine_of_the_submitters_cannot_be_asked_elsewhere(tmp_path: Path) -> None:
    cell = Cell(kernel=replace(make.kernel_spec("here"), backend="local"), object=make.object_file())
    plan = Plan(cells=(cell,), limits=Limits(jobs=1, memory_mb=1))
    with pytest.raises(UsageError, match="this machine's own"):
        next(cluster.DaskExecutor(judging(tmp_path), "tcp://127.0.0.1:1").run(plan, QuietProgress()))


# --- the flow


class Fate:
    """What workers of this process do with cells, instead of judging."""

    def __init__(self) -> None:
        self.seen: Counter[str] = Counter()
        self.wanting: set[str] = set()
        self.broken: set[str] = set()
        self.ability: dict[str, Any] = {}
        self.silences = 0
        self.pause = 0.0

    def announce(self) -> dict[str, Any]:
        time.sleep(self.pause)
        if self.silences:
            self.silences -= 1
            raise TimeoutError
        return self.ability

    def judge_cell(self, _run: str, cell: Cell) -> Judged | Wanting:
        identity = str(cell.id)
        self.seen[identity] += 1
        if identity in self.broken:
            raise RuntimeError("the worker is broken")
        if identity in self.wanting:
            return Wanting(what="kernel", why="never enough")
        result: CellResult = replace(begun(cell.kernel.id, cell.object.name), status=CellStatus.PASSED)
        return Judged(result=result, files={f"logs/{cell.object.name}.log": "log"}, packages=[{"name": "libc6"}])


FATE = Fate()


def fated(run: str, cell: Cell) -> Judged | Wanting:
    return FATE.judge_cell(run, cell)


def announced() -> dict[str, Any]:
    return FATE.announce()


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A scheduler and two workers in this process; guests are `FATE`."""
    global FATE  # noqa: PLW0603 - tasks find it by name
    FATE = Fate()
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "cache"))
    FATE.ability = {**cluster_worker.announce(), "arches": {"x86_64": "7.2.0"}, "memory_mb": 10_000, "total_mb": 10_000}
    monkeypatch.setattr(cluster_worker, "judge_cell", fated)
    monkeypatch.setattr(cluster_worker, "announce", announced)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", protocol="tcp://"
    ) as running:
        yield running.scheduler_address


def flow(address: str, directory: Path, cells: list[Cell], **more: Any) -> dict[str, CellResult]:
    plan = Plan(cells=tuple(cells), limits=Limits(jobs=1, memory_mb=1))
    executor = cluster.DaskExecutor(judging(directory), address, **more)
    results = list(executor.run(plan, QuietProgress()))
    assert Counter(result.id for result in results) == Counter(str(cell.id) for cell in cells)
    return {result.id: result for result in results}


def test_every_cell_comes_back_once_with_its_files_and_our_own_paths(local: str, tmp_path: Path) -> None:
    cells = [make.cell(f"k{k}", f"o{o}") for k in range(3) for o in range(5)]
    results = flow(local, tmp_path, cells)
    assert {result.status for result in results.values()} == {CellStatus.PASSED}
    assert {result.object.path for result in results.values()} == {str(cell.object.path) for cell in cells}
    assert {result.rerun for result in results.values()} == {str(cell) for cell in cells}
    assert (tmp_path / "run/logs/o1.log").read_text() == "log"
    assert max(FATE.seen.values()) == 1
    assert not cluster_worker._runs


def test_a_cell_that_breaks_every_worker_is_given_up_and_the_others_are_not(local: str, tmp_path: Path) -> None:
    cells = [make.cell("k0", f"o{o}") for o in range(3)]
    FATE.broken = {str(cells[1].id)}
    results = flow(local, tmp_path, cells)
    assert [results[str(cell.id)].status for cell in cells] == ["passed", "error", "passed"]
    assert FATE.seen[str(cells[1].id)] == cluster.MOST_LOSSES


def test_what_dask_says_goes_to_a_file(local: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A task that fails outside our code makes Dask complain, at length."""
    FATE.broken = {str(make.cell().id)}
    (tmp_path / "run").mkdir()
    flow(local, tmp_path, [make.cell()])
    assert capfd.readouterr() == ("", "")
    assert "the worker is broken" in (tmp_path / "run" / cluster.LOG).read_text()


def test_an_error_on_a_helpers_thread_ends_the_run(local: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for what it was to do."""
    FATE.wanting = {str(make.cell().id)}

    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(cluster_supply.Supplier, "send", broken)
    with pytest.raises(ZeroDivisionError):
        flow(local, tmp_path, [make.cell()])


def test_a_worker_that_is_slow_to_say_what_it_can_is_awaited(local: str, tmp_path: Path) -> None:
    """Longer than the patience with which workers are awaited that have not come."""
    FATE.pause = 1.5
    results = flow(local, tmp_path, [make.cell()], patience=0.5)
    assert results[str(make.cell().id)].status is CellStatus.PASSED


def test_a_worker_that_does_not_answer_is_asked_again(local: str, tmp_path: Path) -> None:
    FATE.silences = 4
    assert flow(local, tmp_path, [make.cell()])[str(make.cell().id)].status is CellStatus.PASSED
    assert FATE.silences == 0


def test_what_cannot_be_supplied_is_an_error_that_says_so(local: str, tmp_path: Path) -> None:
    cell = make.cell()
    FATE.wanting = {str(cell.id)}
    (result,) = flow(local, tmp_path, [cell]).values()
    assert result.status is CellStatus.ERROR
    assert "repository.invalid" in str(result.reason) or "nowhere.gpg" in str(result.reason)


def test_cells_that_nobody_can_boot_are_errors_after_the_patience(local: str, tmp_path: Path) -> None:
    arm = Cell(kernel=make.kernel_spec("arm", arch="arm64"), object=make.object_file())
    results = flow(local, tmp_path, [make.cell(), arm], patience=0.5)
    assert results[str(make.cell().id)].status is CellStatus.PASSED
    assert "none of 2 workers can boot arm64 guests" in str(results[str(arm.id)].reason)


# --- what docs/cluster.md tells people to type


def test_the_documented_schedulers_and_workers_are_commands_of_dask() -> None:
    """In the manifest for Kubernetes and in the text; `dask-worker`, of older versions, is gone."""
    page = (Path(__file__).resolve().parents[2] / "docs/cluster.md").read_text()
    given = [[word.strip().strip('"') for word in words.split(",")] for words in re.findall(r"args: \[(.*)\]", page)]
    given += [line.split() for line in re.findall(r"(?m)^    (?:COREMATRIX_CACHE=\S+ )?(dask .*)$", page)]
    assert len(given) == 4
    known = {entry.name: entry.load() for entry in metadata.entry_points(group="dask_cli")}
    for dask, verb, *words in given:
        assert dask == "dask"
        known[verb].make_context(verb, words)  # a UsageError for what it does not know
