"""The `.BTF.ext` section: func_info, line_info and core_relo records (Documentation/bpf/btf.rst; libbpf btf.c,
btf_ext__new).
"""

from __future__ import annotations

from struct import Struct

from .errors import ENOTSUP, MalformedBtfExt

BTF_MAGIC = 0xEB9F
# Sizes of the records' first versions: bpf_func_info, bpf_line_info, bpf_core_relo; newer ones may be longer.
_MINIMUM = {"func_info": 8, "line_info": 16, "core_relo": 16}


class InfoSec:
    """Records that belong to one ELF section: `sec_name_off` into the BTF's strings, `records` tuples of the known u32
    fields.

    func_info: (insn_off, type_id); line_info: (insn_off, file_name_off, line_off, line_col); core_relo: (insn_off,
    type_id, access_str_off, kind). insn_off is in bytes from the section's start.
    """

    __slots__ = ("records", "sec_name_off")

    def __init__(self, sec_name_off: int, records: list[tuple[int, ...]]) -> None:
        self.sec_name_off = sec_name_off
        self.records = records


class BtfExt:
    """A parsed `.BTF.ext`.

    Attributes `func_info`, `line_info`, `core_relos`: lists of InfoSec in file order, empty when the subsection is
    absent. Raises MalformedBtfExt wherever btf_ext__new() fails.
    """

    def __init__(self, data: bytes, name: str = ".BTF.ext") -> None:
        self.name = name
        if len(data) < 8:
            raise MalformedBtfExt(f"{name}: header not found ({len(data)} bytes)")
        self._prefix = "<" if int.from_bytes(data[:2], "little") == BTF_MAGIC else ">"
        magic, version, flags, hdr_len = Struct(self._prefix + "HBBI").unpack_from(data)
        if magic != BTF_MAGIC:
            raise MalformedBtfExt(f"{name}: invalid magic {magic:#x}")
        if version != 1 or flags:
            raise MalformedBtfExt(f"{name}: version {version} with flags {flags:#x} is not supported", ENOTSUP)
        if hdr_len > len(data) or hdr_len < 24:
            raise MalformedBtfExt(f"{name}: header of {hdr_len} bytes in {len(data)}")
        if hdr_len == len(data):
            raise MalformedBtfExt(f"{name}: no data behind the header")
        count = 3 if hdr_len >= 32 else 2  # core_relo came with libbpf 0.0.6; a shorter header has none
        places = Struct(f"{self._prefix}{2 * count}I").unpack_from(data, 8)
        self._data = data
        self._start = hdr_len
        self.func_info = self._parse("func_info", places[0], places[1])
        self.line_info = self._parse("line_info", places[2], places[3])
        self.core_relos = self._parse("core_relo", places[4], places[5]) if count == 3 else []

    def _bad(self, what: str, problem: str) -> MalformedBtfExt:
        return MalformedBtfExt(f"{self.name}: {what}: {problem}")

    def _parse(self, what: str, offset: int, length: int) -> list[InfoSec]:
        """One subsection (btf_ext_parse_sec_info): u32 record size, then {sec_name_off, num_info, records}..."""
        if length == 0:
            return []
        start = self._start + offset
        if offset % 4 or start + length > len(self._data) or length < 4:
            raise self._bad(
                what, f"subsection at {offset}+{length} is unaligned or lies outside {len(self._data)} bytes"
            )
        u32 = Struct(self._prefix + "I")
        (size,) = u32.unpack_from(self._data, start)
        if size < _MINIMUM[what] or size % 4:
            raise self._bad(what, f"record size {size}")
        known = _MINIMUM[what]
        record = Struct(f"{self._prefix}{known // 4}I{size - known}x")
        head = Struct(self._prefix + "II")
        here, left, secs = start + 4, length - 4, []
        if not left:
            raise self._bad(what, "has no records")
        while left:
            if left < head.size:
                raise self._bad(what, f"section header cut off at {here - start}")
            sec_name_off, count = head.unpack_from(self._data, here)
            total = head.size + count * size
            if count == 0 or total > left:
                raise self._bad(what, f"{count} records of {size} bytes at {here - start}, {left} bytes left")
            body = memoryview(self._data)[here + head.size : here + total]
            secs.append(InfoSec(sec_name_off, list(record.iter_unpack(body))))
            here, left = here + total, left - total
        return secs
