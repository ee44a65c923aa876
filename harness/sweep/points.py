"""Where a program touches the kernel besides its relocations: what it is attached to by name, and the kernel functions
and variables it asks for; whether a BTF has them, and with what signature.

BTF lists functions that can be traced. One that is missing may have been inlined, or be in a module.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from harness.c_types import c_signature, c_type
from harness.guest import btf as B
from harness.guest.bpf_object import Prog
from harness.guest.errors import CoreError
from harness.guest.externs import Ksym, kfunc_name
from harness.guest.prog_types import ATTACH_BTF, ATTACH_PREFIX, ATTACH_TYPES, PROG_TYPE, parse_section

# A typedef `btf_trace_NAME` stands for every tracepoint since 5.5, e8c423fb31fa; this one is in every kernel.
_TRACE, _KNOWN_TRACE = "btf_trace_", "btf_trace_sched_switch"
_TRACEPOINTS = frozenset(("raw_tp", "raw_tracepoint", "raw_tp.w", "raw_tracepoint.w", "tp", "tracepoint"))
_FUNCTIONS = frozenset(("kprobe", "kretprobe"))


class Point(NamedTuple):
    """One name the program needs. `found` is None where the BTF cannot tell; `signature` in C's words, None where there
    is none to compare.
    """

    what: str
    name: str
    found: bool | None
    signature: str | None = None


def attach_target(prog: Prog) -> tuple[str, int] | None:
    """(name, BTF kind) of what a program is attached to by BTF; None when it is not, or a module is named."""
    definition = parse_section(prog.section)
    if definition is None or not definition.flags & ATTACH_BTF or definition.target is None:
        return None
    if definition.type == PROG_TYPE["ext"] or ":" in definition.target:
        return None
    prefix, kind = ATTACH_PREFIX.get(ATTACH_TYPES[definition.attach], ("", "func"))
    return prefix + definition.target, B.KIND_NAMES.index(kind)


def attach_point(prog: Prog, btf: B.Btf, has_functions: bool) -> Point | None:
    """What a program's section names; None when it names nothing that BTF could know."""
    target = attach_target(prog)
    if target is not None:
        return _point("attach target", *target, btf, has_functions)
    family, _, name = prog.section.removeprefix("?").partition("/")
    if family in _TRACEPOINTS and name:
        category, _, event = name.rpartition("/")
        if category == "syscalls":  # made from the syscall table, no type of their own
            return Point("tracepoint", name, None)
        told = has_functions and btf.find(_KNOWN_TRACE, B.BTF_KIND_TYPEDEF) is not None
        return _point("tracepoint", _TRACE + event, B.BTF_KIND_TYPEDEF, btf, told)
    if family in _FUNCTIONS and name:
        return _point("function", name.partition("+")[0], B.BTF_KIND_FUNC, btf, has_functions)
    return None


def extern_points(
    ksyms: Iterable[Ksym], btf: B.Btf, has_functions: bool, rules: tuple[int, ...] | None = None
) -> tuple[Point, ...]:
    """Kernel functions and variables of known type, weak ones included, by the names a version of libbpf looks for
    (None: the newest).
    """
    return tuple(
        _point(
            ksym.kind, kfunc_name(ksym, rules),
            B.BTF_KIND_FUNC if ksym.is_func else B.BTF_KIND_VAR, btf, has_functions,
        )
        for ksym in ksyms
        if ksym.type_id
    )  # fmt: skip


def _point(what: str, name: str, kind: int, btf: B.Btf, told: bool) -> Point:
    shown = name.removeprefix(_TRACE)
    if not told:
        return Point(what, shown, None)
    id_ = btf.find(name, kind)
    return Point(what, shown, id_ is not None, _signature(btf, id_) if id_ is not None else None)


def _signature(btf: B.Btf, id_: int) -> str | None:
    """Of a function, of a typedef of a pointer to one (tracepoints), or a variable's type."""
    t = btf.type(id_)
    try:
        if t.kind == B.BTF_KIND_VAR:
            return c_type(btf, t.type)
        if t.kind == B.BTF_KIND_TYPEDEF:
            t = btf.skip_mods_and_typedefs(id_)
        proto = btf.type(t.type)
        return c_signature(btf, proto.id) if proto.kind == B.BTF_KIND_FUNC_PROTO else None
    except CoreError:
        return None
