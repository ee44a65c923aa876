"""Mutation that keeps the rest of a file right: an input says where in which part of a real file to write what.

    byte 0            which file
    then 8 bytes each part (u8), operation (u8), place (u16), value (u32)

So a fuzzer's small change of an input is a small change of an object, and nothing has to be guessed to get past the
headers. The parts of an ELF file are its header, its section headers, and each section.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Sequence

from harness.guest.elf import SHT_NOBITS, Elf

RECORD = struct.Struct("<BBHI")
MOST_PATCHES = 32
_SHDR = 64
INTERESTING = (
    0, 1, 2, 3, 4, 7, 8, 16, 24, 31, 32, 63, 64, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF,
    0x80000000, 0xFFFFFFF8, 0xFFFFFFFE, 0xFFFFFFFF, 0x01000000, 0x04000001, 0x03000000, 0x0D000001, 0x0E000000,
    0x0F000001,
)  # fmt: skip


@functools.cache
def parts(data: bytes) -> tuple[tuple[int, int], ...]:
    """(offset, size) of every part of an ELF file; of anything else, the whole."""
    if data[:4] != b"\x7fELF":
        return ((0, min(len(data), 32)), (0, len(data)))
    elf = Elf(data)
    (table,) = struct.unpack_from("<Q", data, 40)
    found = [(0, 64), (table, _SHDR * len(elf.sections))]
    found += [(s.offset, s.size) for s in elf.sections if s.size and s.type != SHT_NOBITS]
    return tuple(found)


def patched(recipe: bytes, files: Sequence[bytes]) -> bytes:
    """The file that `recipe` describes."""
    data = files[recipe[0] % len(files)] if recipe else files[0]
    places, out = parts(data), bytearray(data)
    for at in range(1, min(len(recipe), 1 + RECORD.size * MOST_PATCHES) - RECORD.size + 1, RECORD.size):
        part, operation, place, value = RECORD.unpack_from(recipe, at)
        offset, size = places[part % len(places)]
        _apply(out, offset + place % size, operation, value, size)
    return bytes(out)


def _apply(out: bytearray, at: int, operation: int, value: int, size: int) -> None:
    """One write; operations beyond the table wrap around."""
    aligned = at & ~3
    word = int.from_bytes(out[aligned : aligned + 4], "little")
    kind = operation % 8
    if kind == 0:
        _put(out, at, (value & 0xFF).to_bytes(1, "little"))
    elif kind == 1:
        _put(out, at, (value & 0xFFFF).to_bytes(2, "little"))
    elif kind == 2:
        _put(out, aligned, value.to_bytes(4, "little"))
    elif kind == 3:
        _put(out, aligned, INTERESTING[value % len(INTERESTING)].to_bytes(4, "little"))
    elif kind == 4:
        _put(out, aligned, ((word + (value % 65) - 32) & 0xFFFFFFFF).to_bytes(4, "little"))
    elif kind == 5:
        _put(out, at, bytes(((out[at] if at < len(out) else 0) ^ 1 << value % 8,)))
    elif kind == 6:
        source = at - at % 8 + value % max(size, 1)
        _put(out, aligned, bytes(out[source : source + 4]))
    else:
        _put(out, at & ~7, INTERESTING[value % len(INTERESTING)].to_bytes(8, "little"))


def _put(out: bytearray, at: int, data: bytes) -> None:
    """Write without growing."""
    end = min(at + len(data), len(out))
    if at < end:
        out[at:end] = data[: end - at]
