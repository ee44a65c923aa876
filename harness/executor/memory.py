"""The host memory that all guests together may take."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryBudget:
    """`take` waits until its megabytes are free. A guest larger than the whole budget may run when it is alone."""

    def __init__(self, total_mb: int) -> None:
        self._total = total_mb
        self._taken = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, megabytes: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + megabytes <= self._total)
            self._taken += megabytes
        try:
            yield
        finally:
            with self._changed:
                self._taken -= megabytes
                self._changed.notify_all()
