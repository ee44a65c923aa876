"""The pool on this machine: one thread per guest, a few that fetch kernels meanwhile, results through one queue."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

from harness.errors import GuestLostError, Interrupted
from harness.executor import Listener
from harness.executor.attempts import Answer, ask_until_answered
from harness.executor.memory import MemoryBudget
from harness.executor.plan import Plan, by_kernel, guest_cost_mb
from harness.executor.queue import KernelQueue, Work
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec
from harness.model.result import CellResult
from harness.vm.halt import STOPPED

# Downloads wait for the network and unpacking takes a core: two at a time keep the guests supplied without starving
# them.
FETCHERS = 2
# A kernel whose guest did not come up this often in a row is not asked again for its other cells.
MOST_FAILED_BOOTS = 2
# How long an interrupted run waits for its guests' threads, in seconds.
PATIENCE = 3.0


class GuestSession(Protocol):
    """What the pool needs of `harness.session.Session`."""

    def ask(
        self,
        cell: Cell,
        *,
        progs: tuple[str, ...] | None,
        skip_progs: tuple[str, ...],
        on_progress: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Facts; GuestLostError."""

    def close(self) -> None:
        """End the guest, from any thread, whatever it is doing. Doing it twice does nothing."""


@dataclass(frozen=True, kw_only=True)
class Services:
    """Everything the pool does to the world, so that its tests can inject faults.

    `provide` may raise CorematrixError, `open_session` GuestLostError (the guest did not come up) or CorematrixError;
    `conclude` turns an answer into a result and `give_up` an error into one (its first argument a cell, its second a
    kernel or None). `first` names another cell whose answer has to be known before this one is asked for, and `note`
    gets that answer: where loaders are compared. `test` runs the functional tests of a cell that has a result, in a
    guest it asks for.
    """

    provide: Callable[[KernelSpec, Callable[[str], None]], Kernel]
    open_session: Callable[[Kernel, Callable[[str], None]], GuestSession]
    conclude: Callable[[Cell, Kernel, GuestSession | None, Answer], CellResult]
    give_up: Callable[[Cell, Kernel | None, BaseException], CellResult]
    first: Callable[[Cell], Cell | None] = lambda _cell: None
    note: Callable[[Cell, Answer], None] = lambda _cell, _answer: None
    test: Callable[[Cell, CellResult, Guest, Callable[[dict[str, Any]], None]], CellResult] = (
        lambda _cell, result, _guest, _on_progress: result
    )


class LocalExecutor:
    """Implements `harness.executor.Executor`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def run(self, plan: Plan, listener: Listener) -> Generator[CellResult, None, None]:
        """Results as they come; ends every guest when closed early."""
        pool = _Pool(plan, self._services)
        try:
            pool.start()
            left = len(plan.cells)
            while left:
                event = pool.events.get()
                if isinstance(event, _Finished):
                    left -= 1
                    # Announced only once the consumer has it: a signal may end this loop at any point, and what a
                    # line of progress called judged must be in the result.
                    yield event.result
                event(listener)
        finally:
            pool.stop()


@dataclass(frozen=True, kw_only=True)
class _Finished:
    result: CellResult

    def __call__(self, listener: Listener) -> None:
        listener.on_result(self.result)


@dataclass(frozen=True, kw_only=True)
class _Died:
    """A thread of the pool has ended with an error that is no cell's: the run cannot be completed."""

    error: BaseException

    def __call__(self, _listener: Listener) -> None:
        raise self.error


