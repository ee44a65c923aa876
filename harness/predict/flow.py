"""What is known of a program's instructions without walking it: where paths meet, which registers are still read."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Literal

from harness.guest import insn as I

Insn = tuple[int, int, int, int, int]  # code, dst, src, off, imm

_ARGUMENTS = 0b111110  # r1 to r5
_CLOBBERED = 0b111111
_SAVED = 0b1111000000


class Decoded:
    """Instructions of `code`, decoded once. `opaque`: some jump leads where a map says (gotox)."""

    def __init__(self, code: bytes, byteorder: str = sys.byteorder) -> None:
        self.byteorder: Literal["little", "big"] = "little" if byteorder == "little" else "big"
        self.count = len(code) // I.INSN_SIZE
        self._insns = [I.read(code, index, byteorder) for index in range(self.count)]
        self.opaque = any(op == I.BPF_JMP | I.BPF_JA | I.BPF_X for op, *_ in self._insns)

    def at(self, index: int) -> Insn:
        """One of them."""
        return self._insns[index]

    def successors(self, index: int) -> tuple[int, ...]:
        """Where control may go within the function."""
        op, _, _, off, imm = self._insns[index]
        if op & 7 not in (I.BPF_JMP, I.BPF_JMP32):
            return (index + (2 if op == I.LDIMM64 else 1),)
        operation = op & 0xF0
        if operation == I.BPF_EXIT:
            return ()
        if operation == I.BPF_CALL:
            return (index + 1,)
        if operation == I.BPF_JA:
            return (index + 1 + (off if op & 7 == I.BPF_JMP else imm),)
        return (index + 1, index + 1 + off)


def meeting_points(insns: Decoded) -> frozenset[int]:
    """Instructions at which more than one path may arrive: targets of jumps, and what follows a call."""
    found = set()
    for index in range(insns.count):
        op, _, src, _, imm = insns.at(index)
        if op == I.CALL:
            if src == I.BPF_PSEUDO_CALL:
                found |= {index + 1, index + 1 + imm}
        elif op == I.LDIMM64 and src == I.BPF_PSEUDO_FUNC:
            found.add(index + 1 + imm)
        elif op & 7 in (I.BPF_JMP, I.BPF_JMP32):
            found.update(insns.successors(index)[-1:])
    return frozenset(found)


def live_registers(insns: Decoded) -> Sequence[int]:
    """For each instruction a mask of the registers that may be read from there on before they are written."""
    effects = [_effect(*insns.at(index)) for index in range(insns.count)]
    before: list[list[int]] = [[] for _ in range(insns.count)]
    for index in range(insns.count):
        for following in insns.successors(index):
            if 0 <= following < insns.count:
                before[following].append(index)
    live = [0] * insns.count
    todo = list(range(insns.count))
    while todo:
        index = todo.pop()
        after = 0
        for following in insns.successors(index):
            if 0 <= following < insns.count:
                after |= live[following]
        reads, writes = effects[index]
        now = reads | (after & ~writes)
        if now != live[index]:
            live[index] = now
            todo += before[index]
    return live


def _effect(op: int, dst: int, src: int, _off: int, imm: int) -> tuple[int, int]:
    """Masks of the registers an instruction reads and writes."""
    kind = op & 7
    d, s = 1 << dst, 1 << src
    if kind in (I.BPF_ALU, I.BPF_ALU64):
        reads = (s if op & I.BPF_X else 0) | (d if op & 0xF0 != I.BPF_MOV else 0)
        return reads, d
    if kind == I.BPF_LDX:
        return s, d
    if kind == I.BPF_LD:
        return (0, d) if op == I.LDIMM64 else (s | 1 << 6, _CLOBBERED)
    if kind in (I.BPF_ST, I.BPF_STX):
        fetches = kind == I.BPF_STX and op & 0xE0 == I.BPF_ATOMIC
        return d | (s if kind == I.BPF_STX else 0) | (1 if fetches and imm & 0xF0 == 0xF0 else 0), 0
    if op == I.CALL:
        return _ARGUMENTS, _CLOBBERED
    if op == I.EXIT:
        return 1 | _SAVED, 0
    if op & 0xF0 == I.BPF_JA:
        return 0, 0
    return d | (s if op & I.BPF_X else 0), 0
