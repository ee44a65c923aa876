"""What a register or a stack slot may hold, as far as decides branches: the verifier's bpf_reg_state, much reduced.

A value is a tuple, its first item says of what kind:

    (NUM, low, high, ident)   a number, low <= it <= high, unsigned 64 bits; equal idents are copies of one number
    (STACK, frame, offset)    a pointer into the stack of a frame; offset None: not known
    (DATA, map, offset)       a pointer into the value of a data section's map; offset None: not known
    (PTR, key, value)         some other pointer, never null; of a map: its sizes in bytes, else 0
    (MAYBE, ident)            a pointer or null
    (CODE, insn)              the address of a function
    (OPAQUE,)                 known to the verifier and not to us: a Kconfig value, and what is made of it

Kernel: kernel/bpf/verifier.c, adjust_reg_min_max_vals(), is_branch_taken(), reg_set_min_max().
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.guest import insn as I

Value = tuple[Any, ...]

NUM, STACK, DATA, PTR, MAYBE, CODE, OPAQUE = range(7)
M64, M32 = (1 << 64) - 1, (1 << 32) - 1
POINTER: Value = (PTR, 0, 0)
UNKNOWN: Value = (NUM, 0, M64, 0)
SECRET: Value = (OPAQUE,)


def const(number: int) -> Value:
    """A known number; taken modulo 2**64."""
    number &= M64
    return (NUM, number, number, 0)


def between(low: int, high: int, ident: int = 0) -> Value:
    """A number in a range."""
    return (NUM, low, high, ident if low != high else 0)


def known(value: Value) -> int | None:
    """The number, when there is only one."""
    return value[1] if value[0] == NUM and value[1] == value[2] else None


def signed(number: int, bits: int = 64) -> int:
    """The two's complement reading of an unsigned number."""
    top = 1 << (bits - 1)
    return ((number & ((1 << bits) - 1)) ^ top) - top


def low32(value: Value) -> Value:
    """What a 32-bit register read sees."""
    if value[0] != NUM:
        return (NUM, 0, M32, 0)
    if value[2] <= M32:
        return value
    return const(value[1] & M32) if value[1] == value[2] else (NUM, 0, M32, 0)


def _number_op(operation: int, a: int, b: int, bits: int) -> int | None:
    """ALU operations whose result the verifier knows when it knows both operands; it forgets at the others."""
    mask = bits - 1
    if operation == I.BPF_ARSH:
        return signed(a, bits) >> (b & mask)
    compute = _OPERATIONS.get(operation)
    return compute(a, b, mask) if compute is not None else None


_OPERATIONS: dict[int, Callable[[int, int, int], int]] = {
    I.BPF_ADD: lambda a, b, _: a + b,
    I.BPF_SUB: lambda a, b, _: a - b,
    I.BPF_MUL: lambda a, b, _: a * b,
    I.BPF_AND: lambda a, b, _: a & b,
    I.BPF_OR: lambda a, b, _: a | b,
    I.BPF_XOR: lambda a, b, _: a ^ b,
    I.BPF_LSH: lambda a, b, mask: a << (b & mask),
    I.BPF_RSH: lambda a, b, mask: a >> (b & mask),
}


def arithmetic(operation: int, a: Value, b: Value, wide: bool) -> Value:
    """`a op b` for two numbers, of 64 bits or (not `wide`) 32."""
    bits, top = (64, M64) if wide else (32, M32)
    if not wide:
        a, b = low32(a), low32(b)
    if operation == I.BPF_XOR and a == b and a[3]:
        return const(0)
    x, y = known(a), known(b)
    if x is not None and y is not None:
        number = _number_op(operation, x, y, bits)
        return (NUM, 0, top, 0) if number is None else const(number & top)
    return _range(operation, a, b, bits)


def _range(operation: int, a: Value, b: Value, bits: int) -> Value:
    """Ranges, where they stay within the register."""
    y, top = known(b), (1 << bits) - 1
    low, high = 0, top
    if operation == I.BPF_ADD and a[2] + b[2] <= top:
        low, high = a[1] + b[1], a[2] + b[2]
    elif operation == I.BPF_SUB and a[1] >= b[2]:
        low, high = a[1] - b[2], a[2] - b[1]
    elif operation == I.BPF_AND:
        high = min(a[2], b[2])
    elif operation == I.BPF_OR:
        low, high = max(a[1], b[1]), (1 << max(a[2].bit_length(), b[2].bit_length())) - 1
    elif operation == I.BPF_RSH and y is not None:
        low, high = a[1] >> (y & (bits - 1)), a[2] >> (y & (bits - 1))
    elif operation == I.BPF_LSH and y is not None and a[2] << (y & (bits - 1)) <= top:
        low, high = a[1] << (y & (bits - 1)), a[2] << (y & (bits - 1))
    elif operation == I.BPF_MUL and a[2] * b[2] <= top:
        low, high = a[1] * b[1], a[2] * b[2]
    return (NUM, low, high, 0)


# -- branches


def _signed_range(value: Value, bits: int) -> tuple[int, int] | None:
    """The signed range, unless it wraps."""
    top = 1 << (bits - 1)
    if value[2] < top or value[1] >= top:
        return signed(value[1], bits), signed(value[2], bits)
    return None


