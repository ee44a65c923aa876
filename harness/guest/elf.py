"""A small ELF reader: sections, symbols and SHT_REL relocations of 32- and 64-bit files in either byte order.

It reads BPF objects and the `.BTF` of a vmlinux or module. Every offset is checked before use: hostile bytes raise
NotElf or MalformedElf and nothing else. Layouts are those of the System V gABI (elf.h); pyelftools is its second
witness in the tests.
"""

from __future__ import annotations

import sys
from struct import Struct

from .errors import MalformedElf, NotElf

ET_REL = 1
EM_NONE, EM_BPF = 0, 247
SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_RELA, SHT_NOBITS, SHT_REL = 0, 1, 2, 3, 4, 8, 9
SHT_LLVM_ADDRSIG = 0x6FFF4C03
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_COMPRESSED = 1, 2, 4, 0x800
SHN_UNDEF, SHN_ABS, SHN_COMMON, SHN_XINDEX = 0, 0xFFF1, 0xFFF2, 0xFFFF
STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_NOTYPE, STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE = 0, 1, 2, 3, 4
STV_DEFAULT, STV_INTERNAL, STV_HIDDEN, STV_PROTECTED = 0, 1, 2, 3

# (is64 ->) ELF header after e_ident, section header, symbol, relocation without addend
_EHDR = {True: "HHIQQQIHHHHHH", False: "HHIIIIIHHHHHH"}
_SHDR = {True: "IIQQQQIIQQ", False: "IIIIIIIIII"}
_SYM = {True: "IBBHQQ", False: "IIIBBH"}
_REL = {True: "QQ", False: "II"}


# Names may share their ends, so they may be longer together than the file; only hostile ones are by this much.
_MOST_TIMES_THE_FILE = 16


class Section:
    """One section header: `index`, `name`, `type` (SHT_*), `flags`, `addr`, `offset`, `size`, `link`, `info`,
    `entsize`.
    """

    __slots__ = ("addr", "addralign", "entsize", "flags", "index", "info", "link", "name", "offset", "size", "type")

    def __init__(self, index: int, name: str, header: tuple[int, ...]) -> None:
        self.index = index
        self.name = name
        (
            _,
            self.type,
            self.flags,
            self.addr,
            self.offset,
            self.size,
            self.link,
            self.info,
            self.addralign,
            self.entsize,
        ) = header

    def __repr__(self) -> str:
        return f"<section [{self.index}] {self.name}>"


class Symbol:
    """One symbol: `name`, `value`, `size`, `type` (STT_*), `bind` (STB_*), `visibility` (STV_*), `shndx`, `index`."""

    __slots__ = ("bind", "index", "name", "shndx", "size", "type", "value", "visibility")

    def __init__(self, index: int, name: str, info: int, other: int, shndx: int, value: int, size: int) -> None:
        self.index = index
        self.name = name
        self.bind = info >> 4
        self.type = info & 15
        self.visibility = other & 3
        self.shndx = shndx
        self.value = value
        self.size = size

    def __repr__(self) -> str:
        return f"<symbol [{self.index}] {self.name}>"


def read_string(table: bytes, offset: int) -> str | None:
    """The NUL-terminated string at `offset` of a string table, None when it starts outside or never ends."""
    if offset >= len(table):
        return None
    end = table.find(b"\0", offset)
    return None if end < 0 else table[offset:end].decode("utf-8", "surrogateescape")


