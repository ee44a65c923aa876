"""A handful of BTF types written by hand: what probes and evidence loads need, in the machine's own byte order."""

from __future__ import annotations

import struct

KIND_INT, KIND_PTR, KIND_FUNC, KIND_FUNC_PROTO, KIND_VAR, KIND_DATASEC = 1, 2, 12, 13, 14, 15
KIND_FLOAT, KIND_DECL_TAG, KIND_TYPE_TAG, KIND_ENUM64 = 16, 17, 18, 19


def blob(words: list[int], strings: bytes) -> bytes:
    """A whole .BTF: `words` are the type section as u32, `strings` the string section (starts and ends with NUL)."""
    types = struct.pack(f"={len(words)}I", *words)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


def head(name: int, kind: int, vlen: int = 0, size_or_type: int = 0) -> list[int]:
    """struct btf_type."""
    return [name, kind << 24 | vlen, size_or_type]


def integer(name: int, size: int = 4, signed: bool = True) -> list[int]:
    """An INT of `size` bytes."""
    return [*head(name, KIND_INT, 0, size), (1 << 24 if signed else 0) | size * 8]
