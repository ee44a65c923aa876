"""Walking a program as the verifier does, to learn which instructions it reaches.

Every path is followed with what is known on it: constants, ranges, pointers that cannot be null, values kept on the
stack. Where a branch is decided, one side is followed (how much decides, the model says). Where many paths meet, the
later ones are joined: then more may seem reachable than is, never less.

Kernel: kernel/bpf/verifier.c, do_check(), check_cond_jmp_op(), check_func_call(), check_helper_call(); a global
subprogram is verified once, with nothing known of its arguments (do_check_subprogs()).
"""

from __future__ import annotations

from collections.abc import Callable

from harness.guest import insn as I
from harness.predict import values as V
from harness.predict.alu import alu, ldimm64
from harness.predict.final import Prediction, Program
from harness.predict.flow import Decoded, Insn, live_registers, meeting_points
from harness.predict.helpers import CALLBACK_CONTEXT, KFUNC_NO_RETURN, RETURNS_POINTER
from harness.predict.memory import slot, write
from harness.predict.models import Model
from harness.predict.state import Seen, State
from harness.predict.values import CODE, DATA, MAYBE, NUM, OPAQUE, SECRET, STACK, UNKNOWN, Value, const

_MOST_STEPS = 400_000
_FRAMES_MAX = 8  # MAX_CALL_FRAMES


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
        insn = op, dst, src, off, _imm = self.insns.at(pc)
        kind = op & 7
        if kind in (I.BPF_JMP, I.BPF_JMP32):
            return self._jump(state, insn)
        if kind in (I.BPF_ALU64, I.BPF_ALU):
            state.put(dst, alu(self.program, state, insn), first)
        elif kind == I.BPF_LDX:
            state.put(dst, self._load(state, op, src, off), first)
        elif op == I.LDIMM64:
            state.regs[dst] = ldimm64(self.program, self.insns, pc)
            state.pc += 1
        elif kind == I.BPF_LD:  # packet access: ends the program when it reaches too far
            state.regs[:6] = [UNKNOWN] * 6
        else:
            self._store(state, insn)
        state.pc += 1
        return state

    # -- memory

    def _load(self, state: State, op: int, src: int, off: int) -> Value:
        size = I.SIZE_OF_WIDTH[op & 0x18]
        extends = op & 0xE0 == I.BPF_MEMSX
        pointer = state.reg(src)
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
        pointer = state.reg(dst)
        atomic = op & 7 == I.BPF_STX and op & 0xE0 == I.BPF_ATOMIC
        value: Value | None
        if atomic:
            value = None
            if imm & 1:  # BPF_FETCH
                state.regs[0 if imm & 0xF0 == 0xF0 else src] = UNKNOWN  # CMPXCHG answers in r0
        elif op & 7 == I.BPF_STX:
            value = state.reg(src)
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
        a = state.reg(dst)
        b = state.reg(src) if op & I.BPF_X else const(imm if wide else imm & V.M32)
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
                state.rewrite(_replacing(old, new))
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
            state.regs[0] = state.outlived(state.regs[0])
        state.pc = target
        return state

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
        state.clobber_arguments(imm if src == 0 else None)
        state.regs[:6] = [UNKNOWN] * 6
        state.forget_ident(pc + 1)
        pointer = src == 0 and imm in RETURNS_POINTER
        state.regs[0] = (MAYBE, pc + 1) if pointer else (NUM, 0, V.M64, pc + 1)
        state.pc += 1
        return state

    def _call_subprogram(self, state: State, start: int) -> State | None:
        if start in self.globals:
            self.called.add(start)
            state.clobber_arguments(None)
            state.regs[:6] = [UNKNOWN] * 6
            state.put(0, UNKNOWN, first=False)
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
