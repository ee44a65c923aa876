"""One object against one BTF: what became of its relocations and programs, small enough to be sent between processes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from harness.guest import btf as B
from harness.guest import kconfig
from harness.guest.bpf_object import BpfObject, Prog
from harness.guest.errors import GuestError
from harness.guest.externs import Externs, Ksym
from harness.guest.prog_types import parse_section
from harness.inspection import Conditions, Inspection, inspect_opened
from harness.model.result import GUARD_KINDS
from harness.predict.models import Model
from harness.sweep.foretold import FREE_KINDS, Reached, foretell, liveness, unpredicted
from harness.sweep.index import ROOT_KINDS
from harness.sweep.lacks import Enums, Version, enumerators, unknown_helper, unknown_type, unlike
from harness.sweep.points import Point, attach_point, attach_target, extern_points

# What a reason holds besides the reason: ids, how many candidates there were, which other members there are.
_IDS = re.compile(r" ?\[\d+\]| \(and \d+ more candidates\)| \(it has [^)]*\)")


class Fate(NamedTuple):
    """What became of one relocation or program. `liveness` is predicted; `value_matters` for checks, whose value
    decides which code lives.
    """

    outcome: str
    value: int | None = None
    reason: str | None = None
    liveness: str | None = None
    value_matters: bool = False

    @property
    def key(self) -> tuple[object, ...]:
        """What must be equal for two kernels to be in one class."""
        return (self.outcome, self.reason, self.liveness, self.value if self.value_matters else None)


class ProgDetail(NamedTuple):
    """One entry program closer: `relocations` that stand in it, by index with the liveness foretold for this program;
    names of the helpers it calls; what it is attached to.
    """

    prog_type: str
    relocations: tuple[tuple[int, str | None], ...]
    helpers: tuple[str, ...]
    point: Point | None


class Detail(NamedTuple):
    """What a sweep for ranges does not need: each program closer, kernel functions and variables, Kconfig values."""

    progs: Mapping[str, ProgDetail]
    points: tuple[Point, ...]
    externs: tuple[tuple[str, object], ...]


class Answer(NamedTuple):
    """An object against one BTF: fates by position in record order, and of each entry program by name."""

    relocations: tuple[Fate, ...]
    progs: Mapping[str, Fate]
    detail: Detail | None = None


@dataclass(frozen=True, kw_only=True)
class Described:
    """What is the same of a relocation on every kernel."""

    prog: str
    section: str
    insn: int
    kind: str
    local_spec: str | None
    source: Mapping[str, Any] | None


class Subject:
    """One object, opened once and judged against any number of BTFs. UsageError when it cannot be used."""

    def __init__(self, data: bytes, path: str, name: str, settings: Mapping[str, str], byteorder: str | None) -> None:
        self.obj = BpfObject(data, path, byteorder)
        self.path = path
        self.name = name
        self.settings = dict(settings)
        self.described: dict[int, Described] = {}
        self._pristine = [bytes(prog.insns) for prog in self.obj.progs]
        self._predictions: dict[object, dict[str, Reached]] = {}
        self.notes: tuple[str, ...] = ()
        self.sections = {prog.name: prog.section for prog in self.obj.entry_progs}

    @cached_property
    def has_kconfig(self) -> bool:
        """Whether it asks for values of the kernel's configuration."""
        try:
            return bool(kconfig.find_externs(self.obj)[".kconfig"])
        except GuestError:
            return False

    @cached_property
    def needs_all_kinds(self) -> bool:
        """Whether some relocation is of a kind of type that the index does not hold (no compiler makes such)."""
        btf, ext = self.obj.btf, self.obj.btf_ext
        if btf is None or ext is None:
            return False
        known = ROOT_KINDS | {B.BTF_KIND_UNKN, B.BTF_KIND_PTR, B.BTF_KIND_ARRAY, B.BTF_KIND_FUNC_PROTO}
        roots = {record[1] for info in ext.core_relos for record in info.records if record[1] < btf.count}
        return any(btf.kind(root) not in known and btf.type(root).name for root in roots)

    def against(
        self, btf: B.Btf, conditions: Conditions, model: Model | None, has_functions: bool, *, detailed: bool = False
    ) -> Answer:
        """Relocate against one BTF, and predict (unless `model` is None)."""
        for prog, insns in zip(self.obj.progs, self._pristine, strict=True):
            prog.insns[:] = insns
        inspection = inspect_opened(self.obj, self.path, btf, conditions)
        self.notes = inspection.notes
        for index, relo in enumerate(inspection.relos):
            if index not in self.described or self.described[index].local_spec is None:
                self.described[index] = Described(
                    **{key: relo[key] for key in ("prog", "section", "insn", "kind", "local_spec", "source")}
                )
        predictable = model is not None and inspection.error is None and self.obj.byteorder == sys.byteorder
        reached = self._predicted(inspection, model) if predictable and model is not None else {}
        relocations = tuple(
            _fate(relo, liveness(one.relocations[index] for one in reached.values() if index in one.relocations))
            for index, relo in enumerate(inspection.relos)
        )
        enums = {name: enumerators(btf, name) for name in ("bpf_prog_type", "bpf_attach_type", "bpf_func_id")}
        absent = self._absent(btf, reached, enums, has_functions, conditions.rules_number)
        progs = {
            prog.name: self._prog_fate(prog, inspection, reached.get(prog.name), absent, enums)
            for prog in self.obj.entry_progs
            if prog.autoload
        }
        detail = self._detail(inspection, reached, btf, has_functions, conditions.rules_number) if detailed else None
        return Answer(relocations, progs, detail)

    def _detail(
        self, inspection: Inspection, reached: Mapping[str, Reached], btf: B.Btf, has_functions: bool, rules: Version
    ) -> Detail:
        names = {number: name for name, number in enumerators(btf, "bpf_func_id").items()}
        progs = {}
        for prog in self.obj.entry_progs:
            if not prog.autoload:
                continue
            definition = parse_section(prog.section)
            found = reached.get(prog.name) or unpredicted(prog, inspection, self.obj)
            progs[prog.name] = ProgDetail(
                prog_type=definition.type_name if definition else "?",
                relocations=tuple(sorted((index, liveness([state])) for index, state in found.relocations.items())),
                helpers=tuple(sorted(_helper_name(number, names) for number in found.helpers)),
                point=attach_point(prog, btf, has_functions),
            )
        externs = tuple((row["name"], row["value"]) for row in inspection.externs)
        return Detail(progs, extern_points(self._all_ksyms, btf, has_functions, rules), externs)

    # -- programs

    def _prog_fate(
        self, prog: Prog, inspection: Inspection, reached: Reached | None, absent: Mapping[str, str], enums: Enums
    ) -> Fate:
        if inspection.error is not None:
            return Fate("refused", reason=_IDS.sub("", inspection.error))
        for name in ("", prog.name):
            if name in absent:
                return Fate("refused", reason=absent[name])
        poisoned = [
            (index, relo) for index, relo in enumerate(inspection.relos) if relo["outcome"] == "poisoned"
        ]
        if reached is None:
            return Fate("unknown", reason="not predicted") if poisoned else Fate("loads")
        states = [(reached.relocations[index], relo) for index, relo in poisoned if index in reached.relocations]
        for state, word in ((True, "refused"), (None, "unknown")):
            names = dict.fromkeys(_field(relo) for reaches, relo in states if reaches is state)
            if names:
                how = "poison is reached" if state else "poison may be reached"
                return Fate(word, reason=f"{how}: {', '.join(names)}")
        why = unknown_helper(reached.perhaps, enums)
        return Fate("unknown", reason=f"the configuration decides: {why}") if why is not None else Fate("loads")

    def _absent(
        self, btf: B.Btf, reached: Mapping[str, Reached], enums: Enums, has_functions: bool, rules: Version
    ) -> dict[str, str]:
        """Why a program cannot load, by its name, and under "" why none can: its type, a helper it calls, its attach
        target, a kernel function or variable the object needs. What only vmlinux was searched for says so.
        """
        found: dict[str, str] = {}
        for prog in self.obj.entry_progs:
            calls = reached[prog.name].helpers if prog.name in reached else frozenset()
            why = unknown_type(prog, enums) or unknown_helper(calls, enums)
            target = attach_target(prog) if has_functions and why is None else None
            if target is not None and btf.find(*target) is None:
                why = f"no {target[0]} to attach to in vmlinux (a module may have it)"
            if why is not None:
                found[prog.name] = why
        for ksym in self._ksyms if has_functions else ():
            why = unlike(self.obj, ksym, btf, rules)
            if why is not None:
                found.setdefault("", why)
        return found

    @cached_property
    def _all_ksyms(self) -> list[Ksym]:
        try:
            return Externs(self.obj).ksyms
        except GuestError:
            return []

    @cached_property
    def _ksyms(self) -> list[Ksym]:
        """Kernel functions and variables of known type."""
        return [ksym for ksym in self._all_ksyms if ksym.type_id]

    # -- prediction

    def _predicted(self, inspection: Inspection, model: Model) -> dict[str, Reached]:
        """By entry program. Made once for all kernels that are alike in what decides branches."""
        decisions = tuple(
            (relo["outcome"], None if relo["kind"] in FREE_KINDS else relo["new_value"]) for relo in inspection.relos
        )
        externs = tuple((row["name"], row["outcome"], row["value"]) for row in inspection.externs)
        key = (model, decisions, externs)
        known = self._predictions.get(key)
        if known is None:
            known = self._predictions[key] = foretell(self.obj, self.name, self.settings, inspection, model)
        return known

def _helper_name(number: int, names: Mapping[int, str]) -> str:
    return names[number].removeprefix("BPF_FUNC_") if number in names else f"#{number}"


def _fate(relo: Mapping[str, Any], liveness: str | None) -> Fate:
    reason = relo["reason"]
    matters = relo["kind"] in GUARD_KINDS and relo["outcome"] == "resolved"
    return Fate(
        relo["outcome"],
        relo["new_value"],
        _IDS.sub("", reason) if reason and relo["outcome"] != "resolved" else None,
        liveness,
        matters,
    )


def _field(relo: Mapping[str, Any]) -> str:
    spec = relo["local_spec"] or "?"
    return str(spec.partition("] ")[2].partition(" (")[0].partition(" = ")[0].partition(" ")[2] or spec)
