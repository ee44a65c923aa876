"""C that reads a field under either of its names: two flavors and a check for each (bpf_core_read.h's words).

Made from what two kernels' BTF say. Integers, enums (read as integers) and pointers only: for a struct, an array or a
bitfield there is no one right way to read, and None is given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.guest.btf import (
    BTF_KIND_ENUM,
    BTF_KIND_ENUM64,
    BTF_KIND_INT,
    BTF_KIND_PTR,
    BTF_KIND_STRUCT,
    Btf,
)
from harness.report.successor import Field, find_field, size_of

_NAME = re.compile(r"[A-Za-z_]\w*")
_INTEGERS = {
    (1, True): "signed char", (1, False): "unsigned char", (2, True): "short", (2, False): "unsigned short",
    (4, True): "int", (4, False): "unsigned int", (8, True): "long long", (8, False): "unsigned long long",
}  # fmt: skip


def both(has: Btf, known: Sequence[str], lacks: Btf, found: Sequence[str], root: str) -> str | None:
    """A function that reads `root`.known where that exists and `root`.found otherwise; None when it cannot be said
    plainly. Needs vmlinux.h or own types, bpf_helpers.h and bpf_core_read.h; `root` is a struct.
    """
    one, other = find_field(has, root, known), find_field(lacks, root, found)
    if one is None or other is None or not all(map(_NAME.fullmatch, (root, *known, *found))):
        return None
    types = [_declared(btf, item, f"{root}_{n}") for n, (btf, item) in enumerate(((has, one), (lacks, other)))]
    if None in types or not _is_struct(has, root):
        return None
    pointers = [str(item).endswith("*") for item in types]
    if pointers[0] != pointers[1]:
        return None
    value = "void *" if pointers[0] else "long long " if _signed(types) else "unsigned long long "
    first, second = (f"{root}___with_{'_'.join(path).strip('_') or 'it'}" for path in (known, found))
    second = f"{second}_renamed" if first == second else second
    return _TEXT.format(
        root=root, first=first, second=second, value=value, name=f"{root}_{known[-1].strip('_')}",
        first_body=_body(known, str(types[0])), second_body=_body(found, str(types[1])),
        one=".".join(known), other=".".join(found),
    )  # fmt: skip


_TEXT = """\
struct {first} {{
{first_body}
}} __attribute__((preserve_access_index));

struct {second} {{
{second_body}
}} __attribute__((preserve_access_index));

static __always_inline {value}{name}(void *{root})
{{
	struct {first} *one = {root};
	struct {second} *other = {root};

	if (bpf_core_field_exists(one->{one}))
		return BPF_CORE_READ(one, {one});
	if (bpf_core_field_exists(other->{other}))
		return BPF_CORE_READ(other, {other});
	return 0;
}}
"""


def _body(path: Sequence[str], leaf: str) -> str:
    """The member, inside a struct for each member on the way: to libbpf any two structs are compatible."""
    space = "" if leaf.endswith("*") else " "
    text = f"{leaf}{space}{path[-1]};"
    for name in reversed(path[:-1]):
        text = f"struct {{ {text} }} {name};"
    return f"\t{text}"


def _is_struct(btf: Btf, root: str) -> bool:
    return btf.find(root, BTF_KIND_STRUCT) is not None


def _declared(btf: Btf, item: Field, unique: str) -> str | None:
    """A type that libbpf takes for compatible and that reads all bytes of it."""
    t = btf.skip_mods_and_typedefs(item.type_id)
    if item.bitfield_size:
        return None
    if t.kind == BTF_KIND_PTR:
        return "void *"
    size = size_of(btf, item.type_id)
    if t.kind == BTF_KIND_INT and size is not None:
        return _INTEGERS.get((size, bool(btf.int_data(t)[0] & 1)))
    if t.kind in (BTF_KIND_ENUM, BTF_KIND_ENUM64) and size == 4:
        return f"enum {{ {unique}_enumerator }}"  # an unnamed enum is compatible with any
    return None


def _signed(types: Sequence[str | None]) -> bool:
    return all(not str(item).startswith("unsigned") for item in types)
