"""Which config switch may be behind a difference between kernels: the configurations of those that have something and
those that lack it, compared.

A switch is a suspect when it separates the two exactly: on for all that have it and off for all that lack it, or the
other way round. Kernels of one architecture and version are compared where a run has both sides of such; across
versions the source differs too, and then only a switch with evidence of its own is named. Most pairs of kernels are
separated by many switches, so what speaks for one is said with it: the kernel's source, where the tree is at hand; the
object's own Kconfig externs; the name. Never more than a suspect.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from harness.guest.btf import Btf
from harness.model.result import KernelResult, ProgResult, RunResult
from harness.model.suspicion import ConfigSuspect, ConfigSuspicion
from harness.model.verdict import Outcome, Stage, Verdict
from harness.report.field_path import Member, has, split, walk
from harness.report.option_names import OptionNames
from harness.report.view import Program, View

_MOST = 3
# So few switches that each may be named.
_FEW = 3
_FEW_WORDS = {
    1: "the only switch that differs so",
    2: "one of the two switches that differ so",
    3: "one of the three switches that differ so",
}
_VERSION = re.compile(r"\d+\.\d+")
_SWITCH = re.compile(r"^(CONFIG_\w+)=([ym])$", re.MULTILINE)

# include/linux/bpf_types.h: the switches that program types stand under there; by the names of libbpf.
_TRAMPOLINES = frozenset({"tracing", "lsm"})
_TYPE_NEEDS: Mapping[str, str] = {
    **dict.fromkeys(
        ("kprobe", "tracepoint", "perf_event", "raw_tracepoint", "raw_tracepoint_writable", "tracing"),
        "CONFIG_BPF_EVENTS",
    ),
    **dict.fromkeys(
        ("cgroup_device", "cgroup_sysctl", "cgroup_sockopt", "cgroup_skb", "cgroup_sock", "cgroup_sock_addr"),
        "CONFIG_CGROUP_BPF",
    ),
    **dict.fromkeys(
        ("socket_filter", "sched_cls", "sched_act", "xdp", "lwt_in", "lwt_out", "lwt_xmit", "lwt_seg6local", "sock_ops",
         "sk_skb", "sk_msg", "flow_dissector", "sk_lookup"),
        "CONFIG_NET",
    ),
    "sk_reuseport": "CONFIG_INET", "struct_ops": "CONFIG_BPF_JIT", "ext": "CONFIG_BPF_JIT", "lsm": "CONFIG_BPF_LSM",
    "lirc_mode2": "CONFIG_BPF_LIRC_MODE2", "netfilter": "CONFIG_NETFILTER_BPF_LINK",
}  # fmt: skip


class Place(NamedTuple):
    """A line of a kernel's source, and the switch it stands under."""

    option: str
    text: str  # file:line


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Where a run's kernels can be looked into: texts of configurations and BTF by sha256, None for what is not to be
    had; and, for a kernel whose tree is at hand (`readable`), the switches that declarations stand under.
    """

    config_of: Callable[[str], str | None]
    btf_of: Callable[[str], Btf | None] = lambda _: None
    readable: Callable[[KernelResult], bool] = lambda _: False
    places_of: Callable[[KernelResult, Collection[Member]], Mapping[Member, Sequence[Place]]] = lambda *_: {}


@dataclass(kw_only=True)
class _Group:
    """One difference: the same field found by the same kernels, whichever programs ask for it."""

    progs: dict[str, None] = field(default_factory=dict)
    externs: dict[str, None] = field(default_factory=dict)
    prog_type: str = ""
    target: str | None = None


_Sides = tuple[str, frozenset[str], frozenset[str]]  # field, those that lack it, those that have it


def suspects(run: RunResult, sources: Sources) -> tuple[ConfigSuspicion, ...]:
    """The suspicions of a run, in the order of its programs. Kernels without a known configuration have no say."""
    view = View(run)
    kernels = {cell.kernel.id: cell.kernel for cell in run.cells}
    known = {name for name, kernel in kernels.items() if kernel.config_sha256}
    groups: dict[tuple[_Sides, str], _Group] = {}
    for program in view.all_programs():
        label = f"{view.label(program.subject)}/{program.name}"
        for sides, prog_type in _differences(program, known):
            # A field is missing for every program alike; what refuses a program may be its own.
            target = None if sides[0] else _target(program, sides[1])
            group = groups.setdefault((sides, "" if sides[0] else label), _Group(prog_type=prog_type, target=target))
            group.progs[label] = None
            group.externs |= dict.fromkeys(_asked(program, sides[1]))
    judge = _Judge(kernels=kernels, sources=sources)
    suspicions = (judge.suspicion(sides, group) for (sides, _), group in groups.items())
    return tuple(item for item in suspicions if item is not None)


def _target(program: Program, lacking: Collection[str]) -> str | None:
    """The kernel function a program attaches to by BTF, where it is refused before the verifier saw it."""
    for kernel in lacking:
        prog = program.results[kernel]
        if prog.prog_type in {"tracing", "lsm"} and prog.stage is Stage.PRE_VERIFIER and "/" in prog.section:
            return prog.section.rpartition("/")[2]
    return None


def _asked(program: Program, lacking: Collection[str]) -> list[str]:
    """The switches a program's object reads; only those it cannot do without where that is why it is refused."""
    externs = [extern for cell in program.cells.values() for extern in cell.externs]
    refused = [extern for kernel in lacking for extern in program.cells[kernel].externs
               if extern.outcome != "resolved" and not extern.weak]  # fmt: skip
    return [extern.name for extern in refused or externs if extern.name.startswith("CONFIG_")]


