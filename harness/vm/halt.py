"""Ending guests from another thread, whatever they are doing: also those that are only coming up, or being saved, which
no session has in hand yet.
"""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakSet

from harness.errors import Interrupted

STOPPED = "stopped before it was judged"


class Running(Protocol):
    """What is needed of `qemu.Qemu`."""

    def kill(self) -> None:
        """End the process, and nothing else: who started it notices and tidies up."""


class Halt:
    """Call it once, from any thread: every guest added so far is killed, and none can be added any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: WeakSet[Running] = WeakSet()
        self._called = False

    def add(self, running: Running) -> None:
        """A guest has been started. Interrupted when it is too late for that; it is killed then."""
        with self._lock:
            self._running.add(running)
            late = self._called
        if late:
            running.kill()
            self.check()

    def check(self) -> None:
        """Interrupted once it was called: guests are lost because of it, and through no fault of theirs."""
        if self._called:
            raise Interrupted(STOPPED)

    def __call__(self) -> None:
        with self._lock:
            self._called = True
            running = list(self._running)
        for one in running:
            one.kill()
