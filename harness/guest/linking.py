"""From an object's functions to one program: subprograms appended, references filled in.

libbpf does this in bpf_object__relocate_calls() (subprograms behind the entry program, depth first, in the order of
their first call, each once) and bpf_object__relocate_data() (maps, externs). CO-RE relocations are applied before, on
the functions apart; here their places move along. Everything is done on copies: one object gives any number of
programs.
"""

from __future__ import annotations

import struct
import sys

from . import bpf_object as O
from . import elf as E
from . import insn as I
from .errors import E2BIG, ENOENT, LIBBPF_ERRNO__RELOC, GuestError
from .externs import Ksym
from .folding import Site
from .maps import KCONFIG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .bpf_object import BpfObject, ElfReloc, Prog
    from .btf import Btf
    from .btf_ext import InfoSec
    from .externs import Extern
    from .maps import Map

_ORDER = sys.byteorder
_MOST_FUNCS = 512  # in one program; the kernel takes 256 (BPF_MAX_SUBPROGS), and each costs us a level of the stack


class LinkError(GuestError):
    """An ELF relocation libbpf refuses, or a call that leads nowhere; libbpf gives up on the object at load."""

    stage = "open"
    errno = LIBBPF_ERRNO__RELOC


class Func:
    """A function in a linked program: `prog` where it comes from, `start` and `insns` in instructions of the whole."""

    __slots__ = ("insns", "prog", "start")

    def __init__(self, prog: Prog, start: int, insns: int) -> None:
        self.prog = prog
        self.start = start
        self.insns = insns


class Ref:
    """An instruction that holds a number this kernel run gave out: `kind` as in docs/facts.md, `name` of what, `off`
    into it."""

    __slots__ = ("insn", "kind", "name", "off")

    def __init__(self, insn: int, kind: str, name: str, off: int = 0) -> None:
        self.insn = insn
        self.kind = kind
        self.name = name
        self.off = off


class Linked:
    """An entry program with its subprograms: `code` (changed in place), `funcs` in final order, `refs` by rising
    place, `constants` the reads of read-only data that this kernel has no map for, with the register of each."""

    __slots__ = ("code", "constants", "funcs", "refs", "registers")

    def __init__(self) -> None:
        self.code = bytearray()
        self.funcs: list[Func] = []
        self.refs: list[Ref] = []
        self.constants: list[Site] = []
        self.registers: dict[int, int] = {}


_WEAK_KFUNC_POISON = (1, 2)  # an older libbpf leaves a call of kernel function 0


