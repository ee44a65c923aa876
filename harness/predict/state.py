"""One path of a walk: what is known at an instruction, and whether a path was there that knew as little
(states_equal() in the kernel).
"""

from __future__ import annotations

from harness.predict import values as V
from harness.predict.memory import Stack
from harness.predict.values import UNKNOWN, Value

_STATES_APART = 24  # at one place; the paths that come later are joined
_JOINS_EXACT = 8  # then ranges that still grow are given up

# (return to, saved r6 to r9, call instruction of a callback or None, the registers there)
Call = tuple[int, tuple[Value, ...], int | None, tuple[Value, ...] | None]


class State:
    """One path, at the instruction `pc`. `regs` are r0 to r9; `stacks` one for each frame; `calls` one for each frame
    but the first.
    """

    __slots__ = ("calls", "pc", "regs", "stacks")

    def __init__(self, pc: int, regs: list[Value], stacks: list[Stack], calls: tuple[Call, ...]) -> None:
        self.pc = pc
        self.regs = regs
        self.stacks = stacks
        self.calls = calls

    def at(self, pc: int) -> State:
        return State(pc, list(self.regs), [dict(stack) for stack in self.stacks], self.calls)


class Seen:
    """The paths that came by one place."""

    __slots__ = ("exact", "joined", "rounds")

    def __init__(self) -> None:
        self.exact: set[object] = set()
        self.joined: State | None = None
        self.rounds = 0

    def covers(self, state: State) -> bool:
        if self.joined is None:
            frozen = _frozen(state)
            if frozen in self.exact:
                return True
            self.exact.add(frozen)
            if len(self.exact) > _STATES_APART:
                self.joined = state.at(state.pc)
            return False
        return self._join(state)

    def _join(self, state: State) -> bool:
        """Make `state` what holds of all paths so far; True when that is nothing new."""
        joined = self.joined
        assert joined is not None
        self.rounds += 1
        give_up = self.rounds > _JOINS_EXACT
        regs = [_joined(old, new, give_up) for old, new in zip(joined.regs, state.regs, strict=True)]
        stacks = [_common(old, new, give_up) for old, new in zip(joined.stacks, state.stacks, strict=True)]
        calls = tuple(_common_call(old, new, give_up) for old, new in zip(joined.calls, state.calls, strict=True))
        if regs == joined.regs and stacks == joined.stacks and calls == joined.calls:
            return True
        joined.regs, joined.stacks, joined.calls = regs, stacks, calls
        copy = joined.at(state.pc)
        state.regs, state.stacks, state.calls = copy.regs, copy.stacks, copy.calls
        return False


def _joined(old: Value, new: Value, give_up: bool) -> Value:
    if old == new:
        return old
    return UNKNOWN if give_up and V.OPAQUE not in (old[0], new[0]) else V.join(old, new)


def _common(old: Stack, new: Stack, give_up: bool) -> Stack:
    return {
        offset: (size, _joined(value, new[offset][1], give_up))
        for offset, (size, value) in old.items()
        if offset in new and new[offset][0] == size
    }


def _common_call(old: Call, new: Call, give_up: bool) -> Call:
    regs = None
    if old[3] is not None and new[3] is not None:
        regs = tuple(_joined(a, b, give_up) for a, b in zip(old[3], new[3], strict=True))
    return (old[0], tuple(_joined(a, b, give_up) for a, b in zip(old[1], new[1], strict=True)), old[2], regs)


def _frozen(state: State) -> object:
    return tuple(state.regs), tuple(frozenset(stack.items()) for stack in state.stacks), state.calls
