"""Types of BTF in C's words, for people: never parsed again, compared only with texts made here."""

from __future__ import annotations

from harness.guest.btf import (
    BTF_KIND_ARRAY,
    BTF_KIND_CONST,
    BTF_KIND_ENUM,
    BTF_KIND_ENUM64,
    BTF_KIND_FUNC_PROTO,
    BTF_KIND_FWD,
    BTF_KIND_PTR,
    BTF_KIND_RESTRICT,
    BTF_KIND_STRUCT,
    BTF_KIND_UNION,
    BTF_KIND_VOLATILE,
    Btf,
)

_PREFIX = {BTF_KIND_CONST: "const ", BTF_KIND_VOLATILE: "volatile ", BTF_KIND_RESTRICT: ""}
_TAG = {
    BTF_KIND_STRUCT: "struct", BTF_KIND_UNION: "union", BTF_KIND_ENUM: "enum", BTF_KIND_ENUM64: "enum",
    BTF_KIND_FWD: "struct",
}  # fmt: skip


def c_type(btf: Btf, type_id: int, depth: int = 6) -> str:
    """A type: `volatile long int`, `struct file *`, `u64`, `char[16]`."""
    t = btf.type(type_id)
    if depth == 0:
        return "..."
    if t.kind in _PREFIX:
        return _PREFIX[t.kind] + c_type(btf, t.type, depth - 1)
    if t.kind == BTF_KIND_PTR:
        return f"{c_type(btf, t.type, depth - 1)} *".replace("* *", "**")
    if t.kind == BTF_KIND_ARRAY:
        element, _, count = btf.array(t)
        return f"{c_type(btf, element, depth - 1)}[{count}]"
    if t.kind in _TAG:
        return f"{_TAG[t.kind]} {t.name or '{...}'}"
    if t.kind == BTF_KIND_FUNC_PROTO:
        return "function"
    return t.name or "void"


def c_signature(btf: Btf, proto_id: int) -> str:
    """A function's prototype, parameters without their names: `int (struct file *, u64)`. A name may change and no
    program notices.
    """
    proto = btf.type(proto_id)
    params = ["..." if not name and not id_ else c_type(btf, id_) for name, id_ in btf.params(proto)]
    return f"{c_type(btf, proto.type)} ({', '.join(params) or 'void'})"
