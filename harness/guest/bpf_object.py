"""A BPF object as libbpf opens it: programs, sections, BTF (bpf_object__elf_init, _elf_collect, _add_programs,
_init_btf).

Opening reads the ELF once and changes nothing; relocation (core_relo.py) and the loader work on `Prog.insns` in place.
"""

from __future__ import annotations

from . import elf as E
from .btf import Btf
from .btf_ext import BtfExt
from .elf import Elf
from .errors import EINVAL, MalformedBtf, MalformedBtfExt, MalformedElf, NotBpf, Unsupported, WrongEndian
from .insn import INSN_SIZE

# What a section is for (enum sec_type in libbpf.c); all others are not kept.
SEC_PROGS, SEC_DATA, SEC_RODATA, SEC_BSS, SEC_MAPS, SEC_STRUCT_OPS, SEC_ARENA, SEC_JUMPTABLES = (
    "progs", "data", "rodata", "bss", "maps", "struct_ops", "arena", "jumptables",
)  # fmt: skip
# name -> first libbpf that knows it; an older one skips it as unrecognized data
_STRUCT_OPS_SECS: dict[str, tuple[int, ...]] = {
    ".struct_ops": (0,), ".struct_ops.link": (1, 2), "?.struct_ops": (1, 4), "?.struct_ops.link": (1, 4),
}  # fmt: skip
_TEXT_IS_SUBPROGS = (1, 4)
_MOST_CODE = 4  # times the file: functions and sections that lie over each other cost a copy each
LICENSE_MAX = 63  # char license[64] in struct bpf_object


class ElfReloc:
    """An ELF relocation of a program: `insn` counts within the program, `type` is R_BPF_*, `sym` the Symbol."""

    __slots__ = ("insn", "sym", "type")

    def __init__(self, insn: int, type_: int, sym: E.Symbol) -> None:
        self.insn = insn
        self.type = type_
        self.sym = sym


class Prog:
    """One function symbol of an executable section: an entry program, or a subprogram when it lies in `.text`.

    `name` is the symbol's, `section` the section's name without a leading `?`, `sec_idx` its ELF index, `sec_insn_off`
    and `insn_count` its place there in instructions, `insns` its code (changed in place by relocation), `is_subprog`
    whether it lies in `.text`, `autoload` False for `?` sections (libbpf relocates and loads only autoloaded programs;
    callers may change it before), `is_global` False for static functions, `hidden` True when libbpf marks its BTF FUNC
    static, `elf_relocs` its ELF relocations by rising instruction.
    """

    __slots__ = (
        "autoload", "elf_relocs", "hidden", "insn_count", "insns", "is_global", "is_subprog",
        "name", "sec_idx", "sec_insn_off",
        "section", "symbol",
    )  # fmt: skip

    def __init__(self, symbol: E.Symbol, section: E.Section, insns: bytearray, is_subprog: bool) -> None:
        self.symbol = symbol
        self.name = symbol.name
        self.autoload = not section.name.startswith("?")
        self.section = section.name if self.autoload else section.name[1:]
        self.sec_idx = section.index
        self.sec_insn_off = symbol.value // INSN_SIZE
        self.insn_count = len(insns) // INSN_SIZE
        self.insns = insns
        self.is_subprog = is_subprog
        self.is_global = symbol.bind != E.STB_LOCAL
        self.hidden = self.is_global and symbol.visibility in (E.STV_HIDDEN, E.STV_INTERNAL)
        self.elf_relocs: list[ElfReloc] = []

    def __repr__(self) -> str:
        return f"<prog {self.name} in {self.section}>"


