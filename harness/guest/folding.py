"""Read-only data without global data maps: constants put into the instructions that would load them.

Kernels before 5.2 know no map values in ldimm64, and libbpf gives up there. A read of `.rodata` or of a Kconfig value
is

    rX = ldimm64 map_value+OFF ; ... ; rY = *(SIZE *)(rX + N)

and its value is known before the load. Where rX is used for nothing but such reads within its basic block, each read
becomes `rY = VALUE` and the address itself 0. Anything else (a pointer handed to a helper, a read behind a jump) stays
as it was.
"""

from __future__ import annotations

import sys

from . import insn as I

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .linking import Linked

_MOV64_K, _MOV32_K = 0xB7, 0xB4
_JUMPS = (I.BPF_JMP, I.BPF_JMP32)
_ORDER = sys.byteorder


class Site:
    """An ldimm64 at instruction `at` that would hold the address of `data[offset]`."""

    __slots__ = ("at", "data", "offset")

    def __init__(self, at: int, data: bytes | bytearray, offset: int) -> None:
        self.at = at
        self.data = data
        self.offset = offset


def fold(code: bytearray, sites: list[Site], registers: dict[int, int]) -> int:
    """Fold every site that can be folded, in place; how many reads became constants, -1 when some site could not be.

    `registers` gives the register each site's ldimm64 wrote (by then it may have been poisoned).
    """
    targets = _jump_targets(code)
    reads = 0
    complete = True
    for site in sites:
        register = registers[site.at]
        loads = _loads_of(code, site.at + 2, register, targets)
        values = None if loads is None else [_constant(code, at, site) for at in loads]
        if loads is None or values is None or None in values:
            complete = False
            continue
        for at, value in zip(loads, values):
            assert value is not None
            code[at * I.INSN_SIZE : (at + 1) * I.INSN_SIZE] = value
        I.write(code, site.at, I.LDIMM64, register, 0, 0, 0, _ORDER)
        I.write(code, site.at + 1, 0, 0, 0, 0, 0, _ORDER)
        reads += len(loads)
    return reads if complete else -1


def fold_constants(linked: Linked, adaptations: list[dict[str, Any]]) -> None:
    """Read-only data as constants, where this kernel has no maps for it; libbpf would let the verifier refuse."""
    if not linked.constants:
        return
    reads = fold(linked.code, linked.constants, linked.registers)
    if reads >= 0:
        detail = f"{reads} reads of .rodata and Kconfig values became constants: this kernel has no global data"
        adaptations.append({"name": "constants_folded", "libbpf": False, "detail": detail})
        folded = {site.at for site in linked.constants}
        linked.refs = [ref for ref in linked.refs if ref.insn not in folded]


def _jump_targets(code: bytearray) -> set[int]:
    found = set()
    for at in range(len(code) // I.INSN_SIZE):
        op, _, _, off, imm = I.read(code, at, _ORDER)
        if op & 7 in _JUMPS and op & 0xF0 not in (I.BPF_CALL, I.BPF_EXIT):
            found.add(at + 1 + (imm if op == I.BPF_JMP32 | I.BPF_JA else off))
    return found


def _loads_of(code: bytearray, start: int, register: int, targets: set[int]) -> list[int] | None:
    """Loads through `register` in its basic block; None when it is used for anything else, there or behind."""
    found: list[int] = []
    at = start
    while at < len(code) // I.INSN_SIZE:
        if at in targets:
            return None if is_used_from(code, [at], register) else found
        op, dst, src, _, _ = I.read(code, at, _ORDER)
        if op & 7 == I.BPF_LDX and op & 0xE0 == I.BPF_MEM and src == register:
            found.append(at)
        elif _reads(op, dst, src, register):
            return None
        if _writes(op, dst, register) or op == I.EXIT:
            return found
        following = _following(code, at)
        if op & 7 in _JUMPS and op != I.CALL:
            return None if is_used_from(code, following, register) else found
        at = following[0]
    return None


def _following(code: bytearray, at: int) -> list[int]:
    """Where control may go from instruction `at`."""
    op, _, _, off, imm = I.read(code, at, _ORDER)
    if op == I.EXIT:
        return []
    if op & 7 not in _JUMPS or op == I.CALL:
        return [at + (2 if op == I.LDIMM64 else 1)]
    if op & 0xF0 == I.BPF_JA:
        return [at + 1 + (imm if op & 7 == I.BPF_JMP32 else off)]
    return [at + 1, at + 1 + off]


def is_used_from(code: bytearray, places: list[int], register: int) -> bool:
    """Whether any path from `places` reads the register before it gets another value."""
    todo, seen = list(places), set()
    while todo:
        at = todo.pop()
        if at in seen or not 0 <= at < len(code) // I.INSN_SIZE:
            continue
        seen.add(at)
        op, dst, src, _, _ = I.read(code, at, _ORDER)
        if _reads(op, dst, src, register):
            return True
        if not _writes(op, dst, register):
            todo += _following(code, at)
    return False


def _reads(op: int, dst: int, src: int, register: int) -> bool:
    kind = op & 7
    if kind in (I.BPF_ALU, I.BPF_ALU64):
        return bool(op & I.BPF_X and src == register) or (op & 0xF0 != I.BPF_MOV and dst == register)
    if kind == I.BPF_LDX:
        return src == register
    if kind in (I.BPF_ST, I.BPF_STX):
        return dst == register or (kind == I.BPF_STX and src == register)
    if op == I.CALL:
        # Whether r1 to r5 are arguments depends on the helper; they are gone behind the call either way.
        return 1 <= register <= 5
    if op == I.EXIT:
        return register == 0
    if kind in _JUMPS:
        return dst == register or bool(op & I.BPF_X and src == register)
    return False


def _writes(op: int, dst: int, register: int) -> bool:
    kind = op & 7
    if op == I.CALL:
        return register == 0
    return kind in (I.BPF_ALU, I.BPF_ALU64, I.BPF_LDX, I.BPF_LD) and dst == register


def _constant(code: bytearray, at: int, site: Site) -> bytes | None:
    """The instruction that sets the register to what the load at `at` would read; None when one instruction cannot."""
    op, dst, _, off, _ = I.read(code, at, _ORDER)
    size = I.SIZE_OF_WIDTH[op & 0x18]
    place = site.offset + off
    if not 0 <= place <= len(site.data) - size:
        return None
    value = int.from_bytes(site.data[place : place + size], _ORDER)
    if value < 1 << 31:
        return I.native(_MOV64_K, dst, 0, 0, value)
    if value < 1 << 32:
        return I.native(_MOV32_K, dst, 0, 0, value)
    if value >= (1 << 64) - (1 << 31):
        return I.native(_MOV64_K, dst, 0, 0, value & 0xFFFFFFFF)
    return None