class _Pool:
    """The threads of one run. Threads never touch the listener: they put events on a queue."""

    def __init__(self, plan: Plan, services: Services) -> None:
        self.events: SimpleQueue[Any] = SimpleQueue()
        self._plan = plan
        self._services = services
        self._queues = [KernelQueue(spec, cells) for spec, cells in by_kernel(plan.cells)]
        self._work = Work(self._queues)
        self._memory = MemoryBudget(plan.limits.memory_mb)
        self._guests: set[Guest] = set()
        self._unfetched: deque[KernelQueue] = deque(self._queues)
        # Daemons: a download or a boot under way must not keep an interrupted run from ending. The guests end with them
        # (`proc.spawn`), the cache survives it (`store`).
        self._fetchers = self._make_threads("fetch", FETCHERS, self._fetch_all)
        self._guest_threads = self._make_threads("guest", min(plan.limits.jobs, len(plan.cells)), self._serve_all)

    def start(self) -> None:
        for thread in (*self._fetchers, *self._guest_threads):
            thread.start()

    def stop(self) -> None:
        self._work.stop()
        self._unfetched.clear()
        for guest in list(self._guests):
            guest.close()
        deadline = time.monotonic() + PATIENCE
        for thread in self._guest_threads:
            if thread.is_alive():
                thread.join(timeout=max(0.0, deadline - time.monotonic()))

    def tell_kernel(self, kernel_id: str, message: str) -> None:
        text = message.removeprefix(f"{kernel_id}: ")
        self.events.put(lambda listener: listener.on_kernel(kernel_id, text))

    def tell_cell(self, cell: Cell, message: str) -> None:
        self.events.put(lambda listener: listener.on_cell(cell, message))

    def _make_threads(self, name: str, count: int, target: Callable[[], None]) -> list[threading.Thread]:
        def work() -> None:
            try:
                target()
            except BaseException as error:
                # Its cells would never come out, and the consumer would wait for them for ever.
                self.events.put(_Died(error=error))

        return [threading.Thread(target=work, name=f"{name}-{number}", daemon=True) for number in range(count)]

    def _finish(self, result: CellResult) -> None:
        self.events.put(_Finished(result=result))

    def _fetch_all(self) -> None:
        while True:
            try:
                queue = self._unfetched.popleft()
            except IndexError:
                return
            self._fetch(queue)

    def _fetch(self, queue: KernelQueue) -> None:
        """Get a kernel's files; when they cannot be had, every one of its cells says why."""
        kernel = None
        try:
            kernel = self._services.provide(queue.spec, lambda message: self.tell_kernel(queue.spec.id, message))
        except Exception as error:  # a thread's last door: whatever went wrong, the cells must come out
            while cells := queue.next():
                for cell in cells:
                    self._finish(self._services.give_up(cell, None, error))
        self._work.fetched(queue, kernel)

    def _serve_all(self) -> None:
        while queue := self._work.claim():
            try:
                with self._memory.take(guest_cost_mb(queue.spec)):
                    self._serve(queue)
            finally:
                self._work.release(queue)

    def _serve(self, queue: KernelQueue) -> None:
        assert queue.kernel is not None
        guest = Guest(queue.kernel, self._services, self.tell_kernel)
        self._guests.add(guest)
        try:
            while not self._work.stopped and (cells := queue.next()):
                for cell in cells:
                    self._finish(self._judge(cell, guest))
                    if self._plan.isolate:
                        guest.end()
        finally:
            guest.close()
            self._guests.discard(guest)

    def _judge(self, cell: Cell, guest: Guest) -> CellResult:
        try:
            return guest.judge(
                cell, retries=self._plan.retries, on_progress=lambda message: self._progress(cell, message)
            )
        except Exception as error:  # as in _fetch
            return self._services.give_up(cell, guest.kernel, error)

    def _progress(self, cell: Cell, message: dict[str, Any]) -> None:
        self.tell_cell(cell, " ".join(str(message[key]) for key in ("phase", "prog") if message.get(key)))


class Guest:
    """One thread's guest: opened when first asked, opened anew after it was lost, given up when it will not come up."""

    def __init__(self, kernel: Kernel, services: Services, tell: Callable[[str, str], None]) -> None:
        self.kernel = kernel
        self.session: GuestSession | None = None
        self.latest: GuestSession | None = None  # also when it is gone: where the last answer, or none, came from
        self._tell = tell
        self._services = services
        self._closed = False
        self._failed_boots = 0
        self._dead: GuestLostError | None = None

    def judge(self, cell: Cell, *, retries: int, on_progress: Callable[[dict[str, Any]], None]) -> CellResult:
        """The cell's result, once what it is compared with has been asked for, if that is not known."""
        other = self._services.first(cell)
        if other is not None:
            self._services.note(other, ask_until_answered(self.asker(other), retries=retries, on_progress=on_progress))
        answer = ask_until_answered(self.asker(cell), retries=retries, on_progress=on_progress)
        result = self._services.conclude(cell, self.kernel, self.latest, answer)
        return self._services.test(cell, result, self, on_progress)

    def asker(self, cell: Cell) -> Callable[..., dict[str, Any]]:
        """`attempts.Ask` for one cell."""

        def ask(
            *,
            progs: tuple[str, ...] | None,
            skip_progs: tuple[str, ...],
            on_progress: Callable[[dict[str, Any]], None],
        ) -> dict[str, Any]:
            session = self.opened()
            try:
                return session.ask(cell, progs=progs, skip_progs=skip_progs, on_progress=on_progress)
            except GuestLostError as lost:
                self._say(f"guest lost ({lost.status}): {lost.message}")
                self.end()
                raise

        return ask

    def end(self) -> None:
        """End the guest; the next question opens another."""
        session, self.session = self.session, None
        if session is not None:
            session.close()

    def close(self) -> None:
        """End the guest for good, from any thread."""
        self._closed = True
        self.end()

    def _say(self, message: str) -> None:
        self._tell(self.kernel.spec.id, message)

    def opened(self) -> GuestSession:
        """The guest, booted anew if need be. GuestLostError, Interrupted."""
        if self._closed:
            raise Interrupted(STOPPED)
        if self._dead is not None:
            raise self._dead
        if self.session is None:
            self.session = self._boot()
            if self._closed:  # stopped while it booted: nobody else would end it
                self.end()
                raise Interrupted(STOPPED)
        return self.session

    def _boot(self) -> GuestSession:
        self._say("starting a guest")
        try:
            session = self._services.open_session(self.kernel, self._say)
        except GuestLostError as lost:
            self._failed_boots += 1
            if self._failed_boots == MOST_FAILED_BOOTS:
                self._dead = lost
            raise
        self._failed_boots = 0
        self.latest = session
        return session
