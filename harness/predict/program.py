"""A program's final instructions with all that is known of them before the load: from an object, or from a guest's
facts.
"""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from harness.guest import bpf_object as O
from harness.guest import btf_load, settings
from harness.guest import insn as I
from harness.guest.bpf_object import BpfObject, Prog
from harness.guest.externs import Externs
from harness.guest.kconfig import Extern, map_value, parse_u64
from harness.guest.linking import Linked, Linker
from harness.guest.maps import KCONFIG, Map, internal_map, read_maps
from harness.model.result import CellResult
from harness.predict.final import Func, Program

_TRISTATE = {"n": 0, "y": 1, "m": 2}


class KnownObject:
    """An opened object with what it holds for its programs: its maps, `settings` applied to .rodata, and its Kconfig
    externs with `values` (name -> a number, true or false, y, n or m, text, `Spelled`; None: not known). Raises
    GuestError where libbpf refuses the object.

    `unknown`: Kconfig externs without a value: the verifier will know what is in their place, and we do not.
    """

    def __init__(
        self, obj: BpfObject, name: str, settings_: Mapping[str, str], values: Mapping[str, object] | None = None
    ) -> None:
        self.obj = obj
        places = btf_load.variable_places(obj)
        self.externs = Externs(obj)
        self.maps: list[Map] = read_maps(obj, name.partition(".")[0], places)
        settings.apply(obj, self.maps, places, dict(settings_))
        self.unknown = [x.name for x in self.externs.kconfig if (values or {}).get(x.name) is None]
        for extern in self.externs.kconfig:
            value = (values or {}).get(extern.name)
            extern.value = encode(extern, value, obj.byteorder) if value is not None else b"\0" * extern.size
            extern.is_set = True
        if self.externs.kconfig:
            data = bytearray(map_value(self.externs.kconfig))
            self.maps.append(internal_map(obj, name.partition(".")[0], KCONFIG, ".kconfig", data, -1))
        for index, item in enumerate(self.maps):
            item.index = index

    def frozen(self) -> dict[str, bytes]:
        """Content of the maps that are frozen before the load, by name; of two with one name, neither."""
        names = [item.name for item in self.maps]
        return {
            item.name: bytes(item.data)
            for item in self.maps
            if item.kind in (O.SEC_RODATA, KCONFIG) and names.count(item.name) == 1
        }

    def secrets(self) -> dict[str, tuple[tuple[int, int], ...]]:
        """Ranges of bytes within frozen maps, by the map's name, that hold what is not known here."""
        name = next((item.name for item in self.maps if item.kind == KCONFIG), None)
        found = tuple((x.data_off, x.data_off + x.size) for x in self.externs.kconfig if x.name in self.unknown)
        return {name: found} if name is not None and found else {}

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Sizes of key and value of each map, in bytes."""
        return {item.name: (item.key_size, item.value_size) for item in self.maps}

    def link(self, prog: Prog) -> Linked:
        """Subprograms appended, references resolved as far as that is possible without a kernel. LinkError."""
        return Linker(self.obj, self.maps, self.externs.all).link(prog)


def known_object(result: CellResult, facts: Mapping[str, Any], data: bytes) -> KnownObject:
    """The object of a judged cell, as it was opened in the guest. Raises GuestError as `KnownObject` does."""
    name = result.object.name.rpartition("/")[2]
    return KnownObject(BpfObject(data, name), name, result.settings, kconfig_of(facts.get("externs") or ()))


class Spelled(str):
    """A Kconfig value as libbpf's log has it, the text behind `=` in the file: `y`, `0xfa`, `"none"` in its quotes."""

    __slots__ = ()


def encode(extern: Extern, value: object, byteorder: str) -> bytes:
    """A Kconfig value as the `.kconfig` map holds it. ExternError for a `Spelled` that the extern cannot take."""
    order = "little" if byteorder == "little" else "big"
    if isinstance(value, Spelled):
        number = parse_u64(value)
        if number is None:
            extern.set_text(value, byteorder)
            return extern.value
        value = number
    if isinstance(value, str):
        if extern.kind == "tristate":
            return _TRISTATE.get(value, 0).to_bytes(4, order).ljust(extern.size, b"\0")  # type: ignore[arg-type]
        return value.encode("utf-8", "surrogateescape")[: extern.size].ljust(extern.size, b"\0")
    number = int(value) if isinstance(value, (int, bool)) else 0
    return (number % (1 << extern.size * 8)).to_bytes(extern.size, order)  # type: ignore[arg-type]


