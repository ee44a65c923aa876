"""Many BTFs from one: members of structs renamed, dropped and shifted, by a seed. Valid BTF, and another layout."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator

_HEADER = struct.Struct("<HBBIIIII")
_STRUCT = 4
# (fixed, for each of vlen) bytes behind the first twelve, by kind; Documentation/bpf/btf.rst.
_EXTRA = (
    (0, 0), (4, 0), (0, 0), (12, 0), (0, 12), (0, 12), (0, 8), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 0), (0, 8),
    (4, 0), (0, 12), (0, 0), (4, 0), (0, 0), (0, 12),
)  # fmt: skip
_CHANGES = ("rename", "drop", "shift")


def derive(data: bytes, seed: int, names: frozenset[str], others: float = 0.002) -> bytes:
    """Little-endian BTF `data` with changed structs: all of the given names, and a share of the others."""
    chance = random.Random(seed)
    head = _HEADER.unpack_from(data)
    start = head[3]
    types = data[start + head[4] : start + head[4] + head[5]]
    strings = data[start + head[6] : start + head[6] + head[7]]
    parts, last = [], 0
    for at, info, size in _types(types):
        if info >> 24 & 0x1F != _STRUCT or not info & 0xFFFF:
            continue
        name_off = int.from_bytes(types[at : at + 4], "little")
        name = strings[name_off : strings.index(b"\0", name_off)].decode()
        if name in names or chance.random() < others:
            parts += [types[last:at], _changed(types[at : at + size], chance)]
            last = at + size
    changed = b"".join([*parts, types[last:]])
    header = _HEADER.pack(*head[:3], 24, 0, len(changed), len(changed), len(strings))
    return header + changed + strings


def _types(types: bytes) -> Iterator[tuple[int, int, int]]:
    """(offset, info, bytes) of each type."""
    at = 0
    while at < len(types):
        info = int.from_bytes(types[at + 4 : at + 8], "little")
        fixed, each = _EXTRA[info >> 24 & 0x1F]
        size = 12 + fixed + each * (info & 0xFFFF)
        yield at, info, size
        at += size


def _changed(composite: bytes, chance: random.Random) -> bytes:
    name, info, size = struct.unpack_from("<III", composite)
    members = [list(member) for member in struct.iter_unpack("<III", composite[12:])]
    at = chance.randrange(len(members))
    change = chance.choice(_CHANGES)
    if change == "rename":
        members[at][0] = members[chance.randrange(len(members))][0]
    elif change == "drop" and len(members) > 1:
        del members[at]
    else:
        by = chance.choice((8, 16, 64))
        for member in members[at:]:
            member[2] += by * 8
        size += by
    info = info & ~0xFFFF | len(members)
    return struct.pack("<III", name, info, size) + b"".join(struct.pack("<III", *member) for member in members)
