"""A run on the workers of a Dask cluster: `run --executor dask --scheduler ADDRESS` (docs/cluster.md).

Dask carries cells to workers and results back, and says which workers there are; which worker gets which cell is
decided here (`executor.dispatch`), so that the scheduler holds a few tasks and no results, however long the run is.
TLS and all else about connections is Dask's own configuration.
"""

from __future__ import annotations

import functools
import threading
import uuid
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any

from harness import __version__
from harness.errors import CorematrixError, InfrastructureError, UsageError
from harness.executor import Listener, cluster_worker
from harness.executor.cluster_worker import Context, Judged, Shipment, Wanting
from harness.executor.costs import Costs
from harness.executor.dispatch import Ability, Dispatcher
from harness.executor.judging import Judging
from harness.executor.plan import Plan
from harness.model.cell import Cell
from harness.model.kernel import Kernel
from harness.model.result import CellResult, ObjectResult

# A cell that took so many workers with it is given up.
MOST_LOSSES = 3
_CONNECT_SECONDS = 30.0
_POLL_SECONDS = 1.0
# A scheduler that does not answer for this long is lost.
_SILENCE_SECONDS = 15.0
_CALL_SECONDS = 60.0
_END_SECONDS = 15.0
# What one message to a worker may hold.
_BATCH_BYTES = 64 << 20


class DaskExecutor:
    """Implements `harness.executor.Executor`. `patience`: seconds to wait for a worker that can do what is left."""

    def __init__(self, judging: Judging, address: str, *, costs: Costs | None = None, patience: float = 60.0) -> None:
        self._judging = judging
        self._address = address
        self._costs = costs
        self._patience = patience

    def run(self, plan: Plan, listener: Listener) -> Generator[CellResult, None, None]:
        """Results as they come. UsageError without Dask, InfrastructureError when the scheduler cannot be reached."""
        for cell in plan.cells:
            if cell.kernel.backend != "qemu":
                message = f"{cell.kernel.id}: the backend {cell.kernel.backend!r} is this machine's own"
                raise UsageError(message, remedy="leave it out of a run on a cluster")
        client = _connect(self._address)
        flow = _Flow(client, self._judging, plan, listener, patience=self._patience, costs=self._costs)
        try:
            yield from flow.results()
        finally:
            flow.stop()
            with suppress(Exception):
                client.close(timeout=5)


def _connect(address: str) -> Any:
    try:
        import distributed
    except ImportError as error:
        message = "--executor dask: Dask distributed is not installed"
        raise UsageError(message, remedy="pip install 'corematrix[cluster]'") from error
    try:
        return distributed.Client(  # type: ignore[no-untyped-call]
            address, timeout=_CONNECT_SECONDS, set_as_default=False
        )
    except (OSError, ValueError, TypeError) as error:
        message = f"--scheduler {address}: cannot be reached: {error}"
        raise InfrastructureError(message, remedy="start one with `dask scheduler`, or correct the address") from error