def taken(operation: int, a: Value, b: Value, wide: bool) -> bool | None:
    """Whether `if a op b` jumps: always, never, or None: it may do either."""
    if a[0] != NUM or b[0] != NUM:
        return _pointer_taken(operation, a, b) if wide else None
    if not wide:
        a, b = low32(a), low32(b)
    if operation == I.BPF_JSET:
        return _bits_taken(a, b)
    if operation in _SIGNED:
        x, y = _signed_range(a, 64 if wide else 32), _signed_range(b, 64 if wide else 32)
        if x is None or y is None:
            return None
        return _compare(_SIGNED[operation], x, y)
    return _compare(operation, (a[1], a[2]), (b[1], b[2]))


def _bits_taken(a: Value, b: Value) -> bool | None:
    x, y = known(a), known(b)
    if x is not None and y is not None:
        return bool(x & y)
    return False if 0 in (x, y) else None


# A signed comparison is the unsigned one on the signed ranges.
_SIGNED = {I.BPF_JSGT: I.BPF_JGT, I.BPF_JSGE: I.BPF_JGE, I.BPF_JSLT: I.BPF_JLT, I.BPF_JSLE: I.BPF_JLE}


def _compare(operation: int, a: tuple[int, int], b: tuple[int, int]) -> bool | None:
    if operation in (I.BPF_JEQ, I.BPF_JNE):
        if a[1] < b[0] or b[1] < a[0]:
            return operation == I.BPF_JNE
        return operation == I.BPF_JEQ if a == b and a[0] == a[1] else None
    if operation == I.BPF_JLT:
        return _compare(I.BPF_JGT, b, a)
    if operation == I.BPF_JLE:
        return _compare(I.BPF_JGE, b, a)
    strict = operation == I.BPF_JGT
    if a[0] > b[1] or (not strict and a[0] >= b[1]):
        return True
    if a[1] < b[0] or (strict and a[1] <= b[0]):
        return False
    return None


def _pointer_taken(operation: int, a: Value, b: Value) -> bool | None:
    """A pointer that cannot be null, compared with null; nothing else is known of pointers (reg_not_null(), which has
    neither the stack nor the context).
    """
    if known(a) == 0:
        a, b = b, a
    if known(b) != 0 or a[0] not in (DATA, PTR) or operation not in (I.BPF_JEQ, I.BPF_JNE):
        return None
    return operation == I.BPF_JNE


_OPPOSITE = {
    I.BPF_JEQ: I.BPF_JNE, I.BPF_JNE: I.BPF_JEQ, I.BPF_JGT: I.BPF_JLE, I.BPF_JLE: I.BPF_JGT, I.BPF_JGE: I.BPF_JLT,
    I.BPF_JLT: I.BPF_JGE, I.BPF_JSGT: I.BPF_JSLE, I.BPF_JSLE: I.BPF_JSGT, I.BPF_JSGE: I.BPF_JSLT,
    I.BPF_JSLT: I.BPF_JSGE,
}  # fmt: skip
_MIRRORED = {
    I.BPF_JEQ: I.BPF_JEQ, I.BPF_JNE: I.BPF_JNE, I.BPF_JGT: I.BPF_JLT, I.BPF_JLT: I.BPF_JGT, I.BPF_JGE: I.BPF_JLE,
    I.BPF_JLE: I.BPF_JGE, I.BPF_JSGT: I.BPF_JSLT, I.BPF_JSLT: I.BPF_JSGT, I.BPF_JSGE: I.BPF_JSLE,
    I.BPF_JSLE: I.BPF_JSGE,
}  # fmt: skip


def refine(operation: int, a: Value, b: Value, wide: bool, jumps: bool) -> tuple[Value, Value]:
    """What both sides are known to be behind `if a op b`, on the side that jumps or the one that does not."""
    if operation == I.BPF_JSET:
        return a, b
    holds = operation if jumps else _OPPOSITE[operation]
    return _bounded(holds, a, b, wide), _bounded(_MIRRORED[holds], b, a, wide)


def _bounded(holds: int, a: Value, b: Value, wide: bool) -> Value:
    if a[0] == MAYBE:
        if known(b) != 0 or not wide or holds not in (I.BPF_JEQ, I.BPF_JNE):
            return a
        return const(0) if holds == I.BPF_JEQ else POINTER
    if a[0] != NUM or b[0] != NUM or (not wide and (a[2] > M32 or b[2] > M32)):
        return a
    if holds in _SIGNED:
        top = 1 << (63 if wide else 31)
        if a[2] >= top or b[2] >= top:
            return a
        holds = _SIGNED[holds]
    low, high = _narrowed(holds, a[1], a[2], b)
    return between(low, high, a[3]) if low <= high else a


def _narrowed(holds: int, low: int, high: int, b: Value) -> tuple[int, int]:
    if holds == I.BPF_JEQ:
        return max(low, b[1]), min(high, b[2])
    if holds == I.BPF_JNE:
        only = known(b)
        return (low + 1, high) if only == low else (low, high - 1) if only == high else (low, high)
    if holds == I.BPF_JGT:
        return max(low, b[1] + 1), high
    if holds == I.BPF_JGE:
        return max(low, b[1]), high
    if holds == I.BPF_JLT:
        return low, min(high, b[2] - 1)
    return low, min(high, b[2])


def join(a: Value, b: Value) -> Value:
    """What holds of both."""
    if a == b:
        return a
    if OPAQUE in (a[0], b[0]):
        return SECRET
    if a[0] == NUM == b[0]:
        return (NUM, min(a[1], b[1]), max(a[2], b[2]), a[3] if a[3] == b[3] else 0)
    if a[0] == b[0] and a[0] in (STACK, DATA) and a[1] == b[1]:
        return (a[0], a[1], None)
    return POINTER if a[0] == PTR == b[0] else UNKNOWN
