"""Subprograms inlined into their callers, for kernels without bpf-to-bpf calls (before 4.16): libbpf would hand the
calls over and the verifier refuse them.

A call gives its callee a stack frame of its own and keeps r6 to r9. Inlined, the callee's frame lies below its
caller's in the one frame there is, and what the callee overwrites of r6 to r9 is saved there when it is still needed
behind the call. The 512 bytes of stack are for all together.
"""

from __future__ import annotations

import sys

from . import insn as I
from .folding import is_used_from
from .linking import Func, Linked, Ref

_ORDER = sys.byteorder
_STACK = 512  # MAX_BPF_STACK
_MOST = 1 << 16
_FP = 10
_SAVED = (6, 7, 8, 9)
_ALU64_ADD_K, _ALU64_MOV_X = I.BPF_ALU64 | I.BPF_ADD, I.BPF_ALU64 | I.BPF_MOV | I.BPF_X
_STX_DW, _LDX_DW = I.BPF_STX | I.BPF_MEM | I.BPF_DW, I.BPF_LDX | I.BPF_MEM | I.BPF_DW
_JA, _JA_LONG = I.BPF_JMP | I.BPF_JA, I.BPF_JMP32 | I.BPF_JA
_ATOMIC_FETCH = 1


class CannotInline(Exception):
    """The message says what stands in the way."""


class _Insn:
    """An instruction that knows where it jumps to (`target`, another of these) and where it came from (`origin`, its
    index before; -1 when it is new). `size` 0 is a mere place to jump to; `moved` stands where a call stood."""

    __slots__ = ("at", "dst", "imm", "moved", "off", "op", "origin", "size", "src", "target")

    def __init__(self, op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0, origin: int = -1) -> None:
        self.op, self.dst, self.src, self.off, self.imm = op, dst, src, off, imm
        self.origin = origin
        self.size = 1
        self.at = 0
        self.target: _Insn | None = None
        self.moved: _Insn | None = None

    def jumps(self) -> bool:
        return self.op & 7 in (I.BPF_JMP, I.BPF_JMP32) and self.op & 0xF0 not in (I.BPF_CALL, I.BPF_EXIT)

    def calls(self) -> bool:
        return self.op == I.CALL and self.src == I.BPF_PSEUDO_CALL


def _label() -> _Insn:
    place = _Insn(0)
    place.size = 0
    return place