class _Flow:
    """One run: events from threads and callbacks come through a queue, and are handled by the consumer's thread."""

    def __init__(
        self, client: Any, judging: Judging, plan: Plan, listener: Listener, *, patience: float, costs: Costs | None
    ) -> None:
        self._client = client
        self._judging = judging
        self._plan = plan
        self._listener = listener
        self._dispatcher = Dispatcher(plan.cells, costs)
        self._patience = patience
        self._run = uuid.uuid4().hex
        self._events: SimpleQueue[Callable[[], Iterable[CellResult]]] = SimpleQueue()
        self._ended: SimpleQueue[tuple[str, Cell, Any]] = SimpleQueue()
        self._known: set[str] = set()
        self._futures: dict[str, Any] = {}
        self._supplied: set[tuple[str, str, str]] = set()
        self._changed = monotonic()
        self._stopped = threading.Event()

    def results(self) -> Generator[CellResult, None, None]:
        threading.Thread(target=self._watch, name="cluster-watch", daemon=True).start()
        while self._dispatcher.unfinished:
            for name, cell in self._dispatcher.assign():
                self._submit(name, cell)
            try:
                event = self._events.get(timeout=_POLL_SECONDS)
            except Empty:
                event = self._give_up_stranded
            for result in event():
                yield result
                self._listener.on_result(result)  # as in local.py: announced once the consumer has it

    def _settle(self) -> Iterable[CellResult]:
        """All tasks that have ended by now, their answers fetched together: one round trip, not one for each cell."""
        ended = []
        with suppress(Empty):
            while True:
                ended.append(self._ended.get_nowait())
        ours = [(name, cell, future) for name, cell, future in ended if self._futures.get(str(cell.id)) is future]
        for (name, cell, _), answer in zip(ours, self._answers([future for *_, future in ours]), strict=True):
            self._forget(str(cell.id))
            yield from self._settled(name, cell, answer)

    def stop(self) -> None:
        """End every guest of this run on every worker, and wait until that is done."""
        self._stopped.set()
        workers = list(self._known)
        with suppress(Exception):  # nobody may be left to be told
            for future in self._futures.values():
                future.cancel()
            consoles = self._call(cluster_worker.end, self._run, workers=workers, seconds=_END_SECONDS)
            for found in consoles.values():
                self._keep(found if isinstance(found, dict) else {})

    # --- workers

    def _watch(self) -> None:
        """Who is there, once a second, on a thread of its own."""
        heard = monotonic()
        while not self._stopped.is_set():
            try:
                present = self._client.sync(self._client.scheduler.ncores, callback_timeout=_SILENCE_SECONDS / 3)
            except Exception as error:  # Dask's own errors have no common base
                if self._client.status == "closed" or monotonic() - heard > _SILENCE_SECONDS:
                    self._scheduler_lost(f"{type(error).__name__}: {error}")
                    return
            else:
                heard = monotonic()
                self._events.put(functools.partial(self._see, dict(present)))
            self._stopped.wait(_POLL_SECONDS)

    def _scheduler_lost(self, how: str) -> None:
        self._events.put(lambda: self._give_up_all(f"the scheduler is lost ({how})"))

    def _see(self, present: dict[str, int]) -> Iterable[CellResult]:
        for name in self._known - set(present):
            self._known.discard(name)
            self._lose(name)
        for name in set(present) - self._known:
            self._known.add(name)
            _aside(self._greet, name, present[name])
        yield from self._give_up_lossy()
        yield from self._give_up_stranded()

    def _lose(self, name: str) -> None:
        for cell in self._dispatcher.leave(name):
            self._changed = monotonic()
            self._listener.on_kernel(cell.kernel.id, f"worker {name} is lost; {cell.id} goes elsewhere")
            self._forget(str(cell.id))

    def _greet(self, name: str, slots: int) -> None:
        """Ask a new worker what it can do, and let it join; on a helper's thread."""
        said = self._call_one(cluster_worker.announce, worker=name)
        why = _refusal(said)
        if why is None:
            begun = self._call_one(cluster_worker.begin, self._context(slots), worker=name)
            why = f"it cannot begin: {begun!r}" if isinstance(begun, BaseException) else None
        self._events.put(lambda: self._join(name, slots, said, why))

    def _join(self, name: str, slots: int, said: Any, why: str | None) -> Iterable[CellResult]:
        host = f"{said['host']}, {name}" if isinstance(said, dict) and "host" in said else name
        if why is not None:
            self._listener.on_kernel(f"worker {host}", f"refused: {why}")
        elif name in self._known:
            self._changed = monotonic()
            arches = frozenset(said["arches"])
            self._dispatcher.join(
                name,
                Ability(slots=slots, memory_mb=said["memory_mb"], arches=arches, kernels=frozenset(said["kernels"])),
            )
            self._listener.on_kernel(
                f"worker {host}",
                f"{slots} guests of {', '.join(sorted(arches)) or 'no architecture: it has no QEMU'}, "
                f"{'KVM' if said['kvm'] else 'no KVM'}, {said['memory_mb']} MB, {len(said['kernels'])} kernels cached",
            )
        return ()

    def _context(self, slots: int) -> Context:
        return Context(
            run=self._run, judging=self._judging.portable(), isolate=self._plan.isolate, retries=self._plan.retries,
            slots=slots,
        )  # fmt: skip

    # --- cells

    def _submit(self, name: str, cell: Cell) -> None:
        try:
            future = self._client.submit(
                cluster_worker.judge_cell, self._run, cell, workers=[name], allow_other_workers=False, pure=False,
                retries=0, key=f"corematrix-{self._run[:8]}-{cell.id}-{uuid.uuid4().hex[:8]}",
            )  # fmt: skip
        except Exception:  # the scheduler has just gone: `_watch` says so, and then every cell is given up
            self._dispatcher.again(name, cell)
            self._stopped.wait(_POLL_SECONDS)
            return
        self._futures[str(cell.id)] = future
        self._listener.on_cell(cell, f"on {name}")
        future.add_done_callback(lambda done: self._end_of(name, cell, done))

    def _end_of(self, name: str, cell: Cell, future: Any) -> None:
        """On a thread of Dask's."""
        self._ended.put((name, cell, future))
        self._events.put(self._settle)

    def _forget(self, identity: str) -> None:
        future = self._futures.pop(identity, None)
        if future is not None:
            with suppress(Exception):
                future.release()

    def _settled(self, name: str, cell: Cell, answer: Any) -> Iterable[CellResult]:
        if isinstance(answer, Judged):
            if self._dispatcher.finished(name, cell):
                yield self._finished(cell, answer)
        elif isinstance(answer, Wanting) and not self._has_been_supplied(name, cell, answer):
            _aside(self._supply, name, cell, answer)
        else:
            self._listener.on_kernel(cell.kernel.id, f"{cell.id}: nothing came from {name} ({answer})")
            self._dispatcher.again(name, cell)
            yield from self._give_up_lossy()

    def _answers(self, futures: list[Any]) -> list[Any]:
        """What each task returned, or why there is nothing: its worker went, or it failed outside our code."""
        sound = [future for future in futures if future.status == "finished"]
        together = self._fetched(lambda: self._client.sync(self._client._gather, sound, callback_timeout=_CALL_SECONDS))
        if isinstance(together, list) and len(together) == len(sound):
            answers = dict(zip(map(id, sound), together, strict=True))
        else:
            answers = {}
        return [
            answers[id(future)]
            if id(future) in answers
            else self._fetched(functools.partial(future.result, timeout=_CALL_SECONDS))
            for future in futures
        ]

    def _fetched(self, fetch: Callable[[], Any]) -> Any:
        try:
            return fetch()
        except Exception as error:  # Dask's own errors have no common base
            return error

    def _finished(self, cell: Cell, answer: Judged) -> CellResult:
        """The result as this machine would have made it: paths and the command to run it again are ours."""
        self._keep(answer.files)
        if answer.packages:
            self._judging.note_packages(cell.kernel.arch.name, tuple(answer.packages))
        own = ObjectResult(name=cell.object.name, path=str(cell.object.path), sha256=cell.object.sha256)
        return replace(answer.result, object=own, rerun=self._judging.rerun(cell))

    def _keep(self, files: Any) -> None:
        directory = self._judging.directory
        with suppress(InfrastructureError):  # a full disk: writing run.json says so
            for name, text in files.items():
                path = Path(name)
                if path.parent == Path("consoles"):
                    directory.keep_console(path.stem.rpartition("-")[0], text)
                else:
                    directory.write(name, text)

    # --- what a worker lacks

    def _has_been_supplied(self, name: str, cell: Cell, wanting: Wanting) -> bool:
        what = cell.kernel.id if wanting.what == "kernel" else cell.object.sha256
        return (name, wanting.what, what) in self._supplied

    def _supply(self, name: str, cell: Cell, wanting: Wanting) -> None:
        """Send what is wanted; on a helper's thread. The cell goes to the same worker again, unless that failed."""
        try:
            error = _SUPPLIERS[wanting.what](self, name, cell)
        except CorematrixError as own:
            error = own
        except Exception as other:
            error = InfrastructureError(f"{name}: {type(other).__name__}: {other}")
        self._events.put(lambda: self._supply_done(name, cell, wanting, error))

    def _supply_done(
        self, name: str, cell: Cell, wanting: Wanting, error: CorematrixError | None
    ) -> Iterable[CellResult]:
        if name not in self._dispatcher.workers():
            return  # lost meanwhile: the cell waits again already
        if error is None:
            what = cell.kernel.id if wanting.what == "kernel" else cell.object.sha256
            if wanting.what != "run":
                self._supplied.add((name, wanting.what, what))
            self._submit(name, cell)
        elif self._dispatcher.finished(name, cell):
            yield self._judging.services().give_up(cell, None, error)

    def _supply_run(self, name: str, _cell: Cell) -> CorematrixError | None:
        slots = self._client.nthreads().get(name, 1)
        return _failure(name, self._call_one(cluster_worker.begin, self._context(slots), worker=name))

    def _supply_object(self, name: str, cell: Cell) -> CorematrixError | None:
        from harness.executor.judging import bytes_of

        return _failure(name, self._call_one(cluster_worker.receive, self._run, [bytes_of(cell.object)], worker=name))

    def _supply_kernel(self, name: str, cell: Cell) -> CorematrixError | None:
        """The kernel from our own cache (or wherever we get it), as far as the worker has not its files already."""
        kernel, packages = self._judging.provide(cell.kernel, lambda _line: None)
        shipment, places = _shipment(kernel, packages)
        missing = self._call_one(cluster_worker.lacking, shipment.hashes(), worker=name)
        if isinstance(missing, BaseException):
            return _failure(name, missing)
        for batch in _batches([places[digest] for digest in missing]):
            blobs = [path.read_bytes() for path in batch]
            error = _failure(name, self._call_one(cluster_worker.receive, self._run, blobs, worker=name))
            if error is not None:
                return error
        return _failure(name, self._call_one(cluster_worker.receive, self._run, [], shipment, worker=name))

    # --- giving up

    def _give_up_lossy(self) -> Iterable[CellResult]:
        for cell, losses in self._dispatcher.lossy(MOST_LOSSES):
            if self._dispatcher.drop(cell):
                message = f"{losses} workers were lost, or gave no answer, while they had this cell"
                remedy = "look at the workers' logs (memory?), or run the cell alone with `--only`"
                yield self._give_up(cell, InfrastructureError(message, remedy=remedy))

    def _give_up_stranded(self) -> Iterable[CellResult]:
        if monotonic() - self._changed < self._patience:
            return
        workers = len(self._dispatcher.workers())
        for cell in self._dispatcher.stranded():
            if self._dispatcher.drop(cell):
                message = f"none of {workers} workers can boot {cell.kernel.arch.name} guests of this size"
                remedy = f"install {cell.kernel.arch.qemu_package} on a worker"
                if not workers:
                    message, remedy = "no worker is left, or none has come", "start workers, of this same version"
                yield self._give_up(cell, InfrastructureError(message, remedy=f"{remedy}; see docs/cluster.md"))

    def _give_up_all(self, why: str) -> Iterable[CellResult]:
        for name in self._dispatcher.workers():
            self._dispatcher.leave(name)
        for cell in self._plan.cells:
            if self._dispatcher.drop(cell):
                yield self._give_up(cell, InfrastructureError(why, remedy="start a scheduler and run again"))

    def _give_up(self, cell: Cell, error: CorematrixError) -> CellResult:
        return self._judging.services().give_up(cell, None, error)

    # --- calls

    def _call(self, function: Callable[..., Any], *arguments: Any, workers: list[str], seconds: float) -> Any:
        """Call a function on workers, in their event loops' thread: name -> what it returned, or the exception."""
        return self._client.sync(
            self._client._run, function, *arguments, workers=workers, on_error="return", callback_timeout=seconds
        )

    def _call_one(self, function: Callable[..., Any], *arguments: Any, worker: str) -> Any:
        try:
            return self._call(function, *arguments, workers=[worker], seconds=_CALL_SECONDS).get(worker)
        except Exception as error:  # gone, or too slow
            return error


