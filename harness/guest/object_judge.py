"""One object on one machine: opened, relocated as a whole, its programs loaded one by one; every step leaves facts.

Where libbpf would give up on the object, the facts say so (`object_error`), and what can still be judged is judged
`alone`.
"""

from __future__ import annotations

import binascii
import os
import sys
from contextlib import suppress
from time import perf_counter

from . import bpf_object as O
from . import btf_load, settings, struct_ops, verifier_log
from .core_relo import Rules
from .errors import GuestError, WrongEndian
from .evidence import Collector, Subject, is_guard, returns_nothing
from .externs import Externs
from .folding import fold_constants
from .kconfig import map_value
from .linking import InfoRecords, Linked, Linker, LinkError
from .loader import Attach, Preparer, Refusal, Verdict, verdict_load
from .map_create import Creator, close_all
from .maps import KCONFIG, PROG_ARRAY, Map, internal_map, read_maps
from .object_relos import ObjectRelos
from .prog_types import SecDef, parse_section
from .refusals import explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import BpfObject, Prog
    from .judge import Machine
    from .syscall import ProgLoad

LOADER = "corematrix 0.1.0"
_OPENS_FOREIGN = (1, 5)  # since then libbpf opens objects of the other byte order, and refuses only to load them
_NO_CALLS = "this kernel has no bpf-to-bpf calls (4.16)"


class Skip(Exception):
    """A program goes no further; `facts` say why."""

    def __init__(self, stage: str, errno: int | None, error: str, **facts: Any) -> None:
        Exception.__init__(self, error)
        self.facts = dict(stage=stage, errno=errno, error=error, **facts)


