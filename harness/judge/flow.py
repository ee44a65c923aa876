"""Where control can go, statically: the instructions reachable from one, over every branch and call.

An over-approximation on purpose: what is *not* in it certainly cannot follow. It serves one question: may an
instruction that an analysis load did not visit lie behind a poisoned one that was jumped over, or is it dead
whatever that poison hides?
"""

from __future__ import annotations

import struct
from collections import defaultdict, deque
from collections.abc import Sequence

# linux/bpf.h, linux/bpf_common.h
_LD_IMM64 = 0x18
_CLASS_JMP, _CLASS_JMP32 = 0x05, 0x06
_JA, _CALL, _EXIT, _X = 0x00, 0x80, 0x90, 0x08
_PSEUDO_CALL, _PSEUDO_FUNC = 1, 4

Insn = tuple[int, int, int, int]  # code, src_reg, off, imm


def decode(raw: bytes) -> list[Insn]:
    """Split little-endian instruction bytes (8 each) into (code, src_reg, off, imm)."""
    return [(code, regs >> 4, off, imm) for code, regs, off, imm in struct.iter_unpack("<BBhi", raw[: len(raw) & ~7])]


class Flow:
    """The control flow of one entry program with its subprograms (`starts`: where each begins, in final order)."""

    def __init__(self, insns: Sequence[Insn], starts: Sequence[int]) -> None:
        self._insns = insns
        self._starts = sorted(starts) or [0]
        self._returns: dict[int, list[int]] = defaultdict(list)
        # `gotox` (6.19) jumps to addresses from a map: then everything may follow.
        self._opaque = any(code == _CLASS_JMP | _JA | _X for code, *_ in insns)
        for at, (code, src, _, imm) in enumerate(insns):
            if code == _CLASS_JMP | _CALL and src == _PSEUDO_CALL:
                self._returns[at + 1 + imm].append(at + 1)

    def after(self, insn: int) -> dict[int, int]:
        """Every instruction that control can reach once `insn` has fallen through, with its distance in steps."""
        if self._opaque:
            return dict.fromkeys(range(len(self._insns)), 1)
        found = {at: 1 for at in [insn + 1] if at < len(self._insns)}
        queue = deque(found)
        while queue:
            at = queue.popleft()
            for following in self._successors(at):
                if 0 <= following < len(self._insns) and following not in found:
                    found[following] = found[at] + 1
                    queue.append(following)
        return found

    def _successors(self, at: int) -> list[int]:
        code, src, off, imm = self._insns[at]
        if code == _LD_IMM64:
            return [at + 2, at + 1 + imm] if src == _PSEUDO_FUNC else [at + 2]
        kind, operation = code & 0x07, code & 0xF0
        if kind not in {_CLASS_JMP, _CLASS_JMP32}:
            return [at + 1]
        if operation == _EXIT:
            return self._returns[self._start_of(at)]
        if operation == _CALL:
            return [at + 1, at + 1 + imm] if src == _PSEUDO_CALL else [at + 1]
        if operation == _JA:
            return [at + 1 + (imm if kind == _CLASS_JMP32 else off)]
        return [at + 1, at + 1 + off]

    def _start_of(self, insn: int) -> int:
        return max(start for start in self._starts if start <= insn)
