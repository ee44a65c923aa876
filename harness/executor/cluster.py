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
from typing import Any, NoReturn

from harness import __version__
from harness.errors import CorematrixError, InfrastructureError, UsageError
from harness.executor import Listener, cluster_worker
from harness.executor.cluster_client import Connection, Future, failure
from harness.executor.cluster_supply import Supplier
from harness.executor.cluster_worker import Context, Judged, Wanting
from harness.executor.costs import Costs
from harness.executor.dispatch import Ability, Dispatcher
from harness.executor.judging import Judging
from harness.executor.plan import Plan
from harness.model.cell import Cell
from harness.model.result import CellResult, ObjectResult

# A cell that took so many workers with it is given up.
MOST_LOSSES = 3
# Below the run's directory: what Dask says for itself.
LOG = "dask.log"
_POLL_SECONDS = 1.0
_ASK_SECONDS = 5.0
# A scheduler that cannot be reached for this long is lost; one that is there and does not answer (its machine is busy,
# or has stopped) after so long.
_ABSENCE_SECONDS = 15.0
_SILENCE_SECONDS = 90.0
_END_SECONDS = 15.0

# Something that happened, handled on the consumer's thread; yields the results that come of it.
_Event = Callable[[], Iterable[CellResult]]


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
        dask = Connection(self._address, self._judging.directory.path / LOG)
        flow = _Flow(dask, self._judging, plan, listener, patience=self._patience, costs=self._costs)
        try:
            yield from flow.results()
        finally:
            flow.stop()
            dask.close()


