"""Which cells wait for a guest of which kernel, shared by the pool's threads."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence

from harness.executor.pairs import together
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec

# A second guest of one kernel pays for its boot (a few seconds, emulated) from about this many waiting cells on.
WORTH_A_GUEST = 6


class KernelQueue:
    """The waiting cells of one kernel, those that are compared with each other together. `kernel` is set once its files
    are in the cache.
    """

    def __init__(self, spec: KernelSpec, cells: Sequence[Cell]) -> None:
        self.spec = spec
        self.kernel: Kernel | None = None
        self.guests = 0
        self._waiting = deque(together(cells))

    def __len__(self) -> int:
        return len(self._waiting)

    def next(self) -> tuple[Cell, ...]:
        """The next cells, none when none wait. Safe from any thread (deque.popleft is atomic)."""
        try:
            return self._waiting.popleft()
        except IndexError:
            return ()


class Work:
    """Hands kernels to threads: first those without a guest, in the plan's order, then the longest queue, when that
    is worth it.
    """

    def __init__(self, queues: Sequence[KernelQueue]) -> None:
        self._queues = list(queues)
        self._fetching = len(self._queues)
        self._stopped = False
        self._changed = threading.Condition()

    def fetched(self, queue: KernelQueue, kernel: Kernel | None) -> None:
        """A kernel's files came, or (None) will not come; then its queue must have been emptied."""
        with self._changed:
            queue.kernel = kernel
            self._fetching -= 1
            self._changed.notify_all()

    def stop(self) -> None:
        """No more kernels are handed out."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    @property
    def stopped(self) -> bool:
        return self._stopped

    def claim(self) -> KernelQueue | None:
        """A queue to serve with one guest; waits while kernels are still being fetched; None when nothing is left to
        do.
        """
        with self._changed:
            while not self._stopped:
                if queue := self._choose():
                    queue.guests += 1
                    return queue
                if not self._fetching:
                    return None
                self._changed.wait()
        return None

    def release(self, queue: KernelQueue) -> None:
        """The guest of a claimed queue is gone."""
        with self._changed:
            queue.guests -= 1
            self._changed.notify_all()

    def _choose(self) -> KernelQueue | None:
        ready = [queue for queue in self._queues if queue.kernel is not None and len(queue)]
        for queue in ready:
            if queue.guests == 0:
                return queue
        longest = max(ready, key=lambda queue: len(queue) / (queue.guests + 1), default=None)
        return longest if longest and len(longest) >= WORTH_A_GUEST * longest.guests else None
