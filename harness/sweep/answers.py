"""One object against one BTF: what became of its relocations and programs, small enough to be sent between processes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from typing import Any, NamedTuple

from harness.guest import btf as B
from harness.guest import kconfig
from harness.guest.bpf_object import BpfObject, Prog
from harness.guest.core_match import Matcher
from harness.guest.errors import CoreError, GuestError
from harness.guest.externs import Externs, Ksym, flavors_ignored, kfunc_name
from harness.guest.loader import OLD_HELPER
from harness.guest.prog_types import EXP_ATTACH_OPT, parse_section
from harness.inspection import Conditions, Inspection, inspect_opened
from harness.model.result import GUARD_KINDS
from harness.predict.machine import predict
from harness.predict.models import Model
from harness.predict.program import KnownObject, from_object, kconfig_of, places
from harness.sweep.index import ROOT_KINDS
from harness.sweep.points import Point, attach_point, attach_target, extern_points

# What a reason holds besides the reason: ids, how many candidates there were, which other members there are.
_IDS = re.compile(r" ?\[\d+\]| \(and \d+ more candidates\)| \(it has [^)]*\)")
# What differs from kernel to kernel and decides no branch: predictions are made without it, and then shared.
_FREE_KINDS = frozenset({"byte_off", "target_type_id"})
_MOST_ASSUMPTIONS = 32
# All values of a kind there are, to be tried where a configuration is not known.
_VALUES: Mapping[str, tuple[object, ...]] = {"bool": (0, 1), "tristate": ("n", "y", "m")}


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


class Reached(NamedTuple):
    """What the verifier reaches of one program, by prediction: relocations by index (None: not known), and the helpers
    it calls whatever is assumed of the configuration, and `perhaps` those that this decides about.
    """

    relocations: dict[int, bool | None]
    helpers: frozenset[int]
    perhaps: frozenset[int] = frozenset()


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
            _fate(relo, _liveness([one.relocations.get(index, _ABSENT) for one in reached.values()]))
            for index, relo in enumerate(inspection.relos)
        )
        enums = {name: _enumerators(btf, name) for name in ("bpf_prog_type", "bpf_attach_type", "bpf_func_id")}
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
        names = {number: name for name, number in _enumerators(btf, "bpf_func_id").items()}
        progs = {}
        for prog in self.obj.entry_progs:
            if not prog.autoload:
                continue
            definition = parse_section(prog.section)
            found = reached.get(prog.name) or _unpredicted(prog, inspection, self.obj)
            progs[prog.name] = ProgDetail(
                prog_type=definition.type_name if definition else "?",
                relocations=tuple(sorted((index, _liveness([state])) for index, state in found.relocations.items())),
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
            why = _unlike(self.obj, ksym, btf, rules)
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
            (relo["outcome"], None if relo["kind"] in _FREE_KINDS else relo["new_value"]) for relo in inspection.relos
        )
        externs = tuple((row["name"], row["outcome"], row["value"]) for row in inspection.externs)
        key = (model, decisions, externs)
        known = self._predictions.get(key)
        if known is None:
            known = self._predictions[key] = self._predict(inspection, model)
        return known

    def _predict(self, inspection: Inspection, model: Model) -> dict[str, Reached]:
        opaque = [
            (relo["prog"], relo["insn"])
            for relo in inspection.relos
            if relo["kind"] in _FREE_KINDS and relo["outcome"] == "resolved" and not _is_access(relo["after"])
        ]
        found: dict[str, Reached] = {}
        for values in _assumptions(inspection.externs):
            try:
                known = KnownObject(self.obj, self.name, self.settings, values)
            except GuestError:
                return {}
            for prog in self.obj.entry_progs:
                reached = _reached(known, prog, opaque, inspection, model) if prog.autoload else None
                if reached is not None:
                    found[prog.name] = _both(found[prog.name], reached) if prog.name in found else reached
        return found


_ABSENT = object()


def _reached(
    known: KnownObject, prog: Prog, opaque: Iterable[tuple[str, int]], inspection: Inspection, model: Model
) -> Reached | None:
    """None for a program that cannot be linked."""
    try:
        program = from_object(known, prog, opaque)
    except GuestError:
        return None
    found = predict(program, model)
    certain = predict(program, model, certain=True) if program.secrets else found
    relocations = {
        index: True if insn in certain.visited else None if found.reaches(insn) else found.reaches(insn)
        for index, insn in places(program, inspection.relos).items()
    }
    return Reached(relocations, certain.helpers, found.helpers - certain.helpers)


def _unpredicted(prog: Prog, inspection: Inspection, obj: BpfObject) -> Reached:
    """A program that was not walked: its own relocations and those of every subprogram, reached or not."""
    entries = {entry.name for entry in obj.entry_progs} - {prog.name}
    found: dict[int, bool | None] = {
        index: None for index, relo in enumerate(inspection.relos) if relo["prog"] not in entries
    }
    return Reached(found, frozenset())


def _helper_name(number: int, names: Mapping[int, str]) -> str:
    return names[number].removeprefix("BPF_FUNC_") if number in names else f"#{number}"


def _both(one: Reached, other: Reached) -> Reached:
    """What holds under both assumptions; what holds under one only is not known."""
    relocations = {
        index: state if other.relocations.get(index) is state else None for index, state in one.relocations.items()
    }
    helpers = one.helpers & other.helpers
    return Reached(relocations, helpers, (one.helpers | one.perhaps | other.helpers | other.perhaps) - helpers)


def _assumptions(externs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, object]]:
    """Values of Kconfig externs: those known, and each combination of values for switches that are not. Numbers and
    texts that are not known stay so, and so do switches where there are too many of them.
    """
    rows = list(externs)
    fixed = kconfig_of(rows)
    unknown = [row for row in rows if row["name"] not in fixed and row["type"] in _VALUES]
    values = [_VALUES[row["type"]] for row in unknown]
    if prod(map(len, values)) > _MOST_ASSUMPTIONS:
        unknown, values = [], []
    for combination in product(*values):
        yield {**fixed, **{row["name"]: value for row, value in zip(unknown, combination, strict=True)}}


def _is_access(insn: str) -> bool:
    """Whether an instruction (in hex) is a load or store: its offset decides no branch."""
    return int(insn[:2], 16) & 7 in (1, 2, 3)


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


def _liveness(states: list[object]) -> str | None:
    """Of a relocation in all programs it stands in: live when any reaches it."""
    judged = [state for state in states if state is not _ABSENT]
    if not judged:
        return None
    return "live" if True in judged else "unknown" if None in judged else "eliminated"


def _field(relo: Mapping[str, Any]) -> str:
    spec = relo["local_spec"] or "?"
    return str(spec.partition("] ")[2].partition(" (")[0].partition(" = ")[0].partition(" ")[2] or spec)


Enums = Mapping[str, Mapping[str, int]]
Version = tuple[int, ...] | None


def unknown_type(prog: Prog, enums: Enums) -> str | None:
    """The program or attach type that a kernel does not have in its enums; None when it has both, or has no enums."""
    definition = parse_section(prog.section)
    if definition is None:
        return f"libbpf knows no section {prog.section!r}"
    types, attach = enums["bpf_prog_type"], enums["bpf_attach_type"]
    if types and definition.type >= types.get("__MAX_BPF_PROG_TYPE", max(types.values()) + 1):
        return f"this kernel has no programs of type {definition.type_name}"
    needed = definition.attach and not definition.flags & EXP_ATTACH_OPT
    if attach and needed and definition.attach >= attach.get("__MAX_BPF_ATTACH_TYPE", definition.attach + 1):
        return f"this kernel has no attach type {definition.attach_name}"
    return None


def unknown_helper(calls: Iterable[int], enums: Enums) -> str | None:
    """The helpers among `calls` that a kernel does not have; None when it has all, or does not say."""
    limit = enums["bpf_func_id"].get("__BPF_FUNC_MAX_ID")
    if limit is None:
        return None
    missing = sorted(number for number in calls if OLD_HELPER.get(number, number) >= limit)
    return f"this kernel has no helper {', '.join(f'#{number}' for number in missing)}" if missing else None


def _enumerators(btf: B.Btf, name: str) -> dict[str, int]:
    id_ = btf.find(name, B.BTF_KIND_ENUM)
    return dict(btf.enumerators(btf.type(id_))) if id_ is not None else {}


def _unlike(obj: BpfObject, ksym: Ksym, btf: B.Btf, rules: Version) -> str | None:
    """Why libbpf gives the object up for a kernel function or variable; None when it does not. A weak one may be
    missing, yet what is there must be what the object declares (but for weak functions, since flavors are passed over).
    """
    kind = B.BTF_KIND_FUNC if ksym.is_func else B.BTF_KIND_VAR
    id_ = btf.find(kfunc_name(ksym, rules), kind)
    if id_ is None and ksym.weak:
        return None
    if id_ is None:
        return f"externs: no {ksym.kind} {ksym.name} in vmlinux (a module may have it)"
    target = btf.type(id_).type
    target = target if ksym.is_func else btf.skip_mods_and_typedefs(target).id
    assert obj.btf is not None
    try:
        alike = Matcher(obj.btf, btf).types_are_compat(ksym.type_id, target)
    except CoreError as error:
        return f"externs: {ksym.name}: {error.message}"
    if alike or (ksym.is_func and ksym.weak and flavors_ignored(rules)):
        return None
    return f"externs: {ksym.kind} {ksym.name} has another signature"