def from_object(known: KnownObject, prog: Prog, opaque: Iterable[tuple[str, int]] = ()) -> Program:
    """The program as it would be loaded, `opaque` (function, instruction in it) with constants not to be relied on.

    Kernel symbols and functions are not looked up: whether they exist is taken as not known. LinkError.
    """
    linked = known.link(prog)
    funcs = tuple(
        Func(name=f.prog.name, start=f.start, insns=f.insns, is_global=f.prog.is_global and not f.prog.hidden)
        for f in linked.funcs
    )
    starts = {f.prog.name: f.start for f in linked.funcs}
    refs = [(ref.insn, ref.kind, ref.name, ref.off) for ref in linked.refs]
    symbols = {insn: None for insn, kind, *_ in refs if kind == "ksym"}
    hidden = frozenset(starts[name] + insn for name, insn in opaque if name in starts)
    return replace(_program(prog.name, bytes(linked.code), funcs, refs, known), symbols=symbols, opaque=hidden)


def places(program: Program, relocations: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Index of each relocation that stands in this program -> its instruction in the final sequence."""
    starts = {func.name: func.start for func in program.funcs}
    return {
        index: starts[relo["prog"]] + relo["insn"]
        for index, relo in enumerate(relocations)
        if relo["prog"] in starts
    }


def from_facts(prog: Mapping[str, Any], externs: Iterable[Mapping[str, Any]], known: KnownObject) -> Program:
    """The program that a guest loaded, by its facts (docs/facts.md: `progs`, `externs`)."""
    code = base64.b64decode(prog.get("insns") or "")
    funcs = tuple(
        Func(name=f["name"], start=f["start"], insns=f["insns"], is_global=bool(f["global"]))
        for f in prog.get("funcs") or ()
    )
    refs = [(ref["insn"], ref["kind"], ref["name"], ref.get("off") or 0) for ref in prog.get("refs") or ()]
    exists = {x["name"]: x.get("outcome") == "resolved" for x in externs}
    symbols: dict[int, bool | None] = {
        insn: exists.get(name) for insn, kind, name, _ in refs if kind == "ksym" and _is_typed(code, insn)
    }
    return replace(_program(prog["name"], code, funcs, refs, known), symbols=symbols)


def _is_typed(code: bytes, insn: int) -> bool:
    """A symbol without a type is a number in the instruction, which the verifier knows as well as we do."""
    return I.read(code, insn, sys.byteorder)[2] == I.BPF_PSEUDO_BTF_ID


def _program(
    name: str, code: bytes, funcs: tuple[Func, ...], refs: list[tuple[int, str, str, int]], known: KnownObject
) -> Program:
    sizes = known.sizes()
    return Program(
        name=name,
        code=code,
        funcs=funcs,
        data=known.frozen(),
        secrets=known.secrets(),
        map_values={insn: (of, off) for insn, kind, of, off in refs if kind == "map_value"},
        map_sizes={insn: sizes.get(of, (0, 0)) for insn, kind, of, _ in refs if kind == "map_fd"},
        kfuncs={insn: of for insn, kind, of, _ in refs if kind == "kfunc"},
    )


def kconfig_of(externs: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Kconfig values by name, from facts or from an inspection; a weak one that is not set is 0. Where facts of the
    loader libbpf name no type, values are spelled as Kconfig does.
    """
    rows = [x for x in externs if x.get("kind") == "kconfig" and x.get("outcome") in ("resolved", "missing")]
    return {x["name"]: _value_of(x) for x in rows}


def _value_of(extern: Mapping[str, Any]) -> object:
    value = extern.get("value")
    if isinstance(value, str) and value and extern.get("type") is None:
        return Spelled(value)
    return 0 if value is None else value