class ObjectJudge:
    """Judges one object for one request. Use once."""

    def __init__(self, machine: Machine, request: dict[str, Any], progress: Callable[[dict[str, Any]], None]) -> None:
        self._machine = machine
        self._request = request
        self._progress = progress
        self._rules = Rules(request.get("rules"))
        machine.follow(self._rules_version())
        self._error: dict[str, Any] | None = None
        self._obj: BpfObject | None = None
        self._maps: list[Map] = []
        self._externs: Externs | None = None
        self._core = ObjectRelos(self._rules)
        self._adaptations: list[dict[str, Any]] = []
        self._seconds = dict.fromkeys(("open", "core", "maps", "load", "evidence"), 0.0)
        self._struct_ops: struct_ops.StructOps | None = None
        self._prog_ids: set[int] = set()
        self._prog_fds: dict[int, int] = {}  # kept for prog arrays and struct_ops
        self._infos: InfoRecords | None = None
        self._linker: Linker | None = None
        self._preparer: Preparer | None = None
        self._collector: Collector | None = None
        self._btf_fd = 0

    # -- the whole road

    def facts(self, data: bytes) -> dict[str, Any]:
        """The answer. Every descriptor is closed again, and what the kernel frees later is waited for."""
        progs: list[dict[str, Any]] = []
        try:
            progs = self._judge(data)
        finally:
            self._close()
        return self._answer(progs)

    def _judge(self, data: bytes) -> list[dict[str, Any]]:
        if not self._step("open", lambda: self._open(data), stage="open"):
            return [self._stopped(prog) for prog in self._obj.entry_progs] if self._obj is not None else []
        assert self._obj is not None
        if not self._step("open", self._resolve_externs):
            return [self._stopped(prog) for prog in self._obj.entry_progs]
        self._step("core", self._relocate)
        self._step("maps", self._prepare)
        progs = [self._program(prog) for prog in self._obj.entry_progs]
        self._fill_prog_arrays()
        if self._request.get("attach"):
            self._attach_struct_ops(progs)
        return progs

    def _step(self, phase: str, work: Callable[[], None], stage: str | None = None) -> bool:
        """Do the work; False where libbpf would stop (in `stage`, else the error's own)."""
        start = perf_counter()
        try:
            work()
        except GuestError as error:
            self._give_up(stage or error.stage, error.errno, error.message)
            return False
        finally:
            self._seconds[phase] += perf_counter() - start
        return True

    def _give_up(self, stage: str, errno: int | None, message: str, relo: int | None = None) -> None:
        """libbpf would stop here; the first reason is the one reported."""
        if self._error is None:
            self._error = {"stage": stage, "errno": errno, "message": message, "relo": relo}

    def _close(self) -> None:
        close_all(self._maps)
        while self._prog_fds:
            os.close(self._prog_fds.popitem()[1])
        if self._collector is not None:
            self._collector.close()
        if self._btf_fd:
            os.close(self._btf_fd)
            self._btf_fd = 0
        self._machine.leave_behind(self._prog_ids, {m.ident for m in self._maps if m.ident})

    # -- open, externs

    def _open(self, data: bytes) -> None:
        name = os.path.basename(self._request.get("name") or "object")
        rules = self._rules_version()
        any_order = rules is None or rules >= _OPENS_FOREIGN
        obj = self._obj = O.BpfObject(data, name, None if any_order else sys.byteorder, rules)
        places = btf_load.variable_places(obj)
        self._externs = Externs(obj)
        self._maps = read_maps(obj, name.partition(".")[0], places)
        self._struct_ops = struct_ops.StructOps(obj, places, rules)
        settings.apply(obj, self._maps, places, self._request.get("settings") or {})
        if obj.byteorder != sys.byteorder:
            raise WrongEndian(f"{name}: BPF code is {obj.byteorder}-endian: it cannot be loaded here")

    def _resolve_externs(self) -> None:
        assert self._obj is not None and self._externs is not None and self._struct_ops is not None
        externs = self._externs
        externs.resolve(self._machine.symbols, self._rules_version())
        if externs.kconfig:
            data = bytearray(map_value(externs.kconfig))
            name = self._obj.path.partition(".")[0]
            self._maps.append(internal_map(self._obj, name, KCONFIG, ".kconfig", data, -1))
        self._struct_ops.find_types(self._machine.symbols)
        self._maps += self._struct_ops.maps
        for index, item in enumerate(self._maps):
            item.index = index

    def _relocate(self) -> None:
        assert self._obj is not None
        try:
            self._core.relocate(self._obj, self._machine)
        finally:
            if self._core.error is not None:
                self._give_up("core", **self._core.error)

    # -- BTF and maps

    def _prepare(self) -> None:
        assert self._obj is not None and self._externs is not None
        obj, machine = self._obj, self._machine
        machine.await_gone()
        self._btf_fd = self._load_btf()
        creator = Creator(machine.bpf, machine.features, self._btf_fd, self._rules_version())
        creator.create_all(self._maps)
        self._adaptations += [{"name": n, "libbpf": True, "detail": d} for n, d in creator.adaptations]
        for item in self._maps:
            if item.message is not None:
                self._give_up("maps", item.errno, item.message)
        self._infos = InfoRecords(obj)
        self._linker = Linker(obj, self._maps, self._externs.all)
        license_ = obj.license.encode("latin-1")
        version = obj.kern_version or machine.kern_version
        self._preparer = Preparer(machine.features, machine.symbols, self._btf_fd, license_, version)
        removes = machine.features["dead_code_removal"] and machine.features["btf_func"]
        self._collector = Collector(machine.bpf, removes)

    def _load_btf(self) -> int:
        """The object's BTF in the kernel; 0 without one, or when the kernel does not take it (libbpf then goes on
        without, unless the object has struct_ops maps)."""
        assert self._obj is not None and self._externs is not None and self._struct_ops is not None
        features = self._machine.features
        if self._obj.btf is None:
            return 0
        if not features["btf_load"]:
            self._adapt("no_btf_load", "this kernel takes no BTF: loaded without func_info and line_info")
            return 0
        image = btf_load.BtfImage(self._obj.btf)
        btf_load.complete(image, self._obj)
        offsets = {x.name: x.data_off for x in self._externs.kconfig}
        btf_load.complete_kconfig(image, offsets, len(map_value(self._externs.kconfig)))
        btf_load.complete_ksyms(image)
        missing = btf_load.sanitise(image, features)
        if missing:
            self._adapt("btf_sanitised", "BTF rewritten for a kernel without " + ", ".join(missing))
        try:
            return self._machine.bpf.btf_load(image.bytes())
        except OSError as error:
            why = self._btf_complaint(image.bytes())
            self._adapt("btf_refused", f"the kernel refused the object's BTF ({error.strerror}): {why}")
            if self._struct_ops.maps:
                self._give_up("maps", error.errno, f"BTF is needed for struct_ops, and the kernel refused it: {why}")
            return 0

    def _btf_complaint(self, data: bytes) -> str:
        bpf = self._machine.bpf
        with suppress(OSError):
            os.close(bpf.btf_load(data, 1))
        return verifier_log.reason(bpf.log_buffer().text()[-2000:].decode("utf-8", "replace")) or "no reason given"

    def _adapt(self, name: str, detail: str) -> None:
        self._adaptations.append({"name": name, "libbpf": True, "detail": detail})

    # -- programs

    def _program(self, prog: Prog) -> dict[str, Any]:
        assert self._struct_ops is not None
        definition = parse_section(prog.section, self._rules_version())
        facts = self._blank(prog, definition)
        wanted = self._request.get("progs")
        skipped = (wanted is not None and prog.name not in wanted) or prog.name in (
            self._request.get("skip_progs") or ()
        )
        if self._struct_ops.unused(prog):
            facts.update(autoload=False)
        if not facts["autoload"] or skipped:
            return facts
        self._progress({"type": "progress", "phase": "verdict", "prog": prog.name})
        start = perf_counter()
        try:
            self._try(prog, definition, facts)
        except Skip as skip:
            facts.update(skip.facts)
        except Refusal as refusal:
            facts.update(
                stage=refusal.stage, errno=refusal.errno, error=refusal.message, unsupported=refusal.unsupported
            )
        except LinkError as error:
            facts.update(stage=error.stage, errno=error.errno, error=error.message)
            self._give_up(error.stage, error.errno, error.message)
        self._seconds["load"] += perf_counter() - start
        return facts

    def _rules_version(self) -> tuple[int, ...] | None:
        version = self._request.get("rules")
        return None if version is None else tuple(int(word) for word in version.split(".")[:2])

    def _blank(self, prog: Prog, definition: SecDef | None) -> dict[str, Any]:
        return {
            "name": prog.name, "section": prog.section, "prog_type": definition.type_name if definition else None,
            "expected_attach_type": definition.attach_name if definition else None,
            "attach_target": definition.target if definition else None, "autoload": prog.autoload,
            "sleepable": bool(definition and definition.is_sleepable), "loaded": False, "alone": False, "stage": None,
            "errno": None, "error": None, "unsupported": None, "adaptations": [], "verifier": None, "log": "",
            "log_truncated": False, "insns": "", "funcs": [], "refs": [], "relos": [], "evidence": None, "attach": None,
        }  # fmt: skip

    def _stopped(self, prog: Prog) -> dict[str, Any]:
        """A program of an object that libbpf gave up on before it came to programs."""
        facts = self._blank(prog, parse_section(prog.section, self._rules_version()))
        if self._error is not None and prog.autoload:
            facts.update(stage=self._error["stage"], errno=self._error["errno"], error=self._error["message"])
        return facts

    def _try(self, prog: Prog, definition: SecDef | None, facts: dict[str, Any]) -> None:
        assert self._linker is not None and self._infos is not None and self._preparer is not None
        linked = self._linker.link(prog)
        self._describe(linked, facts)
        self._check_relocated(linked)
        self._check_maps(linked)
        facts["alone"] = self._error is not None
        facts["adaptations"] = list(self._adaptations)
        fold_constants(linked, facts["adaptations"])
        linked, info = self._without_calls(linked, facts)
        attach = self._struct_ops_attach(prog, definition)
        load = self._preparer.prepare(prog, definition, linked, info, attach, facts["adaptations"])
        load.fd_array = self._externs.fd_array if self._externs else []
        if attach is not None:
            load.expected_attach_type = self._struct_ops.member_index(prog) if self._struct_ops else 0
        facts["insns"] = binascii.b2a_base64(load.insns, newline=False).decode()
        verdict = verdict_load(self._machine.bpf, load)
        self._record(verdict, load, facts)
        if self._request.get("evidence", True) and facts["stage"] != "pre_verifier":
            self._collect(linked, load, verdict, facts)
        if self._request.get("attach") and verdict.fd is not None and facts["prog_type"] != "struct_ops":
            facts["attach"] = self._attach(verdict.fd, facts)
        self._keep_or_close(prog, verdict)

    def _attach(self, fd: int, facts: dict[str, Any]) -> dict[str, Any]:
        from .attach import attach_program

        return attach_program(self._machine, fd, facts, [item.name for item in self._maps], self._progress)

    def _attach_struct_ops(self, progs: list[dict[str, Any]]) -> None:
        """Once all programs of a struct are there."""
        assert self._struct_ops is not None and self._obj is not None
        from .attach_struct_ops import attach_all

        attach_all(self._machine.bpf, self._obj.btf, self._struct_ops, self._prog_fds, progs, self._progress)

    def _without_calls(self, linked: Linked, facts: dict[str, Any]) -> tuple[Linked, tuple[bytes, bytes]]:
        """The program and its func_info and line_info; inlined, without any, where this kernel has no bpf-to-bpf
        calls. libbpf would let the verifier refuse it."""
        assert self._infos is not None
        if len(linked.funcs) == 1 or self._machine.has_calls():
            return linked, self._infos.of(linked)
        from .inlining import CannotInline, inline

        try:
            flat, places = inline(linked)
        except CannotInline as why:
            text = f"{_NO_CALLS}, and it cannot be inlined: {why}"
            raise Skip("pre_verifier", None, text, unsupported="calls") from None
        detail = f"{len(linked.funcs) - 1} functions became part of their callers: {_NO_CALLS}"
        adaptation = {"name": "calls_inlined", "libbpf": False, "detail": detail}
        relos = [(item["relo"], at) for item in facts["relos"] for at in places.get(item["insn"], ())]
        self._describe(flat, facts)
        facts["relos"] = [{"relo": relo, "insn": at} for relo, at in relos]
        facts["adaptations"].append(adaptation)
        return flat, (b"", b"")

    def _struct_ops_attach(self, prog: Prog, definition: SecDef | None) -> Attach | None:
        assert self._struct_ops is not None
        if definition is None or definition.type_name != "struct_ops":
            return None
        return self._struct_ops.attach(prog)

    def _describe(self, linked: Linked, facts: dict[str, Any]) -> None:
        facts["funcs"] = [
            {"name": f.prog.name, "start": f.start, "insns": f.insns, "global": f.prog.is_global and not f.prog.hidden}
            for f in linked.funcs
        ]
        facts["refs"] = [{"insn": r.insn, "kind": r.kind, "name": r.name, "off": r.off} for r in linked.refs]
        facts["relos"] = self._core.of(linked)
        facts["insns"] = binascii.b2a_base64(bytes(linked.code), newline=False).decode()

    def _check_relocated(self, linked: Linked) -> None:
        for func in linked.funcs:
            error = self._core.fatal_in(func.prog)
            if error is not None:
                where = "" if func is linked.funcs[0] else f" in {func.prog.name}(), which it calls"
                raise Skip("core", error.errno, f"fatal CO-RE relocation{where}: {error.message}")

    def _check_maps(self, linked: Linked) -> None:
        """A program that refers to a map the kernel refused cannot be judged."""
        used = {ref.name for ref in linked.refs if ref.kind in ("map_fd", "map_value")}
        for item in self._maps:
            if item.autocreate and item.fd is None and (item.name in used or item.real_name in used):
                raise Skip("maps", item.errno, item.message or f"map '{item.name}' does not exist")

    def _record(self, verdict: Verdict, load: ProgLoad, facts: dict[str, Any]) -> None:
        facts["loaded"] = verdict.fd is not None
        facts["log"], facts["log_truncated"], facts["verifier"] = verdict.log, verdict.truncated, verdict.figures
        if verdict.fd is not None:
            return
        facts["errno"] = verdict.errno
        facts["stage"] = "verifier" if verdict.log else "pre_verifier"
        if verdict.log:
            facts["error"] = verifier_log.reason(verdict.log)
        else:
            facts["error"], facts["unsupported"] = explain(
                self._machine.bpf, self._machine.features, load, verdict.errno or 0
            )

    def _collect(self, linked: Linked, load: ProgLoad, verdict: Verdict, facts: dict[str, Any]) -> None:
        assert self._collector is not None
        start = perf_counter()
        subject = Subject(load, [(f.start, f.insns) for f in linked.funcs], verdict.fd is not None)
        if load.func_info and self._machine.features["btf_func_global"]:
            subject.is_static = [not func["global"] for func in facts["funcs"]]
            subject.void = [returns_nothing(self._obj, func.prog.name) for func in linked.funcs]
        subject.relos = [(r["relo"], r["insn"]) for r in facts["relos"]]
        relos = self._core.relos
        subject.guards = [pair for pair in subject.relos if is_guard(relos[pair[0]].kind, relos[pair[0]].outcome)]
        subject.processed = verdict.figures["processed_insns"] if verdict.figures else None
        name = facts["name"]
        facts["evidence"] = self._collector.collect(
            subject, lambda phase: self._progress({"type": "progress", "phase": phase, "prog": name})
        )
        spent = perf_counter() - start
        self._seconds["evidence"] += spent
        self._seconds["load"] -= spent

    def _keep_or_close(self, prog: Prog, verdict: Verdict) -> None:
        if verdict.fd is None:
            return
        with suppress(OSError):  # no ids before 4.13
            self._prog_ids.add(self._machine.bpf.prog_info(verdict.fd)["id"])
        registered = self._request.get("attach") and self._struct_ops is not None and self._struct_ops.holds(prog)
        if registered or any(target is prog for item in self._maps for _, target in item.slots):
            self._prog_fds[id(prog)] = verdict.fd
        else:
            os.close(verdict.fd)

    def _fill_prog_arrays(self) -> None:
        """Initialisers of prog arrays, once the programs are there (bpf_object_init_prog_arrays())."""
        creator = Creator(self._machine.bpf, self._machine.features, 0)
        for item in self._maps:
            if item.type != PROG_ARRAY or item.fd is None:
                continue
            for index, target in item.slots:
                fd = self._prog_fds.get(id(target))
                if fd is not None:
                    creator.fill_slot(item, index, fd)
            if item.message is not None:
                self._give_up("maps", item.errno, item.message)

    # -- the answer

    def _answer(self, progs: list[dict[str, Any]]) -> dict[str, Any]:
        obj = self._obj
        return {
            "type": "facts", "facts": 1, "loader": "python", "loader_version": LOADER, "rules": self._rules.version,
            "guest": self._machine.facts(), "object": self._object_facts(), "object_error": self._error,
            "externs": self._externs.facts() if self._externs is not None else [],
            "core_relos": self._core.facts(),
            "skipped_core_relos": self._core.skipped,
            "maps": [{"name": m.name, "type": m.type_name, "errno": m.errno, "message": m.message} for m in self._maps],
            "progs": progs if obj is not None else [],
            "seconds": {phase: round(spent, 6) for phase, spent in self._seconds.items()},
        }  # fmt: skip

    def _object_facts(self) -> dict[str, Any] | None:
        if self._obj is None:
            return None
        return {
            "has_btf": self._obj.btf is not None, "license": self._obj.license, "machine": self._obj.elf.machine,
            "producer": None, "btf_error": self._obj.btf_error,
        }  # fmt: skip