_SUPPLIERS: dict[str, Callable[[_Flow, str, Cell], CorematrixError | None]] = {
    "run": _Flow._supply_run,
    "object": _Flow._supply_object,
    "kernel": _Flow._supply_kernel,
}


def _aside(work: Callable[..., None], *arguments: Any) -> None:
    """On a thread of its own, that does not keep us from ending."""
    threading.Thread(target=work, args=arguments, name="cluster-aside", daemon=True).start()


def _refusal(said: Any) -> str | None:
    """Why a worker that announced this must not take part, or None."""
    if not isinstance(said, dict):
        return f"it has no corematrix that answers ({type(said).__name__}: {said}); pip install corematrix there"
    theirs, ours = (said.get("version"), said.get("code")), (__version__, cluster_worker.code())
    if theirs[0] != ours[0]:
        return f"it runs corematrix {theirs[0]}, this is {ours[0]}"
    if theirs[1] != ours[1]:
        return f"its corematrix {theirs[0]} is another build ({str(theirs[1])[:12]}, this is {ours[1][:12]})"
    return None


def _failure(name: str, answer: Any) -> CorematrixError | None:
    if isinstance(answer, CorematrixError) or answer is None:
        return answer
    return InfrastructureError(f"worker {name}: {type(answer).__name__}: {answer}")


