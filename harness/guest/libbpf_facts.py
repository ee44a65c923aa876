"""Facts (docs/facts.md) from what libbpf did: its decisions, the programs it asked the kernel for, and what the kernel said.

Names of functions, relocations and externs come from the object file (`bpf_object`), places from libbpf's own account of what it
appended where, values from its debug output, instructions from its requests: nothing here relocates.
"""

from __future__ import annotations

import base64
import ctypes
import struct

from .bpf_object import BpfObject
from .btf import Btf
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
from .libbpf_report import CORE_KINDS, evidence_of, extern_rows, setting_bytes, source_of, verifier_figures
from .prog_types import BPF_F_SLEEPABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import Prog
    from .libbpf_debug_log import Decision
    from .libbpf_ffi import Library
    from .libbpf_loader import Load, Outcome

# What libbpf's last warning says -> the stage it was in when it gave up.
_STAGES = (
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
    """One CO-RE record of the object: `key` is libbpf's (section, number), `func` the function that holds `insn`."""

    __slots__ = ("func", "insn", "key", "kind", "line", "type_id")

    def __init__(self, key: tuple[str, int], func: Prog, insn: int, type_id: int, kind: int) -> None:
        self.key = key
        self.func = func
        self.insn = insn
        self.type_id = type_id
        self.kind = kind
        self.line: dict[str, Any] | None = None


class Facts:
    """Collects one answer. `fatal_for_all` says that libbpf gave up before it asked for any program."""

    def __init__(self, lib: Library, machine: Any, data: bytes, request: dict[str, Any]) -> None:
        self.lib = lib
        self.request = request
        self.fatal_for_all = False
        self._machine = machine
        self._object_error: dict[str, Any] | None = None
        self._progs: dict[str, dict[str, Any]] = {}
        self._order: list[str] = []
        self._externs: list[dict[str, Any]] = []
        self._maps: list[dict[str, Any]] = []
        self._seconds = {"open": 0.0, "core": 0.0, "maps": 0.0, "load": 0.0, "evidence": 0.0}
        self._settled_core = False
        self._skipped = 0
        self._file: BpfObject | None = None
        self._records: list[Record] = []
        try:
            self._file = BpfObject(data, path=request["name"])
            self._records = list(_records(self._file))
        except GuestError as error:
            self._file_error = error

    # --- before the load ----------------------------------------------------------------------------------------------

    def apply_settings(self, load: Load) -> None:
        """Put the request's values into the images of .rodata maps, at the offsets of libbpf's own BTF."""
        settings = dict(self.request.get("settings") or {})
        if not settings:
            return
        size = ctypes.c_uint32()
        raw = self.lib.btf__raw_data(self.lib.bpf_object__btf(load.obj), ctypes.byref(size))
        btf = Btf(ctypes.string_at(raw, size.value), name="object BTF", pointer_size=8)
        images = self._images(load)
        for name, text in settings.items():
            section, offset, data = setting_bytes(btf, name, text)
            image = next((pair for own, pair in images.items() if own.endswith(section)), None)
            if image is None or offset + len(data) > image[1]:
                raise GuestError("variable '%s' lies outside %s" % (name, section))
            ctypes.memmove(image[0] + offset, data, len(data))

    def _images(self, load: Load) -> dict[str, tuple[int, int]]:
        """Address and size of the initial contents of each read-only data map."""
        images = {}
        for name, pointer in load.maps.items():
            if self.lib.bpf_map__is_internal(pointer) and ".rodata" in name:
                size = ctypes.c_size_t()
                address = self.lib.bpf_map__initial_value(pointer, ctypes.byref(size))
                if address:
                    images[name] = (address, size.value)
        return images

    # --- after a load -------------------------------------------------------------------------------------------------

    def object(self, load: Load) -> None:
        """What became of the object as a whole, from its last load with all programs."""
        self._order = list(load.progs)
        for name, pointer in load.progs.items():
            self._entry(load, name, pointer)
        self._externs = extern_rows(load.log)
        self._maps = [self._map_row(load, name, pointer) for name, pointer in load.maps.items()]
        for phase, spent in load.seconds.items():
            self._seconds[phase] += spent
        if load.doors.map_errors:
            name, errno = next(iter(load.doors.map_errors.items()))
            self._object_error = {"stage": "maps", "errno": errno, "message": "map '%s' was refused" % name, "relo": None}
        if load.error:
            self._object_error = self._give_up(load)
            self.fatal_for_all = load.obj is not None and self._object_error["stage"] == "core"
            if not self.fatal_for_all:
                for name in load.progs:
                    if self._progs[name]["autoload"] and name not in load.doors.verdicts:
                        self.refusal(name, self.refusal_of(load))

    def _give_up(self, load: Load) -> dict[str, Any]:
        stage, message, relo = "open", "\n".join(load.log.warnings[-3:]), None
        if load.obj is not None:
            stage = _stage(load.log.warnings)
            for record in self._records:
                decision = load.log.decisions.get(record.key)
                if decision is not None and decision.fatal:
                    stage, message = "core", "prog '%s': relo #%d: %s" % (decision.prog, record.key[1], decision.fatal)
                    relo = record.line["index"] if record.line is not None else None
        return {"stage": stage, "errno": load.error, "message": message, "relo": relo}

    def refusal_of(self, load: Load) -> Outcome:
        """The outcome of a program that libbpf gave up with its object."""
        from .libbpf_loader import Outcome

        if load.log.refused is not None:
            name, errno = load.log.refused
            texts = [text for text in load.log.warnings if text.startswith("prog '%s'" % name)]
            outcome = Outcome(load, "pre_verifier", errno, "\n".join(texts[-3:]))
            outcome.alone = self.fatal_for_all
            return outcome
        error = self._give_up(load)
        return Outcome(load, error["stage"], error["errno"], error["message"])

    def _map_row(self, load: Load, name: str, pointer: int) -> dict[str, Any]:
        kind = self.lib.libbpf_bpf_map_type_str(self.lib.bpf_map__type(pointer))
        return {"name": name, "type": kind.decode() if kind else None, "errno": load.doors.map_errors.get(name), "message": None}

    # --- programs -----------------------------------------------------------------------------------------------------

    def _entry(self, load: Load, name: str, pointer: int) -> dict[str, Any]:
        entry = self._progs.get(name)
        if entry is not None:
            return entry
        lib = self.lib
        section = lib.bpf_program__section_name(pointer).decode()
        kind = lib.libbpf_bpf_prog_type_str(lib.bpf_program__type(pointer))
        attach = lib.libbpf_bpf_attach_type_str(lib.bpf_program__expected_attach_type(pointer))
        entry = self._progs[name] = {
            "name": name, "section": section, "prog_type": kind.decode() if kind else None,
            "expected_attach_type": attach.decode() if attach else None, "attach_target": section.partition("/")[2] or None,
            "autoload": load.autoload[name], "sleepable": False, "loaded": False, "alone": False, "stage": None, "errno": None,
            "error": None, "adaptations": [], "verifier": None, "log": "", "log_truncated": False, "insns": "", "funcs": [],
            "refs": [], "relos": [], "evidence": None, "attach": None,
        }  # fmt: skip
        return entry

    def refusal(self, name: str, outcome: Outcome) -> None:
        """A program that was refused before the kernel was asked."""
        entry = self._entry(outcome.load, name, outcome.load.progs[name])
        entry.update(stage=outcome.stage, errno=outcome.errno, error=outcome.error, alone=outcome.alone)

    def program(self, name: str, load: Load, alone: bool, progress: Callable[[dict[str, Any]], None]) -> None:
        """A program the kernel has answered for."""
        verdict = load.doors.verdicts[name]
        entry = self._entry(load, name, load.progs[name])
        log = verdict.log.decode("utf-8", "replace")
        self._place(entry, name, load)
        entry.update(
            loaded=verdict.fd is not None, alone=alone or bool(load.doors.map_errors), errno=verdict.errno, log=log,
            log_truncated=verdict.log_truncated, verifier=verifier_figures(log),
            sleepable=bool(verdict.load.prog_flags & BPF_F_SLEEPABLE),
        )  # fmt: skip
        missing = [ref["name"] for ref in entry["refs"] if ref["name"] in load.doors.map_errors]
        if verdict.fd is not None:
            pass
        elif missing:
            errno = load.doors.map_errors[missing[0]]
            entry.update(stage="maps", errno=errno, error="map '%s' was refused" % missing[0], log="", verifier=None)
        else:
            entry["stage"] = "verifier" if log else "pre_verifier"
        if self.request.get("evidence") and not missing:
            entry["evidence"] = evidence_of(self._machine, entry, verdict, self._lines(), progress, self._seconds)

    def relocated(self, load: Load) -> None:
        """Decisions of the first load that got through relocation, and the final code of programs nobody asked the kernel for."""
        if load.obj is None:
            return
        if not self._settled_core:
            self._settle_core(load)
        for name in load.doors.sequences:
            entry = self._entry(load, name, load.progs[name])
            if not entry["insns"]:
                self._place(entry, name, load)

    def _place(self, entry: dict[str, Any], name: str, load: Load) -> None:
        """Final code of a program: its functions, what its instructions refer to, where relocations ended up."""
        if not self._settled_core:
            self._settle_core(load)
        code = load.doors.sequences[name].insns
        funcs = self._functions(name, load, len(code) // INSN_SIZE)
        entry["insns"] = base64.b64encode(code).decode()
        entry["funcs"] = funcs
        entry["refs"] = list(self._refs(code, funcs, load))
        starts = {func["name"]: func["start"] for func in funcs}
        entry["relos"] = [
            {"relo": record.line["index"], "insn": starts[record.func.name] + record.insn}
            for record in self._records
            if record.line is not None and record.func.name in starts
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
        maps = load.map_fds
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

    def _settle_core(self, load: Load) -> None:
        self._settled_core = True
        index = 0
        for record in self._records:
            decision = load.log.decisions.get(record.key)
            if decision is None:
                self._skipped += 1
                continue
            record.line = self._line(index, record, decision, load)
            index += 1

    def _lines(self) -> list[dict[str, Any]]:
        return [record.line for record in self._records if record.line is not None]

    def _line(self, index: int, record: Record, decision: Decision, load: Load) -> dict[str, Any]:
        before = _insn_bytes(record.func.insns, record.insn)
        value = next((pair for field, pair in decision.patched.items() if field != "mem_sz"), None)
        outcome = "error" if decision.fatal else "poisoned" if decision.poisoned else "resolved"
        new = value[1] if value is not None and outcome == "resolved" else None
        if decision.local_spec is not None and "<local_type_id>" in decision.local_spec:
            decision.target_spec = None
        found = {number: (name, where) for number, name, where in load.log.found.get(record.type_id, [])}
        return {
            "index": index, "type": "core_relo", "prog": record.func.name, "section": record.func.section, "insn": record.insn,
            "kind": CORE_KINDS.get(record.kind, str(record.kind)), "local_spec": decision.local_spec,
            "target_spec": decision.target_spec, "outcome": outcome, "orig_value": value[0] if value else None, "new_value": new,
            "before": before.hex(), "after": _patched(before, decision).hex(), "reason": decision.fatal or (decision.why if decision.poisoned else None),
            "local": None, "target": None, "candidates": [_candidate(spec, matching, found) for _, spec, matching in decision.candidates],
            "source": source_of(self._file, record.func, record.insn),
        }  # fmt: skip

    def result(self) -> dict[str, Any]:
        """The whole answer."""
        opened = self._file
        version = "libbpf " + self.lib.version
        return {
            "type": "facts", "facts": 1, "loader": "libbpf", "loader_version": version, "rules": self.lib.version,
            "guest": self._machine.facts(),
            "object": {
                "has_btf": opened is not None and opened.btf is not None, "license": opened.license if opened else None,
                "machine": opened.elf.machine if opened else None, "producer": None,
            },
            "object_error": self._object_error, "externs": self._externs, "core_relos": self._lines(),
            "skipped_core_relos": self._skipped, "maps": self._maps, "progs": [self._progs[name] for name in self._order],
            "seconds": self._seconds,
        }  # fmt: skip


def _stage(warnings: list[str]) -> str:
    for text in reversed(warnings):
        for word, stage in _STAGES:
            if word in text:
                return stage
    return "core"


def _records(file: BpfObject) -> Any:
    """CO-RE records in file order, as bpf_object__relocate_core() walks them; those without a function are left out."""
    if file.btf is None or file.btf_ext is None:
        return
    for info in file.btf_ext.core_relos:
        name = file.btf.string(info.sec_name_off)
        section = file.elf.section(name)
        if section is None:
            continue
        for number, (insn_off, type_id, _access, kind) in enumerate(info.records):
            func = file.find_prog(section.index, insn_off // INSN_SIZE)
            if func is not None:
                yield Record((name, number), func, insn_off // INSN_SIZE - func.sec_insn_off, type_id, kind)


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


def _candidate(spec: str, matching: bool, found: dict[int, tuple[str, str]]) -> dict[str, Any]:
    number = int(spec.partition("[")[2].partition("]")[0] or 0)
    name = found.get(number, ("", ""))[0]
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
