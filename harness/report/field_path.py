"""A relocation's field step by step: which named type holds each member on its path, in a kernel's BTF."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from harness.guest.btf import (
    BTF_KIND_ARRAY,
    BTF_KIND_ENUM,
    BTF_KIND_ENUM64,
    BTF_KIND_STRUCT,
    BTF_KIND_UNION,
    Btf,
)
from harness.guest.names import essential_name

_COMPOSITES = frozenset({BTF_KIND_STRUCT, BTF_KIND_UNION})
_ENUMS = frozenset({BTF_KIND_ENUM, BTF_KIND_ENUM64})


class Member(NamedTuple):
    """A member of a struct, union or enum by name; "" for the type itself. Of the type "" a function."""

    type: str
    name: str


def split(name: str) -> tuple[str, list[str]]:
    """`task_struct___new.a.b[2].c` -> task_struct, [a, b, c]; `bpf_func_id::BPF_FUNC_x` -> bpf_func_id,
    [BPF_FUNC_x].
    """
    root, _, rest = name.partition("::")
    if rest:
        return essential_name(root), [essential_name(rest)]
    first, *path = re.sub(r"\[\d+\]", "", name).split(".")
    return essential_name(first.split()[-1] if first else ""), [part for part in path if not part.startswith("<")]


def walk(btf: Btf, root: str, path: Sequence[str]) -> list[Member] | None:
    """The type and each member on a field's path, every one with the named type that holds it; None when one is not
    there.
    """
    types = [btf.type(number) for number in btf.ids_by_essential_name(root)]
    whole = (t for t in types if t.kind in _COMPOSITES | _ENUMS and t.name == root)
    t = max(whole, key=lambda item: item.vlen, default=None)
    if t is None:
        return None
    if t.kind in _ENUMS:
        known = {name for name, _ in btf.enumerators(t)}
        return [Member(root, ""), *(Member(root, name) for name in path)] if set(path) <= known else None
    steps, holder = [Member(root, "")], root
    for name in path:
        below = _member(btf, t.id, name)
        if below is None:
            return None
        steps.append(Member(holder, name))
        t = btf.skip_mods_and_typedefs(below)
        while t.kind == BTF_KIND_ARRAY:
            t = btf.skip_mods_and_typedefs(btf.array(t)[0])
        holder = t.name or holder
    return steps


def _member(btf: Btf, type_id: int, name: str) -> int | None:
    """The type of a member, those of unnamed members included."""
    t = btf.type(type_id)
    if t.kind not in _COMPOSITES:
        return None
    for own, below, _, _ in btf.members(t):
        found = below if own == name else None
        if not own:
            found = _member(btf, btf.skip_mods_and_typedefs(below).id, name)
        if found is not None:
            return found
    return None


def has(btf: Btf, step: Member) -> bool:
    """Is the type there, and the member in it?"""
    return walk(btf, step.type, [step.name] if step.name else []) is not None
