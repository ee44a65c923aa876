"""What an instruction computes from constants and registers (adjust_scalar_min_max_vals(), adjust_ptr_min_max_vals(),
check_ld_imm() in the kernel).
"""

from __future__ import annotations

from harness.guest import insn as I
from harness.predict import values as V
from harness.predict.final import Program
from harness.predict.flow import Decoded, Insn
from harness.predict.state import State
from harness.predict.values import CODE, DATA, NUM, OPAQUE, POINTER, PTR, STACK, UNKNOWN, Value, const


def ldimm64(program: Program, insns: Decoded, pc: int) -> Value:
    """What the two instructions at `pc` load."""
    _op, _dst, src, _off, imm = insns.at(pc)
    if pc in program.map_values:
        return (DATA, *program.map_values[pc])
    if pc in program.symbols:
        exists = program.symbols[pc]
        return UNKNOWN if exists is None else POINTER if exists else const(0)
    if src == I.BPF_PSEUDO_FUNC:
        return (CODE, pc + 1 + imm)
    if src:
        return (PTR, *program.map_sizes.get(pc, (0, 0)))
    return UNKNOWN if pc in program.opaque else const((imm & V.M32) | (insns.at(pc + 1)[4] & V.M32) << 32)


def alu(program: Program, state: State, insn: Insn) -> Value:
    """The result of an ALU instruction of either width."""
    op, dst, src, off, imm = insn
    wide, operation = op & 7 == I.BPF_ALU64, op & 0xF0
    a = state.reg(dst)
    if a[0] == OPAQUE and operation != I.BPF_MOV:
        return a
    if operation in (I.BPF_END, I.BPF_NEG):
        return UNKNOWN if wide or operation == I.BPF_END else (NUM, 0, V.M32, 0)
    b = state.reg(src) if op & I.BPF_X else const(imm)
    if state.pc in program.opaque:
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
        return _pointer_arithmetic(operation, a, b) if wide else (NUM, 0, V.M32, 0)
    if operation in (I.BPF_DIV, I.BPF_MOD):
        return UNKNOWN if wide else (NUM, 0, V.M32, 0)
    return V.arithmetic(operation, a, b, wide)


def _pointer_arithmetic(operation: int, a: Value, b: Value) -> Value:
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