class BpfObject:
    """An opened object.

    `data` is the file's content, `path` serves messages, `byteorder` what the code must be ("little", "big", None:
    any). Attributes: `elf`, `btf` (Btf with pointers of 8 bytes, or None), `btf_ext` (BtfExt or None), `btf_error`
    (why one of them was ignored, as libbpf would, else None), `progs` (sorted by section and place, entry programs and
    subprograms), `license`, `kern_version`, `sections` (ELF index -> what for, SEC_*), `text_idx` (of `.text`, None
    without code there), `rel_sections` (target section index -> Section with its SHT_REL records).
    Raises NotElf, NotBpf, WrongEndian, MalformedElf, MalformedBtf, MalformedBtfExt, Unsupported.
    """

    def __init__(
        self,
        data: bytes,
        path: str = "object",
        byteorder: str | None = E.NATIVE_BYTEORDER,
        rules: tuple[int, ...] | None = None,
    ) -> None:
        self.path = path
        self._rules = rules
        self.elf = Elf(data, path)
        self.byteorder = self.elf.byteorder
        self._check_machine(byteorder)
        self.license = ""
        self.kern_version = 0
        self.text_idx: int | None = None
        self.sections: dict[int, str] = {}
        self.rel_sections: dict[int, E.Section] = {}
        self.progs: list[Prog] = []
        self.btf: Btf | None = None
        self.btf_ext: BtfExt | None = None
        self.btf_error: str | None = None
        self._code_room = _MOST_CODE * len(data)
        self._funcs = self._functions_by_section()
        for section in self.elf.sections[1:]:
            self._collect_section(section)
        self.progs.sort(key=lambda prog: (prog.sec_idx, prog.sec_insn_off))
        if len(self.progs) == 1 and not self.knows(_TEXT_IS_SUBPROGS):
            # The only program was an entry program even in .text (prog_is_subprog before 1.4).
            self.progs[0].is_subprog = False
        self._progs_of_sec: dict[int, list[Prog]] = {}
        for prog in self.progs:
            self._progs_of_sec.setdefault(prog.sec_idx, []).append(prog)
        self._init_btf()
        self._collect_prog_relocs()

    def knows(self, since: tuple[int, ...]) -> bool:
        """Whether the libbpf we follow is at least that version."""
        return self._rules is None or self._rules >= since

    # -- what the ELF is (bpf_object__elf_init, bpf_object__check_endianness)

    def _check_machine(self, byteorder: str | None) -> None:
        elf = self.elf
        if not elf.is64 or elf.type != E.ET_REL or elf.machine not in (E.EM_NONE, E.EM_BPF):
            raise NotBpf(
                f"{self.path}: not a BPF object (ELF class {64 if elf.is64 else 32}, type {elf.type},"
                f" machine {elf.machine}; 64, 1 (relocatable) and 247 (BPF) expected)"
            )
        if byteorder is not None and elf.byteorder != byteorder:
            raise WrongEndian(f"{self.path}: BPF code is {elf.byteorder}-endian, {byteorder}-endian expected")

    def _functions_by_section(self) -> dict[int, list[E.Symbol]]:
        if self.elf.symtab is None:
            raise MalformedElf(f"{self.path}: couldn't find symbol table, stripped object file?")
        funcs: dict[int, list[E.Symbol]] = {}
        for symbol in self.elf.symbols:
            if symbol.type == E.STT_FUNC:
                funcs.setdefault(symbol.shndx, []).append(symbol)
        return funcs

    # -- one section (bpf_object__elf_collect, second pass)

    def _collect_section(self, section: E.Section) -> None:
        name = section.name
        if _ignored(section):
            return
        if name == "maps":
            raise Unsupported(
                f"{self.path}: legacy map definitions in 'maps' section are not supported by libbpf v1.0+"
            )
        if name == "license":
            text = self.elf.content(section).split(b"\0", 1)[0]
            self.license = text[:LICENSE_MAX].decode("latin-1")
        elif name == "version":
            self._init_kversion(section)
        elif name == ".maps":
            self.sections[section.index] = SEC_MAPS
        elif name in (".BTF", ".BTF.ext"):
            if section.type != E.SHT_PROGBITS:
                raise MalformedElf(f"{self.path}: section {name} has type {section.type}, SHT_PROGBITS expected")
        elif section.type == E.SHT_REL:
            self._collect_rel(section)
        elif section.type == E.SHT_PROGBITS and section.size:
            self._collect_progbits(section)
        elif section.type == E.SHT_NOBITS and _is_or_below(name, ".bss"):
            self.sections[section.index] = SEC_BSS

    def _init_kversion(self, section: E.Section) -> None:
        content = self.elf.content(section)
        if len(content) != 4:
            raise MalformedElf(f"{self.path}: invalid kver section of {len(content)} bytes, 4 expected")
        self.kern_version = int.from_bytes(content, "little" if self.byteorder == "little" else "big")

    def _collect_rel(self, section: E.Section) -> None:
        if section.entsize != 16 or section.info >= len(self.elf.sections):
            raise MalformedElf(
                f"{self.path}: section {section.name} has a bad entry size or target section {section.info}"
            )
        self.rel_sections[section.info] = section

    def _collect_progbits(self, section: E.Section) -> None:
        name = section.name
        if section.flags & E.SHF_EXECINSTR:
            if name == ".text":
                self.text_idx = section.index
            self.sections[section.index] = SEC_PROGS
            self._add_programs(section)
        elif _is_or_below(name, ".data"):
            self.sections[section.index] = SEC_DATA
        elif _is_or_below(name, ".rodata"):
            self.sections[section.index] = SEC_RODATA
        elif name in _STRUCT_OPS_SECS and self.knows(_STRUCT_OPS_SECS[name]):
            self.sections[section.index] = SEC_STRUCT_OPS
        elif name == ".addr_space.1":
            self.sections[section.index] = SEC_ARENA
        elif name == ".jumptables":
            self.sections[section.index] = SEC_JUMPTABLES

    # -- programs (bpf_object__add_programs, bpf_object__init_prog)

    def _add_programs(self, section: E.Section) -> None:
        self._take_room(section.size)
        code = self.elf.content(section)
        is_text = section.index == self.text_idx
        where = f"{self.path}: sec '{section.name}'"
        for symbol in self._funcs.get(section.index, ()):
            start, size = symbol.value, symbol.size
            if start + size > len(code):
                raise MalformedElf(f"{where}: program at offset {start} crosses section boundary")
            if not is_text and symbol.bind == E.STB_LOCAL:
                raise Unsupported(f"{where}: program '{symbol.name}' is static and not supported")
            if size == 0 or size % INSN_SIZE or start % INSN_SIZE:
                raise MalformedElf(f"{where}: corrupted program '{symbol.name}', offset {start}, size {size}", EINVAL)
            self._take_room(size)
            self.progs.append(Prog(symbol, section, bytearray(code[start : start + size]), is_text))

    def _take_room(self, size: int) -> None:
        self._code_room -= size
        if self._code_room < 0:
            raise MalformedElf(f"{self.path}: programs lie over each other, and are too large")

    def find_prog(self, sec_idx: int, insn: int) -> Prog | None:
        """The program that holds instruction `insn` of section `sec_idx` (find_prog_by_sec_insn); None in a gap.

        Of several symbols at one place the last counts, as in libbpf's binary search.
        """
        progs = self._progs_of_sec.get(sec_idx, [])
        low, high = 0, len(progs)
        while low < high:
            middle = (low + high) // 2
            if progs[middle].sec_insn_off <= insn:
                low = middle + 1
            else:
                high = middle
        if low and insn < progs[low - 1].sec_insn_off + progs[low - 1].insn_count:
            return progs[low - 1]
        return None

    def prog(self, name: str) -> Prog | None:
        """The program or subprogram of that name."""
        for prog in self.progs:
            if prog.name == name:
                return prog
        return None

    @property
    def entry_progs(self) -> list[Prog]:
        """Programs proper: all that do not lie in `.text` (prog_is_subprog; since libbpf 1.4 even when `.text` is all
        there is).
        """
        return [prog for prog in self.progs if not prog.is_subprog]

    # -- BTF (bpf_object__init_btf)

    def _init_btf(self) -> None:
        btf, ext = self.elf.section(".BTF"), self.elf.section(".BTF.ext")
        needed = SEC_MAPS in self.sections.values() or SEC_STRUCT_OPS in self.sections.values()
        try:
            if btf is not None:
                self.btf = Btf(self.elf.content(btf), name=f"{self.path}: .BTF", pointer_size=8)
            if ext is not None and self.btf is not None:
                self.btf_ext = BtfExt(self.elf.content(ext), name=f"{self.path}: .BTF.ext")
        except (MalformedBtf, MalformedBtfExt) as error:
            if needed:
                raise
            self.btf_error = error.message

    # -- ELF relocations of programs (bpf_object__collect_prog_relos)

    def _collect_prog_relocs(self) -> None:
        symbols = self.elf.symbols
        for sec_idx, section in self.rel_sections.items():
            if self.sections.get(sec_idx) != SEC_PROGS:
                continue
            limit = self.elf.sections[sec_idx].size
            for offset, type_, sym_idx in self.elf.relocs(section):
                where = f"{self.path}: section {section.name}, relocation at {offset}"
                if sym_idx >= len(symbols):
                    raise MalformedElf(f"{where}: symbol {sym_idx} not found")
                if offset % INSN_SIZE or offset >= limit:
                    raise MalformedElf(f"{where}: invalid offset")
                prog = self.find_prog(sec_idx, offset // INSN_SIZE)
                if prog is not None:  # None: a weak function that the static linker dropped
                    prog.elf_relocs.append(ElfReloc(offset // INSN_SIZE - prog.sec_insn_off, type_, symbols[sym_idx]))
        for prog in self.progs:
            prog.elf_relocs.sort(key=lambda reloc: reloc.insn)


def _is_or_below(name: str, family: str) -> bool:
    return name == family or name.startswith(family + ".")


def _ignored(section: E.Section) -> bool:
    """Sections that libbpf does not even look at (ignore_elf_section)."""
    name = section.name
    if section.type in (E.SHT_STRTAB, E.SHT_LLVM_ADDRSIG, E.SHT_SYMTAB):
        return True
    if name == ".text" and section.type == E.SHT_PROGBITS and section.size == 0:
        return True
    if name in (".rel.BTF", ".rel.BTF.ext"):
        return True
    return name.startswith((".debug_", ".rel.debug_"))
