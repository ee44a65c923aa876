"""What a kernel does not have, by its BTF: program types, attach types, helpers, functions and variables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from harness.guest import btf as B
from harness.guest.bpf_object import BpfObject, Prog
from harness.guest.core_match import Matcher
from harness.guest.errors import CoreError
from harness.guest.externs import Ksym, flavors_ignored, kfunc_name
from harness.guest.loader import OLD_HELPER
from harness.guest.prog_types import EXP_ATTACH_OPT, parse_section

Enums = Mapping[str, Mapping[str, int]]
Version = tuple[int, ...] | None  # of libbpf; None: the newest


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


def enumerators(btf: B.Btf, name: str) -> dict[str, int]:
    """Of an enum, name -> value; none where the BTF has no such enum."""
    id_ = btf.find(name, B.BTF_KIND_ENUM)
    return dict(btf.enumerators(btf.type(id_))) if id_ is not None else {}


def unlike(obj: BpfObject, ksym: Ksym, btf: B.Btf, rules: Version) -> str | None:
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