def _differences(program: Program, known: Collection[str]) -> Iterator[tuple[_Sides, str]]:
    """Relocations that have a target on some kernels only; a program that is loaded on some only, with its type."""
    judged = {kernel: prog for kernel, prog in program.judged.items() if kernel in known}
    for key, by_kernel in program.relocations.items():
        found = {kernel: relo.target_spec is not None for kernel, relo in by_kernel.items()
                 if kernel in known and relo.outcome is not Outcome.ERROR}  # fmt: skip
        if len(set(found.values())) == 2:
            yield _sides(key.field, found), ""
    loaded = {kernel: prog.verdict is Verdict.LOADED for kernel, prog in judged.items() if not _explained(prog)}
    if len(set(loaded.values())) == 2:
        yield _sides("", loaded), next(iter(judged.values())).prog_type


def _explained(prog: ProgResult) -> bool:
    """Is the program refused for a relocation, of which more is said elsewhere?"""
    return prog.verdict is not Verdict.LOADED and any(relo.is_broken for relo in prog.core_relos)


def _sides(name: str, found: Mapping[str, bool]) -> _Sides:
    lacking = frozenset(kernel for kernel, has in found.items() if not has)
    return name, lacking, frozenset(found) - lacking


@dataclass(frozen=True, kw_only=True)
class _Judge:
    kernels: Mapping[str, KernelResult]
    sources: Sources
    _on: dict[str, dict[str, str] | None] = field(default_factory=dict)
    _btfs: dict[str, Btf | None] = field(default_factory=dict)

    def suspicion(self, sides: _Sides, group: _Group) -> ConfigSuspicion | None:
        """None where the configurations have nothing to say."""
        name, lacking, having = sides
        lack, have, alike = self._comparable(lacking, having)
        evidence = list(self._evidence(name, group, lack, have))
        if not (alike or evidence):
            return None
        lack, have = (
            [kernel for kernel in names if self._switches(kernel) is not None] for names in (lack, have)
        )
        separating = self._separating(lack, have) if lack and have else []
        reasons: dict[str, str] = {}
        for option, text in evidence:
            if option in separating:
                reasons.setdefault(option, text)
        if alike:
            reasons = self._further(reasons, name, separating, lack, have)
        if not separating or not (alike or reasons):
            return None
        order = list(self.kernels)
        return ConfigSuspicion(
            field=name, progs=tuple(group.progs), lacking=tuple(sorted(lacking, key=order.index)),
            having=tuple(sorted(having, key=order.index)), separating=len(separating), alike=alike,
            suspects=tuple(self._suspect(*item, lack, have) for item in list(reasons.items())[:_MOST]),
        )  # fmt: skip

    def _comparable(self, lacking: Collection[str], having: Collection[str]) -> tuple[list[str], list[str], bool]:
        """Those of an architecture and version of which there are some on both sides; all, when there are none."""
        both = {self._stratum(name) for name in lacking} & {self._stratum(name) for name in having}
        if not both:
            return sorted(lacking), sorted(having), False
        lack, have = (sorted(name for name in names if self._stratum(name) in both) for names in (lacking, having))
        return lack, have, True

    def _stratum(self, name: str) -> tuple[str, str]:
        kernel = self.kernels[name]
        match = _VERSION.match(kernel.release or "")
        return kernel.arch, match[0] if match else name

    def _switches(self, name: str) -> dict[str, str] | None:
        """The switches of a kernel's configuration that are on, with y or m; None when it is not to be had."""
        if name not in self._on:
            sha256 = self.kernels[name].config_sha256
            text = self.sources.config_of(sha256) if sha256 else None
            self._on[name] = None if text is None else dict(_SWITCH.findall(text))
        return self._on[name]

    def _separating(self, lack: Sequence[str], have: Sequence[str]) -> list[str]:
        """Switches on for all of one side and off for all of the other."""
        on = {name: set(self._switches(name) or ()) for name in (*lack, *have)}
        sides = [(set.intersection(*(on[name] for name in names)), set.union(*(on[name] for name in names)))
                 for names in (lack, have)]  # fmt: skip
        (all_lack, any_lack), (all_have, any_have) = sides
        return sorted((all_have - any_lack) | (all_lack - any_have))

    def _evidence(
        self, name: str, group: _Group, lack: Sequence[str], have: Sequence[str]
    ) -> Iterator[tuple[str, str]]:
        """(option, what speaks for it): the source of any of the kernels, the program type, the object's externs."""
        readable = [kernel for kernel in (*have, *lack) if self.sources.readable(self.kernels[kernel])]
        steps = self._lost(name, lack, have) if readable else []
        steps += [Member("", group.target)] if group.target else []
        for kernel in readable if steps else ():
            places = self.sources.places_of(self.kernels[kernel], steps)
            for step in steps:
                for place in places.get(step, ()):
                    yield place.option, f"the source has it under this switch, {place.text}"
        if group.prog_type in _TYPE_NEEDS:
            yield _TYPE_NEEDS[group.prog_type], "include/linux/bpf_types.h has the program type under it"
        if group.prog_type in _TRAMPOLINES:
            yield "CONFIG_BPF_JIT", "programs of this type attach by trampolines, which come with it"
        yield from ((option, "the object asks for it") for option in group.externs)

    def _further(
        self, reasons: dict[str, str], name: str, separating: Sequence[str], lack: Sequence[str], have: Sequence[str]
    ) -> dict[str, str]:
        """Between kernels of one version also those of which there are few; by name where there is nothing else."""
        if len(separating) <= _FEW:
            return {**reasons, **{o: _FEW_WORDS[len(separating)] for o in separating if o not in reasons}}
        if reasons or not name:
            return reasons
        steps = self._lost(name, lack, have)
        members, types = [step.name or step.type for step in steps], [step.type for step in steps]
        return dict.fromkeys(OptionNames(separating).close(members, types), "by its name")

    def _suspect(self, option: str, because: str, lack: Sequence[str], have: Sequence[str]) -> ConfigSuspect:
        here, there = (" or ".join(sorted({(self._switches(name) or {}).get(option, "n") for name in names}))
                       for names in (lack, have))  # fmt: skip
        return ConfigSuspect(option=option, here=here, there=there, because=because)

    def _lost(self, name: str, lack: Sequence[str], have: Sequence[str]) -> list[Member]:
        """The members on a field's path that those which lack it lack; all of the path where there is no BTF to see."""
        if not name:
            return []
        root, path = split(name)
        whole = (walk(btf, root, path) for kernel in have if (btf := self._btf(kernel)) is not None)
        steps = next((found for found in whole if found), None)
        if steps is None:
            return [Member(root, member) for member in path] or [Member(root, "")]
        for kernel in lack:
            btf = self._btf(kernel)
            lost = [step for step in steps if btf is not None and not has(btf, step)]
            if lost:
                return lost
        return steps

    def _btf(self, kernel: str) -> Btf | None:
        sha256 = self.kernels[kernel].btf_sha256
        if sha256 is None:
            return None
        if sha256 not in self._btfs:
            self._btfs[sha256] = self.sources.btf_of(sha256)
        return self._btfs[sha256]
