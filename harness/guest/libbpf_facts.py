"""Facts (docs/facts.md) from what libbpf did: its decisions, the programs it asked the kernel for, and what the kernel
said.

Names of functions, relocations and externs come from the object file (`bpf_object`), places from libbpf's own account
of what it appended where, values from its debug output, instructions from its requests: nothing here relocates.
"""

from __future__ import annotations

import binascii
import ctypes
import struct

from . import verifier_log
from .bpf_object import BpfObject
from .core_relo import SourceLines
from .elf import STT_SECTION
from .errors import GuestError
from .insn import (
    BPF_PSEUDO_BTF_ID,
    BPF_PSEUDO_CALL,
    BPF_PSEUDO_FUNC,
    BPF_PSEUDO_KFUNC_CALL,
    BPF_PSEUDO_MAP_FD,
    BPF_PSEUDO_MAP_VALUE,
    CALL,
    INSN_SIZE,
    LDIMM64,
    POISON_CORE_RELO,
    WIDTH_OF_SIZE,
    pack,
    read,
)
from .libbpf_report import apply_settings, collect_evidence, core_kind, extern_rows
from .prog_types import BPF_F_SLEEPABLE
from .refusals import explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import Prog
    from .libbpf_debug_log import Decision
    from .libbpf_doors import Verdict
    from .libbpf_ffi import Library
    from .libbpf_loader import Load

# What libbpf's last warning says -> the stage it was in when it gave up.
_STAGES = (
    ("endianness", "open"),
    ("extern", "externs"),
    ("Kconfig", "externs"),
    ("kernel config", "externs"),
    ("kallsyms", "externs"),
    ("relo", "core"),
    ("relocation", "core"),
    ("target BTF", "core"),
    ("map", "maps"),
    ("struct_ops", "maps"),
)


class Record:
    """One CO-RE record of the object: `key` is libbpf's (section, number), `func` the function that holds `insn` (None:
    the static linker dropped it), `index` its place among those libbpf decided on.
    """

    __slots__ = ("func", "index", "insn", "key", "kind", "type_id")

    def __init__(self, key: tuple[str, int], func: Prog | None, insn: int, type_id: int, kind: int) -> None:
        self.key = key
        self.func = func
        self.insn = insn
        self.type_id = type_id
        self.kind = kind
        self.index: int | None = None


