"""Finds BPF objects inside other files: skeletons are whole ELF files in an executable's read-only data.

An object starts with the ELF magic, is a 64-bit relocatable for EM_BPF, and ends where its last section or its section
header table ends (System V gABI): nothing else says how long it is. Compressed copies (Python wheels, bitcode archives)
are not looked into.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_MAGIC = b"\x7fELF"
_ET_REL, _EM_BPF, _SHT_NOBITS = 1, 247, 8
_HEADER = struct.Struct("HHIQQQIHHHHHH")
_SECTION_SIZE = 64


def find_objects(data: bytes) -> Iterator[bytes]:
    """The BPF objects in `data`, in order of place. A file that is one gives just itself."""
    place = data.find(_MAGIC)
    while place >= 0:
        size = object_size(data, place)
        if size:
            yield data[place : place + size]
        place = data.find(_MAGIC, place + max(size, 4))


def object_size(data: bytes, place: int) -> int:
    """Length of the BPF object at `place`; 0 when there is none."""
    ident = data[place : place + 16]
    if len(ident) < 16 or ident[4] != 2 or ident[5] not in (1, 2):
        return 0
    order = "<" if ident[5] == 1 else ">"
    try:
        fields = struct.unpack_from(order + _HEADER.format, data, place + 16)
        kind, machine, shoff, entsize, count = fields[0], fields[1], fields[5], fields[10], fields[11]
        if kind != _ET_REL or machine != _EM_BPF or entsize != _SECTION_SIZE or not count:
            return 0
        end = shoff + count * _SECTION_SIZE
        for index in range(count):
            section = struct.unpack_from(order + "IIQQQQIIQQ", data, place + shoff + index * _SECTION_SIZE)
            if section[1] != _SHT_NOBITS:
                end = max(end, section[4] + section[5])
    except struct.error:
        return 0
    return end if place + end <= len(data) else 0