class _Flow:
    """One run: events from threads and callbacks come through a queue, and are handled by the consumer's thread. It
    never waits for the network itself but to submit, which does not answer.
    """

    def __init__(
        self, dask: Connection, judging: Judging, plan: Plan, listener: Listener, *, patience: float,
        costs: Costs | None,
    ) -> None:  # fmt: skip
        self._dask = dask
        self._judging = judging
        self._plan = plan
        self._listener = listener
        self._dispatcher = Dispatcher(plan.cells, costs)
        self._patience = patience
        self._run = uuid.uuid4().hex
        self._slots: dict[str, int] = {}
        self._supplier = Supplier(dask, judging, self._run, lambda name: self._context(self._slots.get(name, 1)))
        self._events: SimpleQueue[_Event] = SimpleQueue()
        self._ended: SimpleQueue[tuple[str, Cell, Future] | None] = SimpleQueue()
        self._known: set[str] = set()
        self._silent: set[str] = set()
        self._greeting: set[str] = set()
        self._futures: dict[str, Future] = {}
        self._changed = monotonic()
        self._stopped = threading.Event()
        self._lost = False

    def results(self) -> Generator[CellResult, None, None]:
        self._aside(self._watch)
        self._aside(self._collect)
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

    def stop(self) -> None:
        """End every guest of this run on every worker, and wait until that is done."""
        self._stopped.set()
        self._ended.put(None)
        if self._lost:
            return  # nobody can be told; Dask's workers end with their scheduler, and guests with their worker
        self._dask.cancel(list(self._futures.values()))
        with suppress(Exception):  # a worker hangs: the others have been told, what their guests said is lost
            consoles = self._dask.call(cluster_worker.end, self._run, workers=list(self._known), seconds=_END_SECONDS)
            for found in consoles.values():
                self._keep(found if isinstance(found, dict) else {})

    def _aside(self, work: Callable[..., None], *arguments: Any) -> None:
        """On a thread of its own, that does not keep us from ending. An error in it is the run's: what it was to do
        would be awaited for ever.
        """

        def guarded() -> None:
            try:
                work(*arguments)
            except BaseException as error:
                self._events.put(functools.partial(_fail, error))

        threading.Thread(target=guarded, name=f"cluster-{work.__name__.strip('_')}", daemon=True).start()

    # --- workers

    def _watch(self) -> None:
        """Who is there, once a second."""
        heard = monotonic()
        while not self._stopped.is_set():
            try:
                present = self._dask.workers(seconds=_ASK_SECONDS)
            except Exception as error:  # Dask's own errors have no common base
                patience = _SILENCE_SECONDS if self._dask.connected else _ABSENCE_SECONDS
                if self._dask.closed or monotonic() - heard > patience:
                    why = f"the scheduler is lost ({type(error).__name__}: {error})"
                    self._events.put(functools.partial(self._give_up_all, why))
                    return
            else:
                heard = monotonic()
                self._events.put(functools.partial(self._see, present))
            self._stopped.wait(_POLL_SECONDS)

    def _see(self, present: dict[str, int]) -> Iterable[CellResult]:
        for name in self._known - set(present):
            self._known.discard(name)
            self._greeting.discard(name)
            self._lose(name)
        for name in set(present) - self._known:
            self._known.add(name)
            self._slots[name] = present[name]
            if name not in self._silent:
                self._greeting.add(name)
            self._aside(self._greet, name, present[name])
        yield from self._give_up_lossy()
        yield from self._give_up_stranded()

    def _lose(self, name: str) -> None:
        self._supplier.forget(name)
        for cell in self._dispatcher.leave(name):
            self._changed = monotonic()
            self._listener.on_kernel(cell.kernel.id, f"worker {name} is lost; {cell.id} goes elsewhere")
            self._forget(str(cell.id))

    def _greet(self, name: str, slots: int) -> None:
        """Ask a new worker what it can do, and let it join; on a helper's thread."""
        said = self._dask.ask(cluster_worker.announce, worker=name)
        if isinstance(said, OSError):  # it hangs or is gone (TimeoutError is one): asked again if it is still there
            self._events.put(functools.partial(self._overlook, name, said))
            return
        why = _refusal(said)
        if why is None:
            trouble = failure(name, self._dask.ask(cluster_worker.begin, self._context(slots), worker=name))
            why = f"it cannot begin: {trouble.message}" if trouble is not None else None
        self._events.put(functools.partial(self._join, name, slots, said, why))

    def _overlook(self, name: str, error: OSError) -> Iterable[CellResult]:
        self._known.discard(name)
        self._greeting.discard(name)
        if name not in self._silent:
            self._silent.add(name)
            self._listener.on_kernel(f"worker {name}", f"it does not answer ({type(error).__name__}: {error})")
        return ()

    def _join(self, name: str, slots: int, said: Any, why: str | None) -> Iterable[CellResult]:
        self._greeting.discard(name)
        host = f"{said['host']}, {name}" if isinstance(said, dict) and "host" in said else name
        if why is not None:
            self._listener.on_kernel(f"worker {host}", f"refused: {why}")
        elif name in self._known:
            self._changed = monotonic()
            ability = Ability(
                slots=slots, memory_mb=said["memory_mb"], total_mb=said["total_mb"], arches=frozenset(said["arches"]),
                kernels=frozenset(said["kernels"]),
            )  # fmt: skip
            self._dispatcher.join(name, ability)
            self._listener.on_kernel(f"worker {host}", _introduction(said, slots))
        return ()

    def _context(self, slots: int) -> Context:
        return Context(
            run=self._run, judging=self._judging.portable(), isolate=self._plan.isolate, retries=self._plan.retries,
            slots=slots,
        )  # fmt: skip

    # --- cells

    def _submit(self, name: str, cell: Cell) -> None:
        key = f"corematrix-{self._run[:8]}-{cell.id}-{uuid.uuid4().hex[:8]}"
        try:
            future = self._dask.submit(cluster_worker.judge_cell, self._run, cell, worker=name, key=key)
        except Exception:  # the scheduler has just gone: `_watch` says so, and then every cell is given up
            self._dispatcher.again(name, cell, counts=False)
            self._stopped.wait(_POLL_SECONDS)
            return
        self._futures[str(cell.id)] = future
        self._listener.on_cell(cell, f"on {name}")
        future.add_done_callback(lambda done: self._ended.put((name, cell, done)))

    def _collect(self) -> None:
        """The answers of tasks that have ended, several at a time. Not on the consumer's thread: a worker that hangs or
        dies before it has given its answer must not hold the others up.
        """
        while first := self._ended.get():
            ended = [first]
            with suppress(Empty):
                while task := self._ended.get_nowait():
                    ended.append(task)
            answers = self._dask.gather([future for *_, future in ended])
            came = [(name, cell, future, answers[id(future)]) for name, cell, future in ended if id(future) in answers]
            self._events.put(functools.partial(self._settle, came))
            for task in ended:
                if id(task[-1]) not in answers:
                    self._aside(self._collect_alone, *task)

    def _collect_alone(self, name: str, cell: Cell, future: Future) -> None:
        answer = self._dask.outcome(future)
        self._events.put(functools.partial(self._settle, [(name, cell, future, answer)]))

    def _settle(self, came: Iterable[tuple[str, Cell, Future, Any]]) -> Iterable[CellResult]:
        for name, cell, future, answer in came:
            if self._futures.get(str(cell.id), self) is future:  # else it was taken from that worker meanwhile
                cancelled = bool(future.status == "cancelled")
                self._forget(str(cell.id))
                yield from self._settled(name, cell, answer, cancelled=cancelled)

    def _forget(self, identity: str) -> None:
        future = self._futures.pop(identity, None)
        if future is not None:
            with suppress(Exception):
                future.release()

    def _settled(self, name: str, cell: Cell, answer: Any, *, cancelled: bool) -> Iterable[CellResult]:
        if isinstance(answer, Judged):
            if self._dispatcher.finished(name, cell):
                yield self._finished(cell, answer)
        elif isinstance(answer, Wanting) and not self._supplier.has_sent(name, cell, answer):
            self._aside(self._supply, name, cell, answer)
        else:
            # Dask cancels all tasks when it loses the scheduler, which says nothing about the cell.
            self._listener.on_kernel(cell.kernel.id, f"{cell.id}: nothing came from {name} ({_in_words(answer)})")
            self._dispatcher.again(name, cell, counts=not cancelled)
            yield from self._give_up_lossy()

    def _finished(self, cell: Cell, answer: Judged) -> CellResult:
        """The result as this machine would have made it: paths and the command to run it again are ours."""
        self._keep(answer.files)
        self._judging.note_packages(cell.kernel.arch.name, answer.packages)
        own = ObjectResult(name=cell.object.name, path=str(cell.object.path), sha256=cell.object.sha256)
        result = replace(answer.result, object=own, rerun=self._judging.rerun(cell))
        if result.reason and answer.directory:
            result = replace(result, reason=result.reason.replace(answer.directory, str(self._judging.directory.path)))
        return result

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

    def _supply(self, name: str, cell: Cell, wanting: Wanting) -> None:
        """Send what is wanted; on a helper's thread."""
        error = self._supplier.send(name, cell, wanting)
        self._events.put(functools.partial(self._supplied, name, cell, error))

    def _supplied(self, name: str, cell: Cell, error: CorematrixError | None) -> Iterable[CellResult]:
        """The cell goes to the same worker again, unless that could not be given what it wants."""
        if not self._dispatcher.has(name, cell):
            return  # lost meanwhile: the cell waits again already, or another has it
        if error is None:
            self._submit(name, cell)
        elif self._dispatcher.finished(name, cell):
            yield self._give_up(cell, error)

    # --- giving up

    def _give_up_lossy(self) -> Iterable[CellResult]:
        for cell, losses in self._dispatcher.lossy(MOST_LOSSES):
            if self._dispatcher.drop(cell):
                message = f"{losses} workers were lost, or gave no answer, while they had this cell"
                remedy = "look at the workers' logs (memory?), or run the cell alone with `--only`"
                yield self._give_up(cell, InfrastructureError(message, remedy=remedy))

    def _give_up_stranded(self) -> Iterable[CellResult]:
        if self._greeting or monotonic() - self._changed < self._patience:
            return  # a worker that has come may be slow to say what it can
        workers = len(self._dispatcher.workers())
        for cell in self._dispatcher.stranded():
            if self._dispatcher.drop(cell):
                message = f"none of {workers} workers can boot {cell.kernel.arch.name} guests of this size"
                remedy = f"install {cell.kernel.arch.qemu_package} on a worker"
                if not workers:
                    message, remedy = "no worker is left, or none has come", "start workers, of this same version"
                yield self._give_up(cell, InfrastructureError(message, remedy=f"{remedy}; see docs/cluster.md"))

    def _give_up_all(self, why: str) -> Iterable[CellResult]:
        self._lost = True
        for name in self._dispatcher.workers():
            self._dispatcher.leave(name)
        for cell in self._plan.cells:
            if self._dispatcher.drop(cell):
                remedy = "start a scheduler and workers, and run again with `--resume latest`"
                yield self._give_up(cell, InfrastructureError(why, remedy=remedy))

    def _give_up(self, cell: Cell, error: CorematrixError) -> CellResult:
        return self._judging.services().give_up(cell, None, error)


def _fail(error: BaseException) -> NoReturn:
    raise error


def _in_words(answer: Any) -> str:
    if isinstance(answer, Wanting):
        return f"it still lacks the {answer.what}: {answer.why}"
    return f"{type(answer).__name__}: {answer}" if isinstance(answer, BaseException) else str(answer)


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


def _introduction(said: dict[str, Any], slots: int) -> str:
    """A worker that takes part, in words."""
    dask = cluster_worker.dask_version()
    other = f", Dask {said['dask']} (here {dask})" if said["dask"] != dask else ""
    return (
        f"{slots} guests of {', '.join(sorted(said['arches'])) or 'no architecture: it has no QEMU'}, "
        f"{'KVM' if said['kvm'] else 'no KVM'}, {said['memory_mb']} MB, {len(said['kernels'])} kernels cached{other}"
    )
