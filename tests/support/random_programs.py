"""Random BPF programs that any verifier accepts: numbers, branches, the stack and static subprograms, no loops.

What is known where is all they are about: registers hold constants, random numbers, pieces of random numbers, and
what was kept on the stack; branches compare them. r6 to r9 hold numbers throughout, r0 to r5 within a block.
"""

from __future__ import annotations

import random

from harness.guest import insn as I

_PRANDOM = 7
_JUMPS = (
    I.BPF_JEQ, I.BPF_JNE, I.BPF_JGT, I.BPF_JGE, I.BPF_JLT, I.BPF_JLE, I.BPF_JSGT, I.BPF_JSGE, I.BPF_JSLT, I.BPF_JSLE,
    I.BPF_JSET,
)  # fmt: skip
_ALU = (I.BPF_ADD, I.BPF_SUB, I.BPF_AND, I.BPF_OR, I.BPF_XOR, I.BPF_LSH, I.BPF_RSH, I.BPF_MUL)
_NUMBERS = (0, 0, 1, 1, 2, 3, 7, 8, 255, 256, 0x7FFFFFFF, -1, -2)
_SLOTS = (-8, -16, -24)
Insn = tuple[int, int, int, int, int]


class RandomProgram:
    """`code` of one program and the `starts` of its functions. `ranges`: not only constants; `subprograms`: calls."""

    def __init__(self, seed: int, *, ranges: bool = True, subprograms: bool = True) -> None:
        self._chance = random.Random(seed)
        self._ranges = ranges
        functions = [self._function(entry=True, calls=subprograms)]
        # A function that nobody calls would be refused as unreachable.
        callees = sorted({imm for op, _, src, _, imm in functions[0] if op == I.CALL and src == I.BPF_PSEUDO_CALL})
        functions += [self._function(entry=False, calls=False) for _ in callees]
        self.starts = []
        at = 0
        for function in functions:
            self.starts.append(at)
            at += len(function)
        insns = [insn for function in functions for insn in function]
        for index, (op, dst, src, off, imm) in enumerate(insns):
            if op == I.CALL and src == I.BPF_PSEUDO_CALL:
                insns[index] = (op, dst, src, off, self.starts[1 + callees.index(imm)] - index - 1)
        self.insns = insns
        self.code = b"".join(I.native(*insn) for insn in insns)

    def _function(self, *, entry: bool, calls: bool) -> list[Insn]:
        blocks = [self._block(entry and calls) for _ in range(self._chance.randrange(5, 9))]
        # Every register and slot holds something first.
        head = [self._number(register) for register in range(6, 10)]
        if not entry and self._chance.random() < 0.7:
            head[0] = (I.BPF_ALU64 | I.BPF_MOV | I.BPF_X, 6, 1, 0, 0)
        head += [(I.BPF_STX | I.BPF_MEM | I.BPF_DW, 10, 6, slot, 0) for slot in _SLOTS]
        lengths = [len(block) + 1 for block in blocks]  # and a jump behind each
        made = list(head)
        for number, block in enumerate(blocks):
            made += block
            over = self._chance.randrange(0, len(blocks) - number)
            made.append(self._jump(sum(lengths[number + 1 : number + 1 + over])))
        result = self._chance.choice((6, 7, 8, 9))
        if entry:
            return [*made, (I.BPF_ALU64 | I.BPF_MOV | I.BPF_K, 0, 0, 0, 0), (I.EXIT, 0, 0, 0, 0)]
        return [*made, (I.BPF_ALU64 | I.BPF_MOV | I.BPF_X, 0, result, 0, 0), (I.EXIT, 0, 0, 0, 0)]

    def _number(self, register: int) -> Insn:
        return (I.BPF_ALU64 | I.BPF_MOV | I.BPF_K, register, 0, 0, self._chance.choice(_NUMBERS))

    def _block(self, calls: bool) -> list[Insn]:
        makers = [self._copy, self._arithmetic, self._spill, self._fill, lambda: [self._number(self._kept())]]
        if self._ranges:
            makers.append(self._random)
        if calls:
            makers.append(self._call)
        made: list[Insn] = []
        for _ in range(self._chance.randrange(1, 4)):
            made += self._chance.choice(makers)()
        return made

    def _kept(self) -> int:
        return self._chance.randrange(6, 10)

    def _copy(self) -> list[Insn]:
        wide = self._chance.random() < 0.7
        return [((I.BPF_ALU64 if wide else I.BPF_ALU) | I.BPF_MOV | I.BPF_X, self._kept(), self._kept(), 0, 0)]

    def _arithmetic(self) -> list[Insn]:
        kind = I.BPF_ALU64 if self._chance.random() < 0.6 else I.BPF_ALU
        operation = self._chance.choice(_ALU)
        if operation in (I.BPF_LSH, I.BPF_RSH):
            return [(kind | operation | I.BPF_K, self._kept(), 0, 0, self._chance.choice((1, 4, 31)))]
        if self._chance.random() < 0.5:
            return [(kind | operation | I.BPF_X, self._kept(), self._kept(), 0, 0)]
        return [(kind | operation | I.BPF_K, self._kept(), 0, 0, self._chance.choice(_NUMBERS))]

    def _spill(self) -> list[Insn]:
        if self._chance.random() < 0.3:
            slot, number = self._chance.choice(_SLOTS), self._chance.choice(_NUMBERS)
            return [(I.BPF_ST | I.BPF_MEM | I.BPF_DW, 10, 0, slot, number)]
        return [(I.BPF_STX | I.BPF_MEM | I.BPF_DW, 10, self._kept(), self._chance.choice(_SLOTS), 0)]

    def _fill(self) -> list[Insn]:
        return [(I.BPF_LDX | I.BPF_MEM | I.BPF_DW, self._kept(), 10, self._chance.choice(_SLOTS), 0)]

    def _random(self) -> list[Insn]:
        kept = self._kept()
        made = [(I.CALL, 0, 0, 0, _PRANDOM), (I.BPF_ALU64 | I.BPF_MOV | I.BPF_X, kept, 0, 0, 0)]
        if self._chance.random() < 0.6:
            made.append((I.BPF_ALU64 | I.BPF_AND | I.BPF_K, kept, 0, 0, self._chance.choice((1, 3, 7, 255))))
        return made

    def _call(self) -> list[Insn]:
        kept = self._kept()
        return [
            (I.BPF_ALU64 | I.BPF_MOV | I.BPF_X, 1, kept, 0, 0),
            (I.CALL, 0, I.BPF_PSEUDO_CALL, 0, self._chance.randrange(2)),
            (I.BPF_ALU64 | I.BPF_MOV | I.BPF_X, self._kept(), 0, 0, 0),
        ]

    def _jump(self, over: int) -> Insn:
        kind = I.BPF_JMP if self._chance.random() < 0.6 else I.BPF_JMP32
        operation = self._chance.choice(_JUMPS)
        if self._chance.random() < 0.3:
            return (kind | operation | I.BPF_X, self._kept(), self._kept(), over, 0)
        return (kind | operation | I.BPF_K, self._kept(), 0, over, self._chance.choice(_NUMBERS))