class Linker:
    """Links programs of one object. `maps` and `externs` are those of the object in libbpf's order, with fds and
    values set.

    Raises LinkError.
    """

    def __init__(self, obj: BpfObject, maps: list[Map], externs: list[Extern]) -> None:
        self._obj = obj
        self._user_maps = {(m.sec_idx, m.sec_offset): m for m in maps if m.kind is None}
        self._data_maps = {m.sec_idx: m for m in maps if m.kind is not None}
        self._arena = next((m for m in maps if m.kind == O.SEC_ARENA), None)
        self._kconfig = next((m for m in maps if m.kind == KCONFIG), None)
        self._externs = {x.sym_idx: x for x in externs}
        self._extern_index = {x.sym_idx: i for i, x in enumerate(externs)}

    def link(self, prog: Prog) -> Linked:
        """The final instructions of an entry program."""
        linked = Linked()
        starts: dict[int, int] = {}
        self._append(linked, starts, prog)
        for func in linked.funcs:
            relocs = self._relocs(func.prog)
            for index, reloc in relocs.items():
                self._resolve(linked, func, index, reloc)
        linked.refs.sort(key=lambda ref: ref.insn)
        return linked

    # -- subprograms

    def _relocs(self, prog: Prog) -> dict[int, ElfReloc]:
        return {reloc.insn: reloc for reloc in prog.elf_relocs}

    def _append(self, linked: Linked, starts: dict[int, int], prog: Prog) -> None:
        start = len(linked.code) // I.INSN_SIZE
        starts[id(prog)] = start
        linked.code += prog.insns
        linked.funcs.append(Func(prog, start, prog.insn_count))
        relocs = self._relocs(prog)
        code = prog.insns
        for index in range(prog.insn_count):
            op = code[index * I.INSN_SIZE]
            if op not in (I.CALL, I.LDIMM64):
                continue
            callee = self._callee(prog, index, relocs.get(index))
            if callee is None:
                continue
            if id(callee) not in starts:
                if len(linked.funcs) == _MOST_FUNCS:
                    raise LinkError(f"{prog.name}: more than {_MOST_FUNCS} functions; the kernel takes 256", E2BIG)
                self._append(linked, starts, callee)
            self._point(linked, start + index, starts[id(callee)], callee)

    def _callee(self, prog: Prog, index: int, reloc: ElfReloc | None) -> Prog | None:
        """The subprogram an instruction calls or takes the address of, None when it does neither."""
        op, dst, src, off, imm = I.read(prog.insns, index, _ORDER)
        if reloc is not None and _is_extern(reloc.sym):
            return None
        if op == I.CALL:
            if src != I.BPF_PSEUDO_CALL or dst or off:
                return None
            target = (
                prog.sec_insn_off + index + imm + 1 if reloc is None else self._call_target(prog, index, reloc, imm)
            )
        elif reloc is not None and self._is_subprog(reloc.sym):
            if reloc.sym.value % I.INSN_SIZE or imm % I.INSN_SIZE:
                raise self._bad(prog, index, f"bad subprog addr relo against '{reloc.sym.name}'")
            target = (reloc.sym.value + imm) // I.INSN_SIZE
        else:
            return None
        callee = self._obj.find_prog(self._obj.text_idx, target) if self._obj.text_idx is not None else None
        if callee is None:
            raise self._bad(prog, index, f"no .text section found yet sub-program call exists (target {target})")
        return callee

    def _call_target(self, prog: Prog, index: int, reloc: ElfReloc, imm: int) -> int:
        symbol = reloc.sym
        if symbol.shndx != self._obj.text_idx or symbol.shndx == 0:
            raise self._bad(prog, index, f"bad call relo against '{symbol.name}': not in .text")
        if symbol.value % I.INSN_SIZE:
            raise self._bad(prog, index, f"bad call relo against '{symbol.name}' at offset {symbol.value}")
        return symbol.value // I.INSN_SIZE + imm + 1

    def _is_subprog(self, symbol: E.Symbol) -> bool:
        if symbol.shndx != self._obj.text_idx:
            return False
        return symbol.type == (E.STT_SECTION if symbol.bind == E.STB_LOCAL else E.STT_FUNC)

    def _point(self, linked: Linked, at: int, target: int, callee: Prog) -> None:
        op, dst, src, off, _ = I.read(linked.code, at, _ORDER)
        if op == I.LDIMM64:
            src = I.BPF_PSEUDO_FUNC
        I.write(linked.code, at, op, dst, src, off, target - at - 1, _ORDER)
        linked.refs.append(Ref(at, "subprog", callee.name))

    def _bad(self, prog: Prog, index: int, what: str) -> LinkError:
        return LinkError(f"{self._obj.path}: prog '{prog.name}': insn #{index}: {what}")

    # -- maps and externs (bpf_program__record_reloc(), bpf_object__relocate_data())

    def _resolve(self, linked: Linked, func: Func, index: int, reloc: ElfReloc) -> None:
        at = func.start + index
        op, _, src, _, imm = I.read(linked.code, at, _ORDER)
        symbol = reloc.sym
        if op == I.CALL and imm == I.POISON_CORE_RELO and src == 0:
            return
        if op not in (I.CALL, I.LDIMM64):
            raise self._bad(func.prog, index, f"invalid relo against '{symbol.name}' for insns[{index}].code {op:#x}")
        if op == I.LDIMM64 and index + 1 >= func.insns:
            raise self._bad(func.prog, index, f"relo against '{symbol.name}' for an ldimm64 without its second half")
        if _is_extern(symbol):
            extern = self._externs.get(symbol.index)
            if extern is None:
                raise self._bad(func.prog, index, f"extern relo failed to find extern for '{symbol.name}'")
            (self._extern_call if op == I.CALL else self._extern_ld64)(linked, at, extern)
        elif op == I.LDIMM64 and src != I.BPF_PSEUDO_FUNC:
            self._map_ref(linked, func.prog, index, at, symbol)
        elif op == I.CALL and src != I.BPF_PSEUDO_CALL:
            raise self._bad(func.prog, index, "incorrect bpf_call opcode")

    def _map_ref(self, linked: Linked, prog: Prog, index: int, at: int, symbol: E.Symbol) -> None:
        if symbol.shndx == 0 or symbol.shndx >= 0xFF00:
            raise self._bad(prog, index, f"invalid relo against '{symbol.name}' in special section {symbol.shndx}")
        item, offset = self._map_of(symbol)
        if item is None:
            raise self._bad(prog, index, f"bad map relo against '{symbol.name}' in section {symbol.shndx}")
        if not item.autocreate:
            if item.kind == O.SEC_RODATA:
                self._note_constant(linked, at, item, offset + I.read(linked.code, at, _ORDER)[4])
            poison_ldimm64(linked.code, at, I.POISON_MAP_BASE + item.index)
            return
        value = item.kind is not None
        if value:
            offset += I.read(linked.code, at, _ORDER)[4]
        pseudo = I.BPF_PSEUDO_MAP_VALUE if value else I.BPF_PSEUDO_MAP_FD
        _set_ldimm64(linked.code, at, pseudo, item.fd if item.fd is not None else -1, offset)
        linked.refs.append(Ref(at, "map_value" if value else "map_fd", item.name, offset))

    def _note_constant(self, linked: Linked, at: int, item: Map, offset: int) -> None:
        linked.constants.append(Site(at, item.data, offset))
        linked.registers[at] = I.read(linked.code, at, _ORDER)[1]

    def _map_of(self, symbol: E.Symbol) -> tuple[Map | None, int]:
        if self._arena is not None and self._obj.sections.get(symbol.shndx) == O.SEC_ARENA:
            return self._arena, symbol.value
        data = self._data_maps.get(symbol.shndx)
        if data is not None and data.is_internal and data.kind != KCONFIG:
            return data, symbol.value
        return self._user_maps.get((symbol.shndx, symbol.value)), 0

    def _extern_ld64(self, linked: Linked, at: int, extern: Extern) -> None:
        if extern.section == ".kconfig":
            item = self._kconfig
            fd = item.fd if item is not None and item.fd is not None else -1
            if item is not None and not item.autocreate:
                self._note_constant(linked, at, item, extern.data_off)
            _set_ldimm64(linked.code, at, I.BPF_PSEUDO_MAP_VALUE, fd, extern.data_off)
            linked.refs.append(Ref(at, "map_value", item.name if item is not None else ".kconfig", extern.data_off))
        elif isinstance(extern, Ksym) and extern.type_id and extern.is_set:
            _set_ldimm64(linked.code, at, I.BPF_PSEUDO_BTF_ID, extern.btf_id, extern.btf_obj_fd)
            linked.refs.append(Ref(at, "ksym", extern.name))
        else:
            address = extern.value if isinstance(extern, Ksym) else 0
            src = I.read(linked.code, at, _ORDER)[2]
            _set_ldimm64(linked.code, at, src, address & 0xFFFFFFFF, address >> 32)
            linked.refs.append(Ref(at, "ksym", extern.name))

    def _extern_call(self, linked: Linked, at: int, extern: Extern) -> None:
        op, dst, _, off, imm = I.read(linked.code, at, _ORDER)
        if isinstance(extern, Ksym) and extern.is_set:
            off, imm, src = extern.fd_index, extern.btf_id, I.BPF_PSEUDO_KFUNC_CALL
            linked.refs.append(Ref(at, "kfunc", extern.name))
        elif not self._obj.knows(_WEAK_KFUNC_POISON):
            off, imm, src = 0, 0, I.BPF_PSEUDO_KFUNC_CALL
            linked.refs.append(Ref(at, "kfunc", extern.name))
        else:
            dst = src = off = 0
            imm = I.POISON_KFUNC_BASE + self._extern_index[extern.sym_idx]
        I.write(linked.code, at, op, dst, src, off, imm, _ORDER)