def inline(linked: Linked) -> tuple[Linked, dict[int, list[int]]]:
    """The same program without calls of its own functions, and where each instruction went: index -> indexes (once for
    each call; none for what is gone). Raises CannotInline."""
    flat = _Inliner(linked).body(0, 0)
    _lay_out(flat)
    places: dict[int, list[int]] = {}
    for insn in flat:
        if insn.size and insn.origin >= 0:
            places.setdefault(insn.origin, []).append(insn.at)
    result = Linked()
    result.code = _encoded(flat)
    result.funcs = [Func(linked.funcs[0].prog, 0, len(result.code) // I.INSN_SIZE)]
    result.refs = [
        Ref(at, ref.kind, ref.name, ref.off)
        for ref in linked.refs if ref.kind != "subprog" for at in places.get(ref.insn, ())
    ]  # fmt: skip
    result.refs.sort(key=lambda ref: ref.insn)
    return result, places


class _Inliner:
    def __init__(self, linked: Linked) -> None:
        self._code = linked.code
        self._sizes = {func.start: func.insns for func in linked.funcs}
        self._names = {func.start: func.prog.name for func in linked.funcs}
        self._clobbers: dict[int, set[int]] = {}
        self._count = 0

    def body(self, start: int, base: int) -> list[_Insn]:
        """The function at `start` with all it calls, its frame `base` bytes below the top of the stack."""
        own = self._decoded(start)
        self._count += len(own)
        if self._count > _MOST:
            raise CannotInline("inlined it would have more than %d instructions" % _MOST)
        saved = {id(insn): self._saved(insn) for insn in own if insn.calls()}
        below = base + _frame(own)
        deepest = below + 8 * max((len(registers) for registers in saved.values()), default=0)
        if deepest > _STACK:
            raise CannotInline("the stack of %s() and its callers, put together, is too deep" % self._names[start])
        flat: list[_Insn] = []
        targets = {id(insn.target) for insn in own if insn.target is not None}
        for number, insn in enumerate(own):
            if insn.calls():
                flat += self._called(insn, saved[id(insn)], below, deepest)
            else:
                following = own[number + 1] if number + 1 < len(own) else None
                flat += _moved_frame(insn, following, base, targets) if base else [insn]
        return flat

    def _called(self, call: _Insn, saved: list[int], below: int, deepest: int) -> list[_Insn]:
        """What stands in place of a call."""
        slots = [(register, -(below + 8 * (number + 1))) for number, register in enumerate(saved)]
        after = _label()
        body = self.body(self._callee(call), deepest)
        for insn in body:
            if insn.op == I.EXIT and insn.size:
                insn.op, insn.dst, insn.src, insn.off, insn.imm, insn.target = _JA, 0, 0, 0, 0, after
        if body[-1].target is after and body[-1].op == _JA:
            body[-1].size = 0  # falls through
        before = [_label(), *(_Insn(_STX_DW, _FP, register, offset) for register, offset in slots)]
        behind = [_Insn(_LDX_DW, register, _FP, offset) for register, offset in slots]
        call.moved = before[0]
        return [*before, *body, after, *behind]

    def _saved(self, call: _Insn) -> list[int]:
        """Registers the callee overwrites and the caller still reads. (One that is read behind the call was set before
        it on every path, or the verifier would refuse the program with its calls too.)"""
        overwritten = self._overwritten(self._callee(call))
        behind = [call.origin + 1]
        return [r for r in _SAVED if r in overwritten and is_used_from(self._code, behind, r)]

    def _overwritten(self, start: int) -> set[int]:
        """r6 to r9, as far as the function writes them itself (what it calls saves them again)."""
        if start not in self._clobbers:
            own = self._decoded(start)
            found = {i.dst for i in own if i.op & 7 in (I.BPF_ALU, I.BPF_ALU64, I.BPF_LDX, I.BPF_LD)}
            found |= {i.src for i in own if _is_fetch(i)}
            self._clobbers[start] = found & set(_SAVED)
        return self._clobbers[start]

    def _callee(self, call: _Insn) -> int:
        start = call.origin + 1 + call.imm
        if start not in self._sizes:
            raise CannotInline("it calls into the middle of a function")
        return start

    def _decoded(self, start: int) -> list[_Insn]:
        end = start + self._sizes[start]
        own = [_Insn(*I.read(self._code, at, _ORDER), at) for at in range(start, end)]
        at = start
        while at < end:
            insn = own[at - start]
            if insn.op == I.LDIMM64:
                if insn.src == I.BPF_PSEUDO_FUNC:
                    raise CannotInline("it takes the address of a function of its own")
                at += 1
            elif insn.op & 7 == I.BPF_LD:
                raise CannotInline("it uses BPF_LD_ABS or BPF_LD_IND, whose r6 is not to be moved")
            elif insn.jumps():
                to = at + 1 + (insn.imm if insn.op == _JA_LONG else insn.off)
                if not start <= to < end:
                    raise CannotInline("it jumps out of a function")
                insn.target = own[to - start]
            at += 1
        return own


def _is_fetch(insn: _Insn) -> bool:
    return insn.op & 7 == I.BPF_STX and insn.op & 0xE0 == I.BPF_ATOMIC and bool(insn.imm & _ATOMIC_FETCH)


def _frame(own: list[_Insn]) -> int:
    """Bytes of stack a function may use, rounded up to 8: never less than it does."""
    deepest = 0
    for insn in own:
        kind = insn.op & 7
        if (kind == I.BPF_LDX and insn.src == _FP) or (kind in (I.BPF_ST, I.BPF_STX) and insn.dst == _FP):
            deepest = max(deepest, -insn.off)
        elif insn.op == _ALU64_ADD_K and -_STACK <= insn.imm < 0:
            deepest = max(deepest, -insn.imm)  # a copy of r10, or something else: then the frame is taken too large
    return (deepest + 7) & ~7


def _moved_frame(insn: _Insn, following: _Insn | None, base: int, targets: set[int]) -> list[_Insn]:
    """An instruction with its frame `base` bytes lower."""
    kind = insn.op & 7
    writes = kind in (I.BPF_ST, I.BPF_STX) and insn.dst == _FP and not (kind == I.BPF_STX and insn.src == _FP)
    if writes or (kind == I.BPF_LDX and insn.src == _FP):
        insn.off -= base
    elif insn.op == _ALU64_MOV_X and insn.src == _FP:
        # Before 4.10 the verifier followed one addition to a copy of r10, no second: so they become one where they can.
        merged = following is not None and following.op == _ALU64_ADD_K and following.dst == insn.dst
        if following is not None and merged and id(following) not in targets:
            following.imm -= base
        else:
            return [insn, _Insn(_ALU64_ADD_K, insn.dst, 0, 0, -base)]
    elif insn.origin >= 0 and _FP in _operands(insn):
        raise CannotInline("it does more with its stack pointer than read, write and copy it")
    return [insn]


def _operands(insn: _Insn) -> tuple[int, ...]:
    """Registers an instruction names, where its fields are registers."""
    kind = insn.op & 7
    if insn.op in (I.CALL, I.EXIT) or kind == I.BPF_LD or insn.op == 0:
        return ()
    has_source = kind in (I.BPF_LDX, I.BPF_STX) or (kind != I.BPF_ST and insn.op & I.BPF_X)
    return (insn.dst, insn.src) if has_source else (insn.dst,)


def _lay_out(flat: list[_Insn]) -> None:
    at = 0
    for insn in flat:
        insn.at = at
        at += insn.size
    for insn in flat:
        if insn.target is None or not insn.size:
            continue
        target = insn.target.moved or insn.target
        distance = target.at - insn.at - 1
        if insn.op == _JA_LONG:
            insn.imm = distance
        elif -(1 << 15) <= distance < 1 << 15:
            insn.off = distance
        else:
            raise CannotInline("inlined, a jump is too far")


def _encoded(flat: list[_Insn]) -> bytearray:
    return bytearray(b"".join(I.native(i.op, i.dst, i.src, i.off, i.imm) for i in flat if i.size))
