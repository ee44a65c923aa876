"""One path of a walk: what is known at an instruction, and whether a path was there that knew as little
(states_equal() in the kernel).
"""

from __future__ import annotations

from collections.abc import Callable

from harness.predict import values as V
from harness.predict.helpers import MAP_ARGUMENTS
from harness.predict.memory import Stack, write
from harness.predict.values import MAYBE, NUM, PTR, STACK, UNKNOWN, Value

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

    def reg(self, number: int) -> Value:
        """A register's value; r10 is the frame pointer."""
        return self.regs[number] if number < 10 else (STACK, len(self.stacks) - 1, 0)

    def put(self, dst: int, value: Value, first: bool) -> None:
        """A result that is not a single number gets an ident, so that what is learnt of one copy is learnt of all.
        `first`: the instruction has not been run before, so nobody has its ident.
        """
        if value[0] == NUM and value[3] == 0 and value[1] != value[2]:
            if not first:
                self.forget_ident(self.pc + 1)
            value = (NUM, value[1], value[2], self.pc + 1)
        self.regs[dst] = value

    def forget_ident(self, ident: int) -> None:
        """An instruction run again makes another number: copies of its last one are no longer told apart by it."""

        def without(value: Value) -> Value:
            if value[0] == NUM and value[3] == ident:
                return (NUM, value[1], value[2], 0)
            return (MAYBE, 0) if value == (MAYBE, ident) else value

        self.rewrite(without)

    def rewrite(self, change: Callable[[Value], Value]) -> None:
        """Change every value there is: in registers, on the stacks, saved by calls."""
        self.regs[:] = [change(value) for value in self.regs]
        for stack in self.stacks:
            for offset, (size, value) in list(stack.items()):
                stack[offset] = (size, change(value))
        self.calls = tuple(
            (call[0], tuple(change(value) for value in call[1]), *call[2:]) if call[2] is None else call
            for call in self.calls
        )

    def outlived(self, value: Value) -> Value:
        """A value after a return: nothing points into a frame that is gone."""
        return UNKNOWN if value[0] == STACK and value[1] >= len(self.stacks) else value

    def clobber_arguments(self, helper: int | None) -> None:
        """Stack memory given to a helper (None: to another function) may be written by it."""
        for number in range(1, 6):
            pointer = self.regs[number]
            if pointer[0] == STACK and pointer[1] < len(self.stacks):
                size = self._size_given(helper, number)
                stack = self.stacks[pointer[1]]
                if pointer[2] is None:
                    stack.clear()
                else:
                    write(stack, pointer[2], size if size is not None else -pointer[2], None)

    def _size_given(self, helper: int | None, number: int) -> int | None:
        """Bytes behind the pointer in an argument: the map's key or value, or the number in the argument behind it;
        None when not known.
        """
        if helper is None:
            return None
        of_map = MAP_ARGUMENTS.get(helper, {}).get(number)
        if of_map is not None:
            return (self.regs[1][of_map] or None) if self.regs[1][0] == PTR else None
        return V.known(self.regs[number + 1]) if number < 5 else None


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
