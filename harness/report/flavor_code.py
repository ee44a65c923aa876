"""C that serves two kernels where a name differs: two flavors and a check for each (bpf_core_read.h's words).

Made from what the kernels' BTF say. Fields: integers, enums (read as integers) and pointers only; for a struct, an
array or a bitfield there is no one right way to read, and None is given.
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
    BTF_KIND_TYPEDEF,
    BTF_KIND_UNION,
    Btf,
)
from harness.report.successor import Field, find_field, size_of

_NAME = re.compile(r"[A-Za-z_]\w*")
_INTEGERS = {
    (1, True): "signed char", (1, False): "unsigned char", (2, True): "short", (2, False): "unsigned short",
    (4, True): "int", (4, False): "unsigned int", (8, True): "long long", (8, False): "unsigned long long",
}  # fmt: skip


def both(
    has: Btf, known: Sequence[str], lacks: Btf, found: Sequence[str], root: str, *, renamed: str | None = None
) -> str | None:
    """A function that reads `root`.known where that exists and `root`.found otherwise (`renamed`.found, where the
    struct has another name there); None when it cannot be said plainly. Needs vmlinux.h or own types, bpf_helpers.h
    and bpf_core_read.h.
    """
    there = renamed or root
    one, other = find_field(has, root, known), find_field(lacks, there, found)
    if one is None or other is None or not all(map(_NAME.fullmatch, (root, there, *known, *found))):
        return None
    types = [_declared(btf, item, f"{root}_{n}") for n, (btf, item) in enumerate(((has, one), (lacks, other)))]
    if None in types or not _is_struct(has, root) or not _is_struct(lacks, there):
        return None
    pointers = [str(item).endswith("*") for item in types]
    if pointers[0] != pointers[1]:
        return None
    value = "void *" if pointers[0] else "long long " if _signed(types) else "unsigned long long "
    first, second = (
        f"{name}___with_{'_'.join(path).strip('_') or 'it'}" for name, path in ((root, known), (there, found))
    )
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


def either_enumerator(enum: str, known: str, found: str) -> str | None:
    """A function that gives the value of `known` where the enum has it, and of `found` where it has that."""
    if not all(map(_NAME.fullmatch, (enum, known, found))):
        return None
    return _ENUMERATOR.format(enum=enum, known=known, found=found)


# The enumerators bear flavors too: without, they would clash with those of vmlinux.h or of <linux/*.h>.
_ENUMERATOR = """\
enum {enum}___with_{known} {{
	{known}___one = 1,
}};

enum {enum}___with_{found} {{
	{found}___other = 1,
}};

static __always_inline long long value_of_{known}(void)
{{
	if (bpf_core_enum_value_exists(enum {enum}___with_{known}, {known}___one))
		return bpf_core_enum_value(enum {enum}___with_{known}, {known}___one);
	if (bpf_core_enum_value_exists(enum {enum}___with_{found}, {found}___other))
		return bpf_core_enum_value(enum {enum}___with_{found}, {found}___other);
	return -1;
}}
"""


def either_type(has: Btf, lacks: Btf, keyword: str, known: str, found: str) -> str | None:
    """A function that tells which of two types the kernel has."""
    one, other = (_empty(btf, keyword, name, end) for btf, name, end in ((has, known, "one"), (lacks, found, "other")))
    if one is None or other is None or not all(map(_NAME.fullmatch, (known, found))):
        return None
    word = "" if keyword == "typedef" else f"{keyword} "
    return _TYPE.format(one=one, other=other, word=word, known=known, found=found)


_TYPE = """\
/* What is in them is of no account: a type's existence goes by its name and kind. */
{one}
{other}

/* 1: {word}{known}, 2: {word}{found}, 0: neither. */
static __always_inline int which_{known}(void)
{{
	if (bpf_core_type_exists({word}{known}___one))
		return 1;
	if (bpf_core_type_exists({word}{found}___other))
		return 2;
	return 0;
}}
"""
_UNDERLYING = {BTF_KIND_INT: "int", BTF_KIND_STRUCT: "struct { char any; }", BTF_KIND_UNION: "union { char any; }"}


def _empty(btf: Btf, keyword: str, name: str, end: str) -> str | None:
    """A declaration of the same name and kind (bpf_core_types_are_compat); of a typedef the kind below counts too."""
    if keyword == "enum":
        return f"enum {name}___{end} {{ {name}_{end} }};"
    if keyword != "typedef":
        return f"{keyword} {name}___{end} {{ char any; }};"
    id_ = btf.find(name, BTF_KIND_TYPEDEF)
    below = _UNDERLYING.get(btf.skip_mods_and_typedefs(id_).kind) if id_ is not None else None
    return f"typedef {below} {name}___{end};" if below else None


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
