"""BTF written by hand, for what no compiler writes: loops, unknown kinds, layout sections, odd byte orders."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from harness.guest.btf import BTF_KIND_INT, BTF_KIND_STRUCT


@dataclass
class BtfBuilder:
    """Add types in id order (the first is 1), then `build()`. `prefix` is a struct byte order character."""

    prefix: str = "<"
    base_strings: int = 0
    types: bytearray = field(default_factory=bytearray)
    strings: bytearray = field(default_factory=lambda: bytearray(b"\0"))
    count: int = 0

    def string(self, text: str) -> int:
        """Offset of a string, new or known."""
        if not text:
            return 0
        raw = b"\0" + text.encode() + b"\0"
        at = bytes(self.strings).find(raw)
        if at < 0:
            at = len(self.strings) - 1
            self.strings += raw[1:]
        return self.base_strings + at + 1

    def add(
        self, name: str, kind: int, size: int, words: tuple[int, ...] = (), *, vlen: int = 0, kflag: bool = False
    ) -> int:
        """A type from its parts; `size` is the size or the type id, `words` what follows the header."""
        info = kind << 24 | vlen | kflag << 31
        self.types += struct.pack(f"{self.prefix}{3 + len(words)}I", self.string(name), info, size, *words)
        self.count += 1
        return self.count

    def int(self, name: str, size: int, encoding: int = 0, bit_offset: int = 0) -> int:
        return self.add(name, BTF_KIND_INT, size, (encoding << 24 | bit_offset << 16 | size * 8,))

    def struct(self, name: str, size: int, *members: tuple[str, int, int]) -> int:
        """Members are (name, type id, bit offset)."""
        words = [word for name_, type_id, bits in members for word in (self.string(name_), type_id, bits)]
        return self.add(name, BTF_KIND_STRUCT, size, tuple(words), vlen=len(members))

    def build(self, *, layout: bytes = b"", hdr_len: int = 24) -> bytes:
        """The BTF; `layout` is the content of a layout section (the header then grows to 32 bytes)."""
        hdr_len = max(hdr_len, 32) if layout else hdr_len
        body = bytes(self.types) + bytes(self.strings)
        type_off, str_off = len(layout), len(layout) + len(self.types)
        head = struct.pack(
            f"{self.prefix}HBBIIIII", 0xEB9F, 1, 0, hdr_len, type_off, len(self.types), str_off, len(self.strings)
        )
        if hdr_len >= 32:
            head += struct.pack(f"{self.prefix}II", 0, len(layout))
        return head.ljust(hdr_len, b"\0") + layout + body
