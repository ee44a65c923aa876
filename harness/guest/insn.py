"""BPF instructions: eight bytes each, as in include/uapi/linux/bpf.h (struct bpf_insn) and the BPF ISA, RFC 9669.

Names are UAPI's. An instruction travels as the tuple (code, dst, src, off, imm), off and imm signed; code lies in
bytearrays that are changed in place.
"""

from __future__ import annotations

import sys
from struct import Struct

INSN_SIZE = 8

# classes: code & 7
BPF_LD, BPF_LDX, BPF_ST, BPF_STX, BPF_ALU, BPF_JMP, BPF_JMP32, BPF_ALU64 = range(8)
# width of LD, LDX, ST, STX: code & 0x18
BPF_W, BPF_H, BPF_B, BPF_DW = 0x00, 0x08, 0x10, 0x18
# mode of the same: code & 0xe0
BPF_IMM, BPF_ABS, BPF_IND, BPF_MEM, BPF_MEMSX, BPF_ATOMIC = 0x00, 0x20, 0x40, 0x60, 0x80, 0xC0
# source operand of ALU and JMP: code & 8
BPF_K, BPF_X = 0x00, 0x08
# ALU operations: code & 0xf0
BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_OR, BPF_AND, BPF_LSH, BPF_RSH = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70
BPF_NEG, BPF_MOD, BPF_XOR, BPF_MOV, BPF_ARSH, BPF_END = 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0
# JMP operations: code & 0xf0
BPF_JA, BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET, BPF_JNE, BPF_JSGT, BPF_JSGE = (
    0x00,
    0x10,
    0x20,
    0x30,
    0x40,
    0x50,
    0x60,
    0x70,
)
BPF_CALL, BPF_EXIT, BPF_JLT, BPF_JLE, BPF_JSLT, BPF_JSLE, BPF_JCOND = 0x80, 0x90, 0xA0, 0xB0, 0xC0, 0xD0, 0xE0

LDIMM64 = BPF_LD | BPF_IMM | BPF_DW  # 0x18, two slots
CALL = BPF_JMP | BPF_CALL  # 0x85
EXIT = BPF_JMP | BPF_EXIT  # 0x95

# src_reg of ldimm64
(
    BPF_PSEUDO_MAP_FD,
    BPF_PSEUDO_MAP_VALUE,
    BPF_PSEUDO_BTF_ID,
    BPF_PSEUDO_FUNC,
    BPF_PSEUDO_MAP_IDX,
    BPF_PSEUDO_MAP_IDX_VALUE,
) = 1, 2, 3, 4, 5, 6
# src_reg of call
BPF_PSEUDO_CALL, BPF_PSEUDO_KFUNC_CALL = 1, 2

SIZE_OF_WIDTH = {BPF_B: 1, BPF_H: 2, BPF_W: 4, BPF_DW: 8}
WIDTH_OF_SIZE = {1: BPF_B, 2: BPF_H, 4: BPF_W, 8: BPF_DW}

# libbpf.c: the imm of calls that stand for something that could not be had.
POISON_CORE_RELO = 195896080  # 0xbad2310, "bad relo"
POISON_MAP_BASE = 2001000000
POISON_KFUNC_BASE = 2002000000

# regs is one byte: dst in the low nibble on little endian, in the high nibble on big endian (bitfields in struct
# bpf_insn).
_LITTLE = Struct("<BBhi")
_BIG = Struct(">BBhi")


def read(code: bytes | bytearray, index: int, byteorder: str = "little") -> tuple[int, int, int, int, int]:
    """The instruction at `index` (not byte offset) as (code, dst, src, off, imm); the caller keeps index within the
    code.
    """
    if byteorder == "little":
        op, regs, off, imm = _LITTLE.unpack_from(code, index * INSN_SIZE)
        return op, regs & 15, regs >> 4, off, imm
    op, regs, off, imm = _BIG.unpack_from(code, index * INSN_SIZE)
    return op, regs >> 4, regs & 15, off, imm


def pack(op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0, byteorder: str = "little") -> bytes:
    """Eight bytes. `imm` may be given unsigned (its low 32 bits count); `off` must fit a signed 16-bit field."""
    imm = (imm & 0xFFFFFFFF ^ 0x80000000) - 0x80000000
    if byteorder == "little":
        return _LITTLE.pack(op, dst | src << 4, off, imm)
    return _BIG.pack(op, dst << 4 | src, off, imm)


def native(op: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    """`pack` in this machine's byte order: code that is to be loaded here."""
    return pack(op, dst, src, off, imm, sys.byteorder)


def write(
    code: bytearray,
    index: int,
    op: int,
    dst: int = 0,
    src: int = 0,
    off: int = 0,
    imm: int = 0,
    byteorder: str = "little",
) -> None:
    """Put an instruction at `index` in place."""
    code[index * INSN_SIZE : (index + 1) * INSN_SIZE] = pack(op, dst, src, off, imm, byteorder)
