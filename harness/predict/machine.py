"""Walking a program as the verifier does, to learn which instructions it reaches.

Every path is followed with what is known on it: constants, ranges, pointers that cannot be null, values kept on the
stack. Where a branch is decided, one side is followed (how much decides, the model says). Where many paths meet, the
later ones are joined: then more may seem reachable than is, never less.

Kernel: kernel/bpf/verifier.c, do_check(), check_cond_jmp_op(), check_func_call(), check_helper_call(); a global
subprogram is verified once, with nothing known of its arguments (do_check_subprogs()).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from harness.guest import insn as I
from harness.predict import values as V
from harness.predict.flow import Decoded, live_registers, meeting_points
from harness.predict.helpers import CALLBACK_CONTEXT, KFUNC_NO_RETURN, MAP_ARGUMENTS, RETURNS_POINTER
from harness.predict.memory import slot, write
from harness.predict.models import Model
from harness.predict.state import Seen, State
from harness.predict.values import (
    CODE,
    DATA,
    MAYBE,
    NUM,
    OPAQUE,
    POINTER,
    PTR,
    SECRET,
    STACK,
    UNKNOWN,
    Value,
    const,
)

_MOST_STEPS = 400_000
Insn = tuple[int, int, int, int, int]  # code, dst, src, off, imm
_FRAMES_MAX = 8  # MAX_CALL_FRAMES


@dataclass(frozen=True, kw_only=True)
class Func:
    """A function of the final sequence: where it starts, how long it is, whether it is verified on its own."""

    name: str
    start: int
    insns: int
    is_global: bool


@dataclass(frozen=True, kw_only=True)
class Program:
    """Final instructions, and what is known of them before the load.

    `code` in this machine's byte order; `data` the content of frozen maps by the name that `map_values` gives
    (instruction -> map, offset); `kfuncs` names by instruction of the call; `map_sizes` (key, value) by instruction of
    the ldimm64 that loads a map; `symbols` instructions that load a kernel symbol -> known to exist (None: not
    known); `opaque` instructions whose constant is to be taken as not known; `secrets` ranges of bytes of `data` that
    the verifier knows and we do not.
    """

    name: str
    code: bytes
    funcs: tuple[Func, ...]
    data: Mapping[str, bytes] = field(default_factory=dict)
    map_values: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    map_sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    kfuncs: Mapping[int, str] = field(default_factory=dict)
    symbols: Mapping[int, bool | None] = field(default_factory=dict)
    opaque: frozenset[int] = frozenset()
    secrets: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """`visited`: instructions the verifier reaches without passing poison; `poison`: those of them that are poisoned
    calls; `helpers` the numbers of those it calls; `complete` False when there was too much to walk, then nothing
    follows from an instruction's absence.
    """

    visited: frozenset[int]
    poison: frozenset[int]
    helpers: frozenset[int]
    complete: bool

    def reaches(self, insn: int) -> bool | None:
        """None: not known."""
        return True if insn in self.visited else False if self.complete else None


def predict(program: Program, model: Model, *, certain: bool = False) -> Prediction:
    """Walk a program. Where a secret decides a branch both sides are followed: what is not visited is dead whatever the
    secret; `certain`: neither, so what is visited is reached whatever the secret.
    """
    return _Walk(program, model, certain).run()


class _Walk:
    def __init__(self, program: Program, model: Model, certain: bool) -> None:
        self.program = program
        self.certain = certain
        self.model = model
        self.insns = Decoded(program.code)
        self.meetings = meeting_points(self.insns)
        self.live = live_registers(self.insns)
        self.visited: set[int] = set()
        self.poison: set[int] = set()
        self.helpers: set[int] = set()
        self.seen: dict[tuple[int, tuple[int, ...]], Seen] = {}
        self.todo: list[State] = []
        self.globals = {f.start: f for f in program.funcs[1:] if f.is_global and model.global_functions}
        self.called: set[int] = set()
        self.steps = 0

    def run(self) -> Prediction:
        starts = [self.program.funcs[0].start] if self.program.funcs else [0]
        if not self.model.has("lazy_globals"):
            starts += self.globals
        done: set[int] = set()
        complete = not self.insns.opaque
        while starts and complete:
            start = starts.pop()
            done.add(start)
            self.todo.append(State(start, [UNKNOWN] * 10, [{}], ()))
            complete = self._drain()
            starts += [callee for callee in self.called if callee not in done and callee not in starts]
        return Prediction(
            visited=frozenset(self.visited), poison=frozenset(self.poison), helpers=frozenset(self.helpers),
            complete=complete,
        )  # fmt: skip

    def _drain(self) -> bool:
        while self.todo:
            state = self.todo.pop()
            while state is not None:
                if self.steps >= _MOST_STEPS:
                    return False
                self.steps += 1
                following = self._step(state)
                if following is None:
                    break
                state = following
        return True

    # -- one instruction

    def _step(self, state: State) -> State | None:
        """Carry out one instruction in place; None at the end of the path. Other paths go to `todo`."""
        pc = state.pc
        if not 0 <= pc < self.insns.count:
            return None  # the verifier refuses such a program before it walks
        if pc in self.meetings and self._is_known(state):
            return None
        first = pc not in self.visited
        self.visited.add(pc)
        insn = op, dst, src, off, imm = self.insns.at(pc)
        kind = op & 7
        if kind in (I.BPF_JMP, I.BPF_JMP32):
            return self._jump(state, insn)
        if kind in (I.BPF_ALU64, I.BPF_ALU):
            self._set(state, dst, self._alu(state, insn), first)
        elif kind == I.BPF_LDX:
            self._set(state, dst, self._load(state, op, src, off), first)
        elif op == I.LDIMM64:
            state.regs[dst] = self._ldimm64(pc, src, imm)
            state.pc += 1
        elif kind == I.BPF_LD:  # packet access: ends the program when it reaches too far
            state.regs[:6] = [UNKNOWN] * 6
        else:
            self._store(state, insn)
        state.pc += 1
        return state

    def _set(self, state: State, dst: int, value: Value, first: bool) -> None:
        """A result that is not a single number gets an ident, so that what is learnt of one copy is learnt of all."""
        pc = state.pc
        if value[0] == NUM and value[3] == 0 and value[1] != value[2]:
            if not first:
                self._forget_ident(state, pc + 1)
            value = (NUM, value[1], value[2], pc + 1)
        state.regs[dst] = value

    def _forget_ident(self, state: State, ident: int) -> None:
        """An instruction run again makes another number: copies of its last one are no longer told apart by it."""

        def without(value: Value) -> Value:
            if value[0] == NUM and value[3] == ident:
                return (NUM, value[1], value[2], 0)
            return (MAYBE, 0) if value == (MAYBE, ident) else value

        self._rewrite(state, without)

    def _rewrite(self, state: State, change: Callable[[Value], Value]) -> None:
        state.regs[:] = [change(value) for value in state.regs]
        for stack in state.stacks:
            for offset, (size, value) in list(stack.items()):
                stack[offset] = (size, change(value))
        state.calls = tuple(
            (call[0], tuple(change(value) for value in call[1]), *call[2:]) if call[2] is None else call
            for call in state.calls
        )

    def _reg(self, state: State, number: int) -> Value:
        return state.regs[number] if number < 10 else (STACK, len(state.stacks) - 1, 0)

    def _ldimm64(self, pc: int, src: int, imm: int) -> Value:
        program = self.program
        if pc in program.map_values:
            return (DATA, *program.map_values[pc])
        if pc in program.symbols:
            exists = program.symbols[pc]
            return UNKNOWN if exists is None else POINTER if exists else const(0)
        if src == I.BPF_PSEUDO_FUNC:
            return (CODE, pc + 1 + imm)
        if src:
            return (PTR, *program.map_sizes.get(pc, (0, 0)))
        return UNKNOWN if pc in program.opaque else const((imm & V.M32) | (self.insns.at(pc + 1)[4] & V.M32) << 32)

    def _alu(self, state: State, insn: Insn) -> Value:
        op, dst, src, off, imm = insn
        wide, operation = op & 7 == I.BPF_ALU64, op & 0xF0
        a = self._reg(state, dst)
        if a[0] == OPAQUE and operation != I.BPF_MOV:
            return a
        if operation in (I.BPF_END, I.BPF_NEG):
            return UNKNOWN if wide or operation == I.BPF_END else (NUM, 0, V.M32, 0)
        b = self._reg(state, src) if op & I.BPF_X else const(imm)
        if state.pc in self.program.opaque:
            b = UNKNOWN
        if b[0] == OPAQUE:
            return b
        if operation == I.BPF_MOV:
            if off:  # sign extension, or a cast between address spaces
                number = V.known(b)
                extends = number is not None and off in (8, 16, 32)
                b = const(V.signed(number, off)) if extends and number is not None else UNKNOWN
            return b if wide else V.low32(b)
        if a[0] != NUM or b[0] != NUM:
            return self._pointer_arithmetic(operation, a, b) if wide else (NUM, 0, V.M32, 0)
        if operation in (I.BPF_DIV, I.BPF_MOD):
            return UNKNOWN if wide else (NUM, 0, V.M32, 0)
        return V.arithmetic(operation, a, b, wide)

    def _pointer_arithmetic(self, operation: int, a: Value, b: Value) -> Value:
        if operation not in (I.BPF_ADD, I.BPF_SUB) or (a[0] != NUM and b[0] != NUM):
            return UNKNOWN
        pointer, number = (a, b) if a[0] != NUM else (b, a)
        if pointer[0] not in (STACK, DATA):
            return POINTER if pointer[0] == PTR else UNKNOWN
        by = V.known(number)
        if by is None or pointer[2] is None:
            return (pointer[0], pointer[1], None)
        by = V.signed(by)
        return (pointer[0], pointer[1], pointer[2] + (by if operation == I.BPF_ADD else -by))

    # -- memory

    def _load(self, state: State, op: int, src: int, off: int) -> Value:
        size = I.SIZE_OF_WIDTH[op & 0x18]
        extends = op & 0xE0 == I.BPF_MEMSX
        pointer = self._reg(state, src)
        value = self._read(state, pointer, off, size)
        if value is not None and value[0] == OPAQUE:
            return value
        if value is None or (extends and V.known(value) is None):
            return UNKNOWN if extends else (NUM, 0, (1 << 8 * size) - 1, 0)
        return const(V.signed(value[1], 8 * size)) if extends else value

    def _read(self, state: State, pointer: Value, off: int, size: int) -> Value | None:
        """What memory holds, None when it is not known."""
        if pointer[0] not in (STACK, DATA) or pointer[2] is None:
            return None
        place = pointer[2] + off
        if pointer[0] == DATA:
            content = self.program.data.get(pointer[1]) if self.model.has("frozen_maps") else None
            if content is None or not 0 <= place <= len(content) - size:
                return None
            if any(place < end and start < place + size for start, end in self.program.secrets.get(pointer[1], ())):
                return SECRET
            return const(int.from_bytes(content[place : place + size], self.insns.byteorder))
        return slot(state.stacks[pointer[1]], place, size) if pointer[1] < len(state.stacks) else None

    def _store(self, state: State, insn: Insn) -> None:
        op, dst, src, off, imm = insn
        size = I.SIZE_OF_WIDTH[op & 0x18]
        pointer = self._reg(state, dst)
        atomic = op & 7 == I.BPF_STX and op & 0xE0 == I.BPF_ATOMIC
        value: Value | None
        if atomic:
            value = None
            if imm & 1:  # BPF_FETCH
                state.regs[0 if imm & 0xF0 == 0xF0 else src] = UNKNOWN  # CMPXCHG answers in r0
        elif op & 7 == I.BPF_STX:
            value = self._reg(state, src)
        else:
            value = const(imm) if imm == 0 or self.model.has("stack_immediates") else None
        if pointer[0] == STACK and pointer[1] < len(state.stacks):
            write(state.stacks[pointer[1]], None if pointer[2] is None else pointer[2] + off, size, value)

    # -- jumps and calls

    def _jump(self, state: State, insn: Insn) -> State | None:
        op, dst, src, off, imm = insn
        operation, wide = op & 0xF0, op & 7 == I.BPF_JMP
        if op == I.EXIT:
            return self._exit(state)
        if operation == I.BPF_CALL:
            return self._call(state, src, imm)
        if operation == I.BPF_JA:
            state.pc += 1 + (off if wide else imm)
            return state
        if operation == I.BPF_JCOND:
            self.todo.append(state.at(state.pc + 1 + off))
            state.pc += 1
            return state
        a = self._reg(state, dst)
        b = self._reg(state, src) if op & I.BPF_X else const(imm if wide else imm & V.M32)
        if state.pc in self.program.opaque:
            b = UNKNOWN
        if self.certain and OPAQUE in (a[0], b[0]):
            return None
        decided = self._decide(operation, a, b, wide, bool(op & I.BPF_X))
        if decided is None:
            other = state.at(state.pc + 1 + off)
            self._learn(other, dst, src if op & I.BPF_X else None, V.refine(operation, a, b, wide, True), (a, b))
            self._learn(state, dst, src if op & I.BPF_X else None, V.refine(operation, a, b, wide, False), (a, b))
            self.todo.append(other)
        state.pc += 1 + off if decided else 1
        return state

    def _decide(self, operation: int, a: Value, b: Value, wide: bool, register: bool) -> bool | None:
        """Which way the verifier follows, by the rules its model has."""
        decided = V.taken(operation, a, b, wide)
        if decided is None or self.model.has("range_branches"):
            return decided
        if register or not wide or operation not in (I.BPF_JEQ, I.BPF_JNE) or V.known(a) is None:
            return None
        if self.model.has("constant_branches"):
            return decided
        return decided if V.known(a) == V.known(b) else None

    def _learn(
        self, state: State, dst: int, src: int | None, learnt: tuple[Value, Value], before: tuple[Value, Value]
    ) -> None:
        for number, new, old in ((dst, learnt[0], before[0]), (src, learnt[1], before[1])):
            if number is None or new == old:
                continue
            ident = old[3] if old[0] == NUM else old[1] if old[0] == MAYBE else 0
            if ident:
                self._rewrite(state, _replacing(old, new))
            if number < 10:
                state.regs[number] = new

    def _exit(self, state: State) -> State | None:
        if not state.calls:
            return None
        target, saved, callback, regs = state.calls[-1]
        state.calls = state.calls[:-1]
        state.stacks.pop()
        if callback is not None and regs is not None:
            again = state.at(callback)
            again.regs = list(regs)
            self.todo.append(again)
            state.regs = [UNKNOWN] * 6 + list(regs[6:])
        else:
            state.regs[1:] = [UNKNOWN] * 5 + list(saved)
            state.regs[0] = self._outlived(state, state.regs[0])
        state.pc = target
        return state

    def _outlived(self, state: State, value: Value) -> Value:
        return UNKNOWN if value[0] == STACK and value[1] >= len(state.stacks) else value

    def _call(self, state: State, src: int, imm: int) -> State | None:
        pc = state.pc
        if src == I.BPF_PSEUDO_CALL:
            return self._call_subprogram(state, pc + 1 + imm)
        if src == 0 and (imm == I.POISON_CORE_RELO or I.POISON_MAP_BASE <= imm < I.POISON_KFUNC_BASE + (1 << 20)):
            self.poison.add(pc)
            return None
        if src == 0:
            self.helpers.add(imm)
        name = self.program.kfuncs.get(pc) if src else None
        if name in KFUNC_NO_RETURN:
            return None
        self._enter_callbacks(state, imm if src == 0 else None)
        self._clobber_arguments(state, imm if src == 0 else None)
        state.regs[:6] = [UNKNOWN] * 6
        self._forget_ident(state, pc + 1)
        pointer = src == 0 and imm in RETURNS_POINTER
        state.regs[0] = (MAYBE, pc + 1) if pointer else (NUM, 0, V.M64, pc + 1)
        state.pc += 1
        return state

    def _call_subprogram(self, state: State, start: int) -> State | None:
        if start in self.globals:
            self.called.add(start)
            self._clobber_arguments(state, None)
            state.regs[:6] = [UNKNOWN] * 6
            self._set(state, 0, UNKNOWN, first=False)
            state.pc += 1
            return state
        if len(state.stacks) >= _FRAMES_MAX:
            return None  # the verifier refuses
        state.calls = (*state.calls, (state.pc + 1, tuple(state.regs[6:]), None, None))
        state.regs[6:] = [UNKNOWN] * 4
        state.regs[0] = UNKNOWN
        state.stacks.append({})
        state.pc = start
        return state

    def _enter_callbacks(self, state: State, helper: int | None) -> None:
        """A function passed to a helper is verified from here, for none, one and more rounds."""
        for value in state.regs[1:6]:
            if value[0] != CODE or len(state.stacks) >= _FRAMES_MAX:
                continue
            inner = state.at(value[1])
            given, taken = CALLBACK_CONTEXT.get(helper or 0, (0, 0))
            regs = [UNKNOWN] * 10
            if given:
                regs[taken] = state.regs[given]
            inner.calls = (*state.calls, (state.pc + 1, (), state.pc, tuple(state.regs)))
            inner.regs = regs
            inner.stacks.append({})
            self.todo.append(inner)

    def _clobber_arguments(self, state: State, helper: int | None) -> None:
        """Stack memory given to a helper may be written by it."""
        for number in range(1, 6):
            pointer = state.regs[number]
            if pointer[0] == STACK and pointer[1] < len(state.stacks):
                size = self._size_given(state, helper, number)
                stack = state.stacks[pointer[1]]
                if pointer[2] is None:
                    stack.clear()
                else:
                    write(stack, pointer[2], size if size is not None else -pointer[2], None)

    def _size_given(self, state: State, helper: int | None, number: int) -> int | None:
        """Bytes behind the pointer in an argument: the map's key or value, or the number in the argument behind it;
        None when not known.
        """
        if helper is None:
            return None
        of_map = MAP_ARGUMENTS.get(helper, {}).get(number)
        if of_map is not None:
            return (state.regs[1][of_map] or None) if state.regs[1][0] == PTR else None
        return V.known(state.regs[number + 1]) if number < 5 else None

    # -- where paths meet

    def _is_known(self, state: State) -> bool:
        """Whether a path that was here before knew as little; otherwise this one is remembered."""
        live = self.live[state.pc]
        for number in range(10):
            if not live >> number & 1:
                state.regs[number] = UNKNOWN
        key = (state.pc, tuple(call[0] for call in state.calls))
        seen = self.seen.get(key)
        if seen is None:
            seen = self.seen[key] = Seen()
        return seen.covers(state)


def _replacing(old: Value, new: Value) -> Callable[[Value], Value]:
    return lambda value: new if value == old else value