class Elf:
    """An ELF file in memory.

    `data` is the whole file, `path` only serves messages. Attributes: `is64`, `byteorder` ("little" or "big"), `type`
    (ET_*), `machine` (EM_*), `sections` (index 0 included) and `symbols` (of the one SHT_SYMTAB, index 0 included;
    empty without one; read on first use). Raises NotElf, MalformedElf.
    """

    def __init__(self, data: bytes, path: str = "object") -> None:
        self.data = data
        self.path = path
        if len(data) < 16 or data[:4] != b"\x7fELF":
            raise NotElf(f"{path}: not an ELF file")
        if data[4] not in (1, 2) or data[5] not in (1, 2):
            raise NotElf(f"{path}: not a proper ELF file (class {data[4]}, data encoding {data[5]})")
        self.is64 = data[4] == 2
        self.byteorder = "little" if data[5] == 1 else "big"
        self._prefix = "<" if data[5] == 1 else ">"
        ehdr = Struct(self._prefix + _EHDR[self.is64])
        if len(data) < 16 + ehdr.size:
            raise NotElf(f"{path}: truncated inside the ELF header ({len(data)} bytes)")
        fields = ehdr.unpack_from(data, 16)
        self.type, self.machine = fields[0], fields[1]
        self._symbols: list[Symbol] | None = None
        self.sections: list[Section] = self._read_sections(fields[5], fields[10], fields[11], fields[12])

    def _bad(self, what: str) -> MalformedElf:
        return MalformedElf(f"{self.path}: {what}")

    def _read_sections(self, shoff: int, entsize: int, count: int, strndx: int) -> list[Section]:
        if shoff == 0:
            return []
        shdr = Struct(self._prefix + _SHDR[self.is64])
        if entsize != shdr.size:
            raise self._bad(f"section headers of {entsize} bytes, {shdr.size} expected")
        if shoff + shdr.size > len(self.data):
            raise self._bad(
                f"section header table at {shoff} lies outside the file of {len(self.data)} bytes (truncated?)"
            )
        first = shdr.unpack_from(self.data, shoff)
        count = count or first[5]  # gABI: more than 0xff00 sections put the count into section 0's sh_size
        strndx = first[6] if strndx == SHN_XINDEX else strndx
        end = shoff + count * shdr.size
        if end > len(self.data):
            raise self._bad(f"section header table ends at {end}, the file has {len(self.data)} bytes (truncated?)")
        headers = list(shdr.iter_unpack(memoryview(self.data)[shoff:end]))
        if not 0 < strndx < count:
            raise self._bad(f"section name table has index {strndx} of {count}")
        names = self._slice(headers[strndx][4], headers[strndx][5], "section name table")
        sections = []
        room = _MOST_TIMES_THE_FILE * len(self.data)
        for index, header in enumerate(headers):
            name = "" if index == 0 else read_string(names, header[0])
            if name is None:
                raise self._bad(f"section [{index}] has a name outside the section name table")
            room -= len(name)
            if room < 0:
                raise self._bad("section names lie inside of each other, and are too long")
            sections.append(Section(index, name, header))
        return sections

    def _slice(self, offset: int, size: int, what: str) -> bytes:
        if offset + size > len(self.data):
            raise self._bad(f"{what} at {offset}+{size} lies outside the file of {len(self.data)} bytes (truncated?)")
        return self.data[offset : offset + size]

    def content(self, section: Section) -> bytes:
        """The section's bytes; empty for SHT_NOBITS. MalformedElf when they lie outside the file."""
        if section.type in (SHT_NOBITS, SHT_NULL):
            return b""
        return self._slice(section.offset, section.size, f"section [{section.index}] {section.name}")

    def section(self, name: str) -> Section | None:
        """The first section of that name, as elf_sec_by_name() finds it."""
        for section in self.sections:
            if section.name == name:
                return section
        return None

    @property
    def symtab(self) -> Section | None:
        """The symbol table. MalformedElf when there are two (bpf_object__elf_collect)."""
        tables = [section for section in self.sections if section.type == SHT_SYMTAB]
        if len(tables) > 1:
            raise self._bad("multiple symbol tables")
        return tables[0] if tables else None

    @property
    def symbols(self) -> list[Symbol]:
        if self._symbols is None:
            self._symbols = self._read_symbols()
        return self._symbols

    def _read_symbols(self) -> list[Symbol]:
        table = self.symtab
        if table is None:
            return []
        layout = Struct(self._prefix + _SYM[self.is64])
        data = self.content(table)
        if table.entsize != layout.size or len(data) % layout.size:
            raise self._bad(
                f"symbol table of {len(data)} bytes with entries of {table.entsize}, {layout.size} expected"
            )
        if not 0 < table.link < len(self.sections) or self.sections[table.link].type != SHT_STRTAB:
            raise self._bad("symbol strings section missing or invalid")
        names = self.content(self.sections[table.link])
        symbols = []
        room = _MOST_TIMES_THE_FILE * len(self.data)
        for index, fields in enumerate(layout.iter_unpack(data)):
            if self.is64:
                name_off, info, other, shndx, value, size = fields
            else:
                name_off, value, size, info, other, shndx = fields
            name = "" if name_off == 0 else read_string(names, name_off)
            if name is None:
                raise self._bad(f"symbol [{index}] has a name outside the symbol strings")
            room -= len(name)
            if room < 0:
                raise self._bad("symbol names lie inside of each other, and are too long")
            symbols.append(Symbol(index, name, info, other, shndx, value, size))
        return symbols

    def relocs(self, section: Section) -> list[tuple[int, int, int]]:
        """Records of an SHT_REL section as (byte offset in the target section, relocation type, symbol index),
        unchecked.
        """
        layout = Struct(self._prefix + _REL[self.is64])
        data = self.content(section)
        if section.entsize != layout.size or len(data) % layout.size:
            raise self._bad(
                f"section [{section.index}] {section.name}: relocations of {section.entsize} bytes,"
                f" {layout.size} expected"
            )
        if self.is64:
            return [(offset, info & 0xFFFFFFFF, info >> 32) for offset, info in layout.iter_unpack(data)]
        return [(offset, info & 0xFF, info >> 8) for offset, info in layout.iter_unpack(data)]


def is_elf(data: bytes) -> bool:
    """Whether the bytes start as an ELF file."""
    return data[:4] == b"\x7fELF"


NATIVE_BYTEORDER = sys.byteorder
