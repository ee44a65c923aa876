"""Writing a relocation's result into its instruction (relo_core.c: bpf_core_patch_insn, bpf_core_poison_insn)."""

from __future__ import annotations

from . import insn as I
from .core_value import U64, Result
from .errors import EINVAL, ERANGE, CoreError

SHRT_MAX = 32767
_ALU = (I.BPF_ALU, I.BPF_ALU64)
_MEMORY = (I.BPF_LDX, I.BPF_ST, I.BPF_STX)

UNSAFE_RESIZE = (
    "unsafe_resize: the load or store has another size than the target's field,"
    " and only pointers and unsigned integers can be resized"
)


def held_value(code: bytes | bytearray, index: int, byteorder: str) -> int | None:
    """What the instruction holds where a relocation would write, as unsigned 64 bits; None for other classes."""
    op, _, _, off, imm = I.read(code, index, byteorder)
    if op & 7 in _ALU:
        return imm & U64
    if op & 7 in _MEMORY:
        return off & U64
    if op == I.LDIMM64 and (index + 2) * I.INSN_SIZE <= len(code):
        return (imm & 0xFFFFFFFF) | (I.read(code, index + 1, byteorder)[4] & 0xFFFFFFFF) << 32
    return None


def poison(code: bytearray, index: int, byteorder: str) -> None:
    """Replace the instruction, both slots of an ldimm64, by `call 195896080` (0xbad2310)."""
    slots = 2 if code[index * I.INSN_SIZE] == I.LDIMM64 else 1
    if (index + slots) * I.INSN_SIZE > len(code):
        raise CoreError(f"ldimm64 at insn #{index} is cut off by the end of the program", EINVAL, "malformed_insn")
    for slot in range(index, index + slots):
        I.write(code, slot, I.CALL, imm=I.POISON_CORE_RELO, byteorder=byteorder)


def patch(code: bytearray, index: int, result: Result, byteorder: str) -> str | None:
    """Apply `result` to the instruction at `index`.

    Returns None when it was patched, the reason when it was poisoned for an unsafe resize, "" when poison was asked
    for. CoreError where libbpf gives up on the object: the instruction does not hold the value it should, or cannot
    take the new one.
    """
    if result.poison:
        poison(code, index, byteorder)
        return ""
    class_ = code[index * I.INSN_SIZE] & 7
    if class_ in _ALU:
        _patch_alu(code, index, result, byteorder)
    elif class_ in _MEMORY:
        return _patch_memory(code, index, result, byteorder)
    elif class_ == I.BPF_LD:
        _patch_ldimm64(code, index, result, byteorder)
    else:
        op = code[index * I.INSN_SIZE]
        raise CoreError(f"trying to relocate unrecognized insn #{index}, code {op:#x}", EINVAL, "unexpected_insn")
    return None


def _check(result: Result, held: int, index: int, what: str) -> None:
    if result.validate and held & U64 != result.orig:
        raise CoreError(
            f"unexpected insn #{index} ({what}) value: got {held & U64}, exp {result.orig} -> {result.new}",
            EINVAL,
            "mismatch",
        )


def _patch_alu(code: bytearray, index: int, result: Result, byteorder: str) -> None:
    op, dst, src, off, imm = I.read(code, index, byteorder)
    if op & I.BPF_X:
        raise CoreError(f"insn #{index} (ALU/ALU64) has a register as its source", EINVAL, "unexpected_insn")
    _check(result, imm, index, "ALU/ALU64")
    I.write(code, index, op, dst, src, off, result.new, byteorder)  # the low 32 bits; libbpf checks no range here


def _patch_memory(code: bytearray, index: int, result: Result, byteorder: str) -> str | None:
    op, dst, src, off, imm = I.read(code, index, byteorder)
    _check(result, off, index, "LDX/ST/STX")
    if result.new > SHRT_MAX:
        raise CoreError(f"insn #{index} (LDX/ST/STX) value too big: {result.new}", ERANGE, "out_of_range")
    if result.unsafe_resize:
        poison(code, index, byteorder)
        return UNSAFE_RESIZE
    if result.new_size != result.orig_size:
        size = I.SIZE_OF_WIDTH[op & 0x18]
        if size != result.orig_size:
            raise CoreError(
                f"insn #{index} (LDX/ST/STX) unexpected mem size: got {size}, exp {result.orig_size}",
                EINVAL,
                "unexpected_insn",
            )
        if result.new_size not in I.WIDTH_OF_SIZE:
            raise CoreError(
                f"insn #{index} (LDX/ST/STX) invalid new mem size: {result.new_size}", EINVAL, "out_of_range"
            )
        op = op & ~0x18 | I.WIDTH_OF_SIZE[result.new_size]
    I.write(code, index, op, dst, src, result.new, imm, byteorder)
    return None


def _patch_ldimm64(code: bytearray, index: int, result: Result, byteorder: str) -> None:
    held = held_value(code, index, byteorder)
    op, dst, src, off, _ = I.read(code, index, byteorder)
    if held is None or src or off or I.read(code, index + 1, byteorder)[:4] != (0, 0, 0, 0):
        raise CoreError(f"insn #{index} (LDIMM64) has unexpected form", EINVAL, "unexpected_insn")
    _check(result, held, index, "LDIMM64")
    I.write(code, index, op, dst, src, off, result.new, byteorder)
    I.write(code, index + 1, 0, imm=result.new >> 32, byteorder=byteorder)