class Facts:
    """Collects one answer, from one or several loads of the same object.

    `error` is the object's (`object_error` of the facts): the first reason libbpf had to give up.
    """

    def __init__(self, lib: Library, machine: Any, data: bytes, request: dict[str, Any]) -> None:
        self.error: dict[str, Any] | None = None
        self._lib = lib
        self._machine = machine
        self._request = request
        self._progs: dict[str, dict[str, Any]] = {}
        self._externs: list[dict[str, Any]] = []
        self._maps: list[dict[str, Any]] = []
        self._seconds = {"open": 0.0, "core": 0.0, "maps": 0.0, "load": 0.0, "evidence": 0.0}
        self._decisions: dict[tuple[str, int], Decision] = {}
        self._found: dict[int, list[tuple[int, str, str]]] = {}
        self._lines: dict[int, dict[str, Any]] = {}
        self._skipped = 0
        self._file: BpfObject | None = None
        self._records: list[Record] = []
        try:
            self._file = BpfObject(data, request["name"])
            self._records = list(_records(self._file))
            self._sources: SourceLines | None = SourceLines(self._file)
        except GuestError:
            self._sources = None  # libbpf says what is wrong with it

    def apply_settings(self, load: Load) -> None:
        """Put the request's values into the images of .rodata maps. Raises SettingError."""
        values = dict(self._request.get("settings") or {})
        if values and self._file is not None:
            apply_settings(self._file, self._images(load), values)

    def _images(self, load: Load) -> dict[str, tuple[int, int]]:
        """Address and size of the initial contents of each read-only data map."""
        return {name: place for name in load.maps if ".rodata" in name and (place := self._image(load, name))}

    def _kconfig_image(self, load: Load) -> bytes | None:
        """What libbpf put into its map of Kconfig values."""
        for name in load.maps:
            place = self._image(load, name) if name.endswith(".kconfig") else None
            if place is not None:
                return ctypes.string_at(*place)
        return None

    def _image(self, load: Load, name: str) -> tuple[int, int] | None:
        """Address and size of the initial contents of one of libbpf's own maps, None where there are none."""
        pointer, size = load.maps[name], ctypes.c_size_t()
        if not self._lib.bpf_map__is_internal(pointer):
            return None
        address = self._lib.bpf_map__initial_value(pointer, ctypes.byref(size))
        return (address, size.value) if address else None

    # --- the object ---------------------------------------------------------------------------------------------------

    def give_up(self, stage: str, errno: int | None, message: str, relo: tuple[str, int] | None = None) -> None:
        """libbpf would stop here; the first reason is the one reported. `relo` is a record's key."""
        if self.error is None:
            self.error = {"stage": stage, "errno": errno, "message": message, "relo": relo}

    def learn(self, load: Load) -> None:
        """Take over what one load says of relocations, externs and maps; later loads of the object only add to it."""
        for key, decision in load.log.decisions.items():
            known = self._decisions.get(key)
            if known is None or not known.fatal:
                self._decisions[key] = decision
        self._found.update(load.log.found)
        self._number_lines()
        self._externs = extern_rows(load.log, self._file, self._kconfig_image(load))
        self._maps = [self._map_row(load, name, pointer) for name, pointer in load.maps.items()]
        for phase, spent in load.seconds.items():
            self._seconds[phase] += spent
        for name, errno in load.doors.map_errors.items():
            self.give_up("maps", errno, "map '%s': the kernel refused to create it" % name)
        for name, pointer in load.progs.items():
            self._entry(load, name, pointer)

    def _map_row(self, load: Load, name: str, pointer: int) -> dict[str, Any]:
        kind = self._lib.libbpf_bpf_map_type_str(self._lib.bpf_map__type(pointer))
        errno = load.doors.map_errors.get(name)
        message = "map '%s': the kernel refused to create it" % name if errno else None
        return {"name": name, "type": kind.decode() if kind else None, "errno": errno, "message": message}

    def reason_to_give_up(self, load: Load) -> tuple[str, int, str, tuple[str, int] | None]:
        """Stage, errno, libbpf's words and the record's key, of a load that ended before its programs."""
        if load.obj is None:
            return "open", load.error, "\n".join(load.log.warnings[-3:]), None
        for key, decision in load.log.decisions.items():
            if decision.fatal:
                return "core", load.error, "prog '%s': relo #%d: %s" % (decision.prog, key[1], decision.fatal), key
        return _stage(load.log.warnings), load.error, "\n".join(load.log.warnings[-3:]), None

    # --- programs -----------------------------------------------------------------------------------------------------

    def _entry(self, load: Load, name: str, pointer: int) -> dict[str, Any]:
        entry = self._progs.get(name)
        if entry is not None:
            return entry
        lib = self._lib
        section = lib.bpf_program__section_name(pointer).decode()
        kind = lib.libbpf_bpf_prog_type_str(lib.bpf_program__type(pointer))
        number = lib.bpf_program__expected_attach_type(pointer)
        attach = lib.libbpf_bpf_attach_type_str(number) if number or kind == b"cgroup_skb" else None
        entry = self._progs[name] = {
            "name": name, "section": section, "prog_type": kind.decode() if kind and kind != b"unspec" else None,
            "expected_attach_type": attach.decode() if attach else None,
            "attach_target": section.partition("/")[2] or None, "autoload": load.autoload[name], "sleepable": False,
            "loaded": False, "alone": False, "stage": None, "errno": None, "error": None,
            "unsupported": None, "adaptations": [], "verifier": None, "log": "", "log_truncated": False,
            "insns": "", "funcs": [], "refs": [], "relos": [], "evidence": None, "attach": None,
        }  # fmt: skip
        return entry

    def refusal(
        self, load: Load, name: str, stage: str, errno: int | None, error: str, unsupported: str | None = None
    ) -> None:
        """A program that libbpf gave up before the kernel was asked."""
        entry = self._entry(load, name, load.progs[name])
        entry.update(stage=stage, errno=errno, error=error, unsupported=unsupported)

    def program(self, name: str, load: Load, progress: Callable[[dict[str, Any]], None]) -> None:
        """A program the kernel has answered for."""
        verdict = load.doors.verdicts[name]
        entry = self._entry(load, name, load.progs[name])
        self._place(entry, name, load)
        missing = [ref["name"] for ref in entry["refs"] if ref["name"] in load.doors.map_errors]
        if missing:
            errno = load.doors.map_errors[missing[0]]
            entry.update(stage="maps", errno=errno, error="map '%s': the kernel refused to create it" % missing[0])
            return
        log = verdict.log.decode("utf-8", "replace")
        entry.update(
            loaded=verdict.fd is not None, alone=self.error is not None, errno=verdict.errno, log=log,
            log_truncated=verdict.log_truncated, verifier=verifier_log.figures(log),
            sleepable=bool(verdict.load.prog_flags & BPF_F_SLEEPABLE),
        )  # fmt: skip
        if verdict.fd is None:
            self._explain(entry, verdict, log)
        if self._request.get("evidence", True) and entry["stage"] != "pre_verifier":
            entry["evidence"] = collect_evidence(
                self._machine, entry, verdict, self._lines_by_index(), self._file, progress, self._seconds
            )
        if self._request.get("attach") and entry["loaded"] and entry["prog_type"] != "struct_ops":
            from .libbpf_attach import attach

            entry["attach"] = attach(load, self._machine, entry, progress)

    def attach_struct_ops(self, load: Load) -> None:
        """Once all programs of a struct are there, if libbpf has loaded the object."""
        if self._request.get("attach") and not load.error and self._file is not None:
            from .libbpf_attach import attach_struct_ops_of

            attach_struct_ops_of(load, self._file, self._progs)

    def _explain(self, entry: dict[str, Any], verdict: Verdict, log: str) -> None:
        entry["stage"] = "verifier" if log else "pre_verifier"
        if log:
            entry["error"] = verifier_log.reason(log)
        else:
            why = explain(self._machine.bpf, self._machine.features, verdict.load, verdict.errno or 0)
            entry["error"], entry["unsupported"] = why

    def place_others(self, load: Load) -> None:
        """The final code of programs nobody asked the kernel for, as far as libbpf got with it."""
        for name in load.doors.sequences:
            entry = self._entry(load, name, load.progs[name])
            if not entry["insns"]:
                self._place(entry, name, load)

    def _place(self, entry: dict[str, Any], name: str, load: Load) -> None:
        """Final code of a program: its functions, what its instructions refer to, where relocations ended up."""
        code = load.doors.sequences[name].insns
        funcs = self._functions(name, load, len(code) // INSN_SIZE)
        entry["insns"] = binascii.b2a_base64(code, newline=False).decode()
        entry["funcs"] = funcs
        entry["refs"] = list(self._refs(code, funcs, load))
        starts = {func["name"]: func["start"] for func in funcs}
        entry["relos"] = [
            {"relo": record.index, "insn": starts[record.func.name] + record.insn}
            for record in self._records
            if record.index is not None and record.func is not None and record.func.name in starts
        ]

    def _functions(self, name: str, load: Load, total: int) -> list[dict[str, Any]]:
        appended = load.log.appended.get(name, [])
        sizes = [(name, total - sum(size for _, size in appended)), *appended]
        funcs, start = [], 0
        for own, size in sizes:
            prog = self._file.prog(own) if self._file else None
            is_global = prog is None or (prog.is_global and not prog.hidden)
            funcs.append({"name": own, "start": start, "insns": size, "global": is_global})
            start += size
        return funcs

    def _refs(self, code: bytes, funcs: list[dict[str, Any]], load: Load) -> Any:
        maps = load.doors.map_names
        names = self._symbol_names(funcs)
        starts = {func["start"]: func["name"] for func in funcs}
        index, count = 0, len(code) // INSN_SIZE
        while index < count:
            op, _dst, src, off, imm = read(code, index)
            if op == LDIMM64:
                high = read(code, index + 1)[4]
                row = _wide_ref(index, src, imm, high, maps, names, starts)
                if row is not None:
                    yield row
                index += 1
            elif op == CALL and src == BPF_PSEUDO_KFUNC_CALL:
                yield {"insn": index, "kind": "kfunc", "name": names.get(index, ""), "off": off}
            elif op == CALL and src == BPF_PSEUDO_CALL:
                yield {"insn": index, "kind": "subprog", "name": starts.get(index + 1 + imm, ""), "off": 0}
            index += 1

    def _symbol_names(self, funcs: list[dict[str, Any]]) -> dict[int, str]:
        """Final instruction -> the symbol its ELF relocation names (a section symbol names nothing)."""
        names = {}
        for func in funcs:
            prog = self._file.prog(func["name"]) if self._file else None
            for reloc in prog.elf_relocs if prog is not None else ():
                if reloc.sym.type != STT_SECTION:
                    names[func["start"] + reloc.insn] = reloc.sym.name
        return names

    # --- relocations --------------------------------------------------------------------------------------------------

    def _number_lines(self) -> None:
        """Records libbpf decided on, numbered in their order; the others it skipped."""
        decided = [record for record in self._records if record.key in self._decisions]
        self._skipped = len(self._records) - len(decided)
        for record in self._records:
            record.index = None
        for index, record in enumerate(decided):
            record.index = index

    def _lines_by_index(self) -> dict[int, dict[str, Any]]:
        for record in self._records:
            if record.index is not None and record.index not in self._lines:
                self._lines[record.index] = self._line(record, self._decisions[record.key])
        return self._lines

    def _line(self, record: Record, decision: Decision) -> dict[str, Any]:
        func = record.func
        assert func is not None
        before = _insn_bytes(func.insns, record.insn)
        value = next((pair for field, pair in decision.patched.items() if field != "mem_sz"), None)
        outcome = "error" if decision.fatal else "poisoned" if decision.poisoned else "resolved"
        found = {number: name for number, name, _ in self._found.get(record.type_id, [])}
        offset = (func.sec_insn_off + record.insn) * INSN_SIZE
        return {
            "index": record.index, "type": "core_relo", "prog": func.name, "section": func.section, "insn": record.insn,
            "kind": core_kind(record.kind), "local_spec": decision.local_spec, "target_spec": decision.target_spec,
            "outcome": outcome, "orig_value": value[0] if value else None,
            "new_value": value[1] if value is not None and outcome == "resolved" else None,
            "before": before.hex(), "after": _patched(before, decision).hex(),
            "reason": decision.fatal or decision.why, "local": None, "target": None,
            "candidates": [_candidate(spec, matching, found) for _, spec, matching in decision.candidates],
            "source": self._source(func.sec_idx, offset, decision.local_spec),
        }  # fmt: skip

    def _source(self, sec_idx: int, offset: int, local_spec: str | None) -> dict[str, object] | None:
        return None if self._sources is None else self._sources.naming(sec_idx, offset, local_spec or "")

    def result(self) -> dict[str, Any]:
        """The whole answer."""
        opened, version = self._file, self._lib.version
        lines = self._lines_by_index()
        numbers = {record.key: record.index for record in self._records}
        if self.error is not None and self.error["relo"] is not None:
            self.error["relo"] = numbers.get(self.error["relo"])
        return {
            "type": "facts", "facts": 1, "loader": "libbpf", "loader_version": "libbpf " + version, "rules": version,
            "guest": self._machine.facts(),
            "object": None if opened is None else {
                "has_btf": opened.btf is not None, "license": opened.license, "machine": opened.elf.machine,
                "producer": None, "btf_error": opened.btf_error,
            },
            "object_error": self.error, "externs": self._externs,
            "core_relos": [lines[index] for index in sorted(lines)],
            "skipped_core_relos": self._skipped, "maps": self._maps, "progs": list(self._progs.values()),
            "seconds": {phase: round(spent, 6) for phase, spent in self._seconds.items()},
        }  # fmt: skip


def _stage(warnings: list[str]) -> str:
    for text in reversed(warnings):
        for word, stage in _STAGES:
            if word in text:
                return stage
    return "core"


def _records(file: BpfObject) -> Any:
    """CO-RE records in file order, as bpf_object__relocate_core() walks them."""
    if file.btf is None or file.btf_ext is None:
        return
    for info in file.btf_ext.core_relos:
        name = file.btf.string(info.sec_name_off)
        section = file.elf.section(name)
        for number, (insn_off, type_id, _access, kind) in enumerate(info.records):
            func = file.find_prog(section.index, insn_off // INSN_SIZE) if section is not None else None
            insn = insn_off // INSN_SIZE - (func.sec_insn_off if func is not None else 0)
            yield Record((name, number), func, insn, type_id, kind)


def _insn_bytes(code: bytes | bytearray, index: int) -> bytes:
    slots = 2 if code[index * INSN_SIZE] == LDIMM64 else 1
    return bytes(code[index * INSN_SIZE : (index + slots) * INSN_SIZE])


def _patched(before: bytes, decision: Decision) -> bytes:
    """The instruction after what libbpf says it did; the final code is the second witness (judge/agreement.py)."""
    if decision.poisoned:
        return pack(CALL, imm=POISON_CORE_RELO) * (len(before) // INSN_SIZE)
    code, regs, off, imm = struct.unpack_from("=BBhi", before)
    if "imm64" in decision.patched:
        new = decision.patched["imm64"][1]
        return struct.pack("=BBhI", code, regs, off, new & 0xFFFFFFFF) + before[8:12] + struct.pack("=I", new >> 32)
    if "imm" in decision.patched:
        return struct.pack("=BBhI", code, regs, off, decision.patched["imm"][1] & 0xFFFFFFFF)
    if "off" in decision.patched:
        off = decision.patched["off"][1]
    if "mem_sz" in decision.patched:
        code = code & ~0x18 | WIDTH_OF_SIZE[decision.patched["mem_sz"][1]]
    return struct.pack("=BBhi", code, regs, off, imm)


def _candidate(spec: str, matching: bool, found: dict[int, str]) -> dict[str, Any]:
    number = int(spec.partition("[")[2].partition("]")[0] or 0)
    name = found.get(number, "")
    return {"name": name, "id": number, "why_not": None if matching else "non-matching"}


def _wide_ref(
    index: int, src: int, imm: int, high: int, maps: dict[int, str], names: dict[int, str], starts: dict[int, str]
) -> dict[str, Any] | None:
    """What an ldimm64 refers to; None for a plain number."""
    if src == BPF_PSEUDO_MAP_FD:
        return {"insn": index, "kind": "map_fd", "name": maps.get(imm, ""), "off": 0}
    if src == BPF_PSEUDO_MAP_VALUE:
        return {"insn": index, "kind": "map_value", "name": maps.get(imm, ""), "off": high}
    if src == BPF_PSEUDO_BTF_ID:
        return {"insn": index, "kind": "btf_id", "name": names.get(index, ""), "off": 0}
    if src == BPF_PSEUDO_FUNC:
        return {"insn": index, "kind": "subprog", "name": starts.get(index + 1 + imm, ""), "off": 0}
    if index in names and src == 0:
        return {"insn": index, "kind": "ksym", "name": names[index], "off": 0}
    return None
