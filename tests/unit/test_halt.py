"""Guests ended from another thread: those there are, and those that come too late."""

from __future__ import annotations

import pytest

from harness.errors import Interrupted
from harness.vm.halt import Halt


class Running:
    def __init__(self) -> None:
        self.killed = 0

    def kill(self) -> None:
        self.killed += 1


def test_all_that_run_are_killed_and_none_begins_any_more() -> None:
    halt, first, second, late = Halt(), Running(), Running(), Running()
    halt.add(first)
    halt.add(second)
    halt.check()
    assert (first.killed, second.killed) == (0, 0)
    halt()
    assert (first.killed, second.killed) == (1, 1)
    with pytest.raises(Interrupted):
        halt.add(late)
    assert late.killed == 1
    with pytest.raises(Interrupted):
        halt.check()


def test_what_is_gone_is_not_kept() -> None:
    halt, running = Halt(), Running()
    halt.add(running)
    del running
    halt()
    assert len(halt._running) == 0
