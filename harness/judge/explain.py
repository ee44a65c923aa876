"""Why: words for people, from errno, an empty or a full log, the object's own instructions, and what the guest's
probes found.

The same cause has another text on every kernel (4.9 says `unreachable insn` where 4.19 says `unknown opcode be`), so
the rows below look at the object wherever they can and at the log only where they must. Which kernel does what was
seen on booted kernels unless a commit or release is named; nothing here decides a verdict.
"""

from __future__ import annotations

import base64
import errno as errno_names
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness.judge import since
from harness.judge.flow import Insn, decode
from harness.model.result import Candidate, Relocation
from harness.model.verdict import Liveness, Outcome

_CLASS_JMP, _CLASS_JMP32, _CALL, _PSEUDO_CALL = 0x05, 0x06, 0x80, 1
_MAX_INSNS_BEFORE_5_2 = 4096  # BPF_MAXINSNS; kernel commit c04c0d2b968a lifted it to one million, for root
_ENOTSUPP = 524  # the kernel's own, not in errno.h


@dataclass(frozen=True, kw_only=True)
class Case:
    """One refused program and all that an explanation may look at."""

    stage: str
    errno: int | None
    error: str
    log: str
    section: str
    prog_type: str
    attach_target: str | None
    insns: Sequence[Insn]
    relocations: Sequence[Relocation]
    externs: Sequence[Mapping[str, Any]]
    features: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, facts: Mapping[str, Any], prog: Mapping[str, Any], relocations: Sequence[Relocation]) -> Case:
        """From docs/facts.md's `facts` and one of its `progs`."""
        return cls(
            stage=prog.get("stage") or "",
            errno=prog.get("errno"),
            error=prog.get("error") or "",
            log=prog.get("log") or "",
            section=prog.get("section") or "",
            prog_type=prog.get("prog_type") or "",
            attach_target=prog.get("attach_target"),
            insns=decode(base64.b64decode(prog.get("insns") or "")),
            relocations=relocations,
            externs=facts.get("externs") or (),
            features=(facts.get("guest") or {}).get("features") or {},
        )

    def has_jump(self, kind: int, operation: int, src: int) -> bool:
        """Is there an instruction of this class and operation?"""
        return any(code & 0xF7 == operation | kind and reg == src for code, reg, *_ in self.insns)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One known cause: `seen` recognises it, `says` is the explanation; `{0}`, `{1}` are groups of `log`, if it
    matched.
    """

    stage: str
    says: str
    log: str | None = None
    errno: frozenset[int] | None = None
    seen: Callable[[Case], bool] = lambda _: True


def _errnos(*names: str) -> frozenset[int]:
    return frozenset(getattr(errno_names, name) for name in names)


def _has_jmp32(case: Case) -> bool:
    return any(code & 7 == _CLASS_JMP32 for code, *_ in case.insns)


def _map_type(case: Case) -> str:
    """libbpf's name of a refused map's type, as the guest says it: `map 'events' (ringbuf): failed to create: ...`."""
    match = re.match(r"map '[^']*' \((\w+)\)", case.error)
    return match[1] if match else ""


def _map_since(case: Case) -> str | None:
    return since.MAP_TYPES.get(_map_type(case))


def _has_subprog_call(case: Case) -> bool:
    return case.has_jump(_CLASS_JMP, _CALL, _PSEUDO_CALL)


PRE_VERIFIER = (
    Row(
        stage="pre_verifier",
        errno=_errnos("EINVAL", "E2BIG"),
        seen=lambda c: len(c.insns) > _MAX_INSNS_BEFORE_5_2,
        says="{insns} instructions: kernels before 5.2 take at most 4096 and say so with an errno only",
    ),
    Row(
        stage="pre_verifier",
        errno=_errnos("E2BIG"),
        says="a field of union bpf_attr that this kernel does not know is set (expected_attach_type, "
        "prog_name, ...): the program needs a newer bpf(2)",
    ),
    Row(
        stage="pre_verifier",
        errno=_errnos("EPERM", "EACCES"),
        says="no permission: usually CAP_BPF and CAP_PERFMON, lockdown, or (before 5.11) RLIMIT_MEMLOCK",
    ),
    Row(
        stage="pre_verifier",
        errno=_errnos("ENOENT", "ESRCH"),
        seen=lambda c: "needs the kernel's own BTF" in c.error,
        says="programs of type {prog_type} need BTF in the kernel itself (CONFIG_DEBUG_INFO_BTF, in /sys since 5.4; "
        "fentry and tp_btf came with 5.5): a BTF from elsewhere serves relocation only. A kprobe does without",
    ),
    Row(
        stage="pre_verifier",
        errno=_errnos("ENOENT", "ESRCH"),
        seen=lambda c: c.attach_target is not None,
        says="{attach_target} is not in this kernel's BTF: renamed, inlined, or configured out",
    ),
    Row(
        stage="pre_verifier",
        errno=frozenset({_ENOTSUPP}),
        says="ENOTSUPP (524): the kernel knows the request but cannot do it on this architecture or configuration",
    ),
    Row(
        stage="pre_verifier",
        errno=_errnos("EINVAL"),
        says="EINVAL and an empty log: refused before the verifier. Mostly a program or attach type this "
        "kernel does not know ({prog_type}, section {section})",
    ),
)

_said = partial(Row, stage="verifier")
VERIFIER = (
    Row(
        stage="verifier",
        errno=frozenset({_ENOTSUPP}),
        log=r"attach_btf_id 0 is not a supported struct|\bprocessed 0 insns",
        seen=lambda c: c.prog_type == "struct_ops",
        says="ENOTSUPP (524) of {section}: no struct of this kernel takes it, since the struct is not built in, its "
        "module is not there, or the loader knows no such section (5.10 and 6.1 say `attach_btf_id 0 is not a "
        "supported struct`, 6.12 and 6.18 nothing)",
    ),
    _said(
        log=r"invalid func (?:unknown#)?200(1\d{6})\b",
        says="the instruction refers to a map that was not created (libbpf poisons such a reference)",
    ),
    _said(
        log=r"invalid func (?:unknown#)?200(2\d{6})\b",
        says="a weak kernel function that this kernel does not have is called without a check (bpf_ksym_exists)",
    ),
    _said(
        log=r"unrecognized bpf_ld_imm64 insn",
        seen=lambda c: c.features.get("global_data") is not True,
        says="global data (.rodata, .data, .bss, kconfig externs, bpf_printk formats) needs 5.2",
    ),
    _said(
        log=r"(?:unreachable insn|invalid BPF_JMP opcode|unknown opcode)",
        seen=_has_jmp32,
        says="the object uses 32-bit jumps (-mcpu=v3, newer clang's default), which came with 5.1: compile "
        "with -mcpu=v2, or v1 below 4.14",
    ),
    _said(
        log=r"(?:unreachable insn|unknown opcode|R\d+ !read_ok)",
        seen=_has_subprog_call,
        says="calls between BPF functions came with 4.16: mark subprograms __always_inline",
    ),
    _said(
        log=r"back-edge from insn", says="loops are refused before 5.3 even when bounded: unroll them"
    ),
    _said(
        log=r"BPF program is too large. Processed (\d+) insn",
        says="the verifier gave up after {0} instructions: its budget on this kernel (1,000,000 since 5.2 for root)",
    ),
    # Until 4.9 by number only: "invalid func 45"; "unknown func" is one the kernel has, for other program types.
    _said(log=r"invalid func (?:\w+#)?(\d+)\b", says="this kernel has no {helper}"),
    _said(
        log=r"(?:unknown func|program of this type cannot use helper) (?:\w+#)?(\d+)\b",
        says="{helper} exists here, but not for programs of type {prog_type}",
    ),
    _said(
        log=r"invalid indirect read from stack",
        says="a stack buffer given to a helper must be initialised here: zero it first",
    ),
    _said(
        log=r"type=map_value expected=fp",
        says="this kernel does not let the helper write into a map value: go through the stack",
    ),
    _said(log=r"type=inv expected=imm", says="this kernel wants a constant size for the helper"),
)


# A map has no log at all. Since when each map type is: the releases whose BPF_MAP_CREATE first took it, the old ones
# asked on booted kernels 4.1 to 4.19.
MAPS = (
    Row(
        stage="maps",
        errno=_errnos("EINVAL"),
        seen=lambda c: _map_since(c) is not None,
        says="EINVAL of a map: this kernel does not know its type ({map_type} came with {map_since}), or a flag of it, "
        "or takes other sizes",
    ),
    Row(
        stage="maps",
        errno=_errnos("EINVAL"),
        says="EINVAL of a map: this kernel does not know its type or a flag of it, or takes other sizes "
        "(perf_event_array came with 4.3, per-CPU maps with 4.6, LRU 4.10, LPM 4.11, maps in maps 4.12, "
        "global data 5.2, ringbuf 5.8)",
    ),
    Row(
        stage="maps",
        errno=_errnos("EPERM", "EACCES"),
        says="not permitted: CAP_BPF is missing, or (before 5.11) RLIMIT_MEMLOCK is too low for the map",
    ),
    Row(
        stage="maps",
        errno=_errnos("ENOMEM"),
        says="no memory for the map: fewer max_entries, or more memory for the guest (`memory_mb` of the kernel's row)",
    ),
    Row(
        stage="maps",
        errno=_errnos("E2BIG"),
        says="E2BIG of a map: its entries are too large or too many, or a field of union bpf_attr that this kernel "
        "does not know is set",
    ),
    Row(
        stage="maps",
        errno=frozenset({_ENOTSUPP, *_errnos("EOPNOTSUPP")}),
        says="this kernel knows the map's type, but not with this key, value or configuration",
    ),
    Row(
        stage="maps", errno=_errnos("ENOSYS"), says="this kernel has no bpf(2) (CONFIG_BPF_SYSCALL is off)"
    ),
)


# The guest found the cause by loading smaller programs (harness/guest/refusals.py): better than any guess from here.
_PROBED, _UNKNOWN = "refused before the verifier: ", "does not say why"


def explain(case: Case) -> tuple[str, ...]:
    """Paragraphs for people on why the program was refused and what to do about it; empty when there is nothing to
    add.
    """
    broken = [relo for relo in case.relocations if relo.is_broken and relo.outcome is Outcome.POISONED]
    if case.stage == "verifier" and broken:
        return tuple(dict.fromkeys(text for relo in broken for text in _about_poison(case, relo)))
    if case.error.startswith(_PROBED) and not case.error.endswith(_UNKNOWN):
        return _about_type(case)
    rows = {"pre_verifier": PRE_VERIFIER, "verifier": VERIFIER, "maps": MAPS}.get(case.stage, ())
    texts = (_recognise(row, case) for row in rows)
    found = next(((text,) for text in texts if text is not None), ())
    return (*found, *_extern(case), *_OTHER_STAGES.get(case.stage, ()), *_no_btf(case))


def _extern(case: Case) -> tuple[str, ...]:
    """What to do about an extern that has no value here."""
    if case.stage != "externs":
        return ()
    return (next((says for said, says in _EXTERNS.items() if said in case.error), _STRONG_EXTERN),)


NO_KCONFIG = "failed to open system Kconfig"
# By what libbpf (bpf_object__resolve_externs) and our loader say: neither of the first two cares whether it is weak.
_EXTERNS = {
    NO_KCONFIG: "this kernel's configuration is not at hand here, and libbpf gives up on the "
    "object when it has a CONFIG_ extern, weak or not, and finds none. A machine that has /boot/config-RELEASE may "
    "well load it: give the row a `config` (docs/kernels.md), or judge it on another kernel",
    "failed to get kernel version": "this kernel does not call itself by three numbers (release candidates do not), "
    "and libbpf then gives up on the object, whether LINUX_KERNEL_VERSION is weak or not: ask for a field, a type or "
    "a helper in place of a version",
}
_STRONG_EXTERN = "libbpf gives up on the object when a strong extern cannot be had: declare it __weak and test it"


def _no_btf(case: Case) -> tuple[str, ...]:
    """What to do about a kernel without BTF."""
    return (_WITHOUT_BTF,) if case.stage == "core" and "the kernel has no BTF" in case.error else ()


_WITHOUT_BTF = (
    "this kernel has no BTF of its own (CONFIG_DEBUG_INFO_BTF, 5.2), and its row in kernels.yaml gives none: `btf: "
    "FILE`, `btf: {tree: DIR}` for a tree like BTFHub's, or `btf: {dwarf: FILE}` to have pahole make it from the "
    "kernel's debug information. A loader of yours needs the same (libbpf: btf_custom_path)"
)


def _about_type(case: Case) -> tuple[str, ...]:
    """Since when there are programs of this type, where the kernel has none."""
    release = since.PROG_TYPES.get(case.prog_type)
    if release is None or not case.error.endswith("is unknown to this kernel") or "attach type" in case.error:
        return ()
    text = f"programs of type {case.prog_type} came with {release}"
    return (f"{text}: a kprobe does without, from 4.1 on" if case.prog_type in _KPROBE_DOES else text,)


_KPROBE_DOES = frozenset({"tracepoint", "raw_tracepoint", "raw_tracepoint_writable", "tracing"})
_OTHER_STAGES = {
    "core": ("libbpf gives up on the whole object when one relocation is an error: no program of it is loaded",),
    "maps": ("libbpf gives up on the whole object when a map cannot be created",),
}


def _recognise(row: Row, case: Case) -> str | None:
    if row.errno is not None and case.errno not in row.errno:
        return None
    match = re.search(row.log, case.log) if row.log else None
    if (row.log and match is None) or not row.seen(case):
        return None
    groups = match.groups() if match else ()
    helper = since.described(int(groups[0])) if groups and groups[0].isdigit() else ""
    map_type = _map_type(case)
    return row.says.format(
        *groups, helper=helper, map_type=map_type, map_since=since.MAP_TYPES.get(map_type), insns=len(case.insns),
        prog_type=case.prog_type, section=case.section, attach_target=case.attach_target,
    )  # fmt: skip


def _about_poison(case: Case, relo: Relocation) -> list[str]:
    """What would have guarded this access, and why what is there did not."""
    live_guards = [other for other in case.relocations if other.is_guard and other.liveness is Liveness.LIVE]
    own = [guard for guard in live_guards if guard.field == relo.field]
    others = [guard for guard in live_guards if guard not in own and guard.new_value and _root(guard) == _root(relo)]
    # None: facts of a loader, or of a time, that did not ask the kernel (harness/guest/evidence.py).
    one_sided = case.features.get("constant_branches")
    if any(guard.new_value == 0 for guard in own):
        return [_OWN_GUARD_FAILED.format(field=relo.field, why=_WHY_REACHED[one_sided])]
    if others and one_sided is not True:
        member, who = relo.field.rpartition(".")[2], _WHO_WALKS_BOTH[one_sided]
        return [_ELSE_BRANCH.format(field=relo.field, other=others[0].field, member=member, who=who)]
    if any(extern.get("name") == "LINUX_KERNEL_VERSION" for extern in case.externs):
        return [_BY_VERSION.format(field=relo.field, code=_guard_code(relo))]
    return [f"nothing guards {relo.field}: {_guard_code(relo)}"]


# Kernels before about 4.16 prune a comparison of constants only when they are equal (f4d7e40a5b71 and, for all
# comparisons, is_branch_taken of 4.20 came later; Ubuntu's 4.15 has it): so the guest asks the kernel.
_NO_DOMINATION = "the check does not dominate it"
_BOTH_SIDES = "this verifier walks both sides of a comparison of constants that are not equal"
_WHY_REACHED: Mapping[bool | None, str] = {
    True: _NO_DOMINATION,
    False: f"either {_NO_DOMINATION}, or it is walked because {_BOTH_SIDES} (as kernels before about 4.16 do)",
    None: f"either {_NO_DOMINATION}, or {_BOTH_SIDES} (kernels before about 4.16 do)",
}
_WHO_WALKS_BOTH: Mapping[bool | None, str] = {
    False: f"{_BOTH_SIDES} (as kernels before about 4.16 do): of `if (exists) ... else ...` it walks both",
    None: "kernels before about 4.16 walk both sides of `if (exists) ... else ...`",
}
# fixup_bpf_calls() looks up the helper of a call that is dead, too, and finds none; sanitize_dead_code() came with 4.15
# (c131187db2d3) and with it to 4.4.y, 4.9.y and 4.14.y. Seen on 4.6.2.
DEAD_POISON = (
    "{field} is poisoned here. A kernel that does not sanitise dead code (mainline 4.5 to 4.14, early 4.4.y, 4.9.y and "
    "4.14.y) dies of poison however well it is guarded: on such a kernel keep the access out of the program that is "
    "loaded (one program for each case, chosen in user space by bpf_program__set_autoload()), or require a kernel with "
    "the mend (c131187db2d3)"
)
_OWN_GUARD_FAILED = (
    "{field} is guarded by an existence check that is 0 here, yet the access is reached: {why}. "
    "The portable form is one `if (bpf_core_field_exists(f))` for each access, `else if` instead of `else`"
)
_ELSE_BRANCH = (
    "{field} is in the other branch of a check on {other}, which is 1 here, yet it is reached: {who}. "
    "Write `else if (bpf_core_field_exists({member}))` instead of `else`"
)
_BY_VERSION = (
    "nothing asks whether {field} exists: the program looks at LINUX_KERNEL_VERSION, which here leads to the access "
    "that fails. Guard by the field: {code}"
)


def _root(relo: Relocation) -> str:
    """The essential name of the root type: flavors cut off."""
    return relo.field.split(".")[0].split("::")[0].split("___")[0]


def _guard_code(relo: Relocation) -> str:
    if relo.kind.startswith("enumval"):
        return "use `if (bpf_core_enum_value_exists(...))` before it"
    if relo.kind.startswith(("type", "target_type", "local_type")):
        return "use `if (bpf_core_type_exists(...))` before it"
    return f"put `if (bpf_core_field_exists(p->{relo.field.partition('.')[2] or '...'}))` before the access"


def nearest(relo: Relocation) -> Candidate | None:
    """The candidate that came closest: the first that matched, else the one whose refusal says most (a member
    compared).
    """
    if not relo.candidates:
        return None
    return min(relo.candidates, key=lambda item: (item.why_not is not None, -len(item.why_not or "")))


def why(relo: Relocation) -> str | None:
    """One line on why a relocation is what it is: its own reason, else the nearest candidate's; None when it just
    resolved.
    """
    if relo.outcome is Outcome.RESOLVED and not (relo.is_guard and relo.new_value == 0):
        return None
    close = nearest(relo)
    refusal = _refusal(close) if close and close.why_not else None
    if relo.reason and refusal and (close is None or (close.why_not or "") not in relo.reason):
        return f"{relo.reason}; nearest candidate {refusal}"
    return relo.reason or refusal


def _refusal(candidate: Candidate) -> str:
    said = candidate.why_not or ""
    return said if said.startswith(candidate.name) else f"{candidate.name}: {said}"


def errno_text(number: int | None) -> str:
    """`EINVAL (22)`; the kernel's ENOTSUPP, which errno.h does not have, included."""
    if number is None:
        return "no errno"
    name = "ENOTSUPP" if number == _ENOTSUPP else errno_names.errorcode.get(abs(number), "errno")
    return f"{name} ({abs(number)})"