def _shipment(kernel: Kernel, packages: Any) -> tuple[Shipment, dict[str, Path]]:
    """A kernel as it travels, and where its parts lie here, by hash."""
    from harness.store import digest_of

    parts = {"vmlinuz": kernel.vmlinuz, "config": kernel.config, "vmlinux.btf": kernel.btf}
    parts |= {f"modules/{path.name}": path for path in kernel.modules}
    present = {name: path for name, path in parts.items() if path is not None}
    files = {name: digest_of(path) for name, path in present.items()}
    debs = {digest_of(path): path for path in (packages.paths if packages else ())}
    shipped = replace(
        kernel,
        vmlinuz=Path("vmlinuz") if kernel.vmlinuz else None,
        config=Path("config") if kernel.config else None,
        modules=tuple(Path("modules", path.name) for path in kernel.modules),
        btf=Path("vmlinux.btf") if kernel.btf else None,
    )
    shipment = Shipment(
        kernel=shipped, files=files, debs=tuple(debs), provenance=packages.provenance if packages else ()
    )
    return shipment, {**{files[name]: path for name, path in present.items()}, **debs}


def _batches(paths: Iterable[Path]) -> Generator[list[Path], None, None]:
    batch: list[Path] = []
    size = 0
    for path in paths:
        length = path.stat().st_size
        if batch and size + length > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += length
    if batch:
        yield batch