def _is_extern(symbol: E.Symbol) -> bool:
    return symbol.shndx == E.SHN_UNDEF and symbol.bind in (E.STB_GLOBAL, E.STB_WEAK) and symbol.type == E.STT_NOTYPE


def _set_ldimm64(code: bytearray, at: int, src: int, low: int, high: int) -> None:
    op, dst, _, off, _ = I.read(code, at, _ORDER)
    I.write(code, at, op, dst, src, off, low, _ORDER)
    op, dst, src, off, _ = I.read(code, at + 1, _ORDER)
    I.write(code, at + 1, op, dst, src, off, high, _ORDER)


def poison_ldimm64(code: bytearray, at: int, imm: int) -> None:
    """Both halves become a call of something that does not exist (poison_map_ldimm64())."""
    for slot in (at, at + 1):
        I.write(code, slot, I.CALL, 0, 0, 0, imm, _ORDER)


# -- func_info and line_info


class InfoRecords:
    """func_info and line_info of an object's `.BTF.ext`, by section, to be cut out for each linked program."""

    def __init__(self, obj: BpfObject) -> None:
        self._path = obj.path
        self._sections = obj.elf.sections
        ext, btf = obj.btf_ext, obj.btf
        self._funcs = _by_section(btf, ext.func_info) if ext is not None and btf is not None else {}
        self._lines = _by_section(btf, ext.line_info) if ext is not None and btf is not None else {}

    def of(self, linked: Linked) -> tuple[bytes, bytes]:
        """func_info and line_info in the program's own instruction numbers (reloc_prog_func_and_line_info()).

        Where the entry program has none there are none at all, its subprograms' included; a subprogram without, when
        the entry program has some, makes libbpf fail: LinkError.
        """
        return self._cut("func", "=II", self._funcs, linked), self._cut("line", "=IIII", self._lines, linked)

    def _cut(self, what: str, layout: str, records: dict[str, list[tuple[int, ...]]], linked: Linked) -> bytes:
        found: list[bytes] = []
        pack = struct.Struct(layout).pack
        for position, func in enumerate(linked.funcs):
            own = self._shifted(records, func)
            if position == 0 and not own:
                return b""
            if not own:
                main = linked.funcs[0].prog.name
                why = f"missing .BTF.ext {what} info for '{func.prog.name}'"
                raise LinkError(f"{self._path}: prog '{main}': {why}", ENOENT)
            found += [pack(*record) for record in own]
        return b"".join(found)

    def _shifted(self, records: dict[str, list[tuple[int, ...]]], func: Func) -> list[tuple[int, ...]]:
        prog = func.prog
        low, shift = prog.sec_insn_off, func.start - prog.sec_insn_off
        high = low + prog.insn_count
        own = records.get(self._sections[prog.sec_idx].name, ())
        return [(r[0] // I.INSN_SIZE + shift, *r[1:]) for r in own if low <= r[0] // I.INSN_SIZE < high]


def _by_section(btf: Btf, infos: list[InfoSec]) -> dict[str, list[tuple[int, ...]]]:
    found: dict[str, list[tuple[int, ...]]] = {}
    for info in infos:
        found.setdefault(btf.string(info.sec_name_off), []).extend(info.records)
    return found
