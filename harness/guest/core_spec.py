"""CO-RE relocation kinds and access specs: parsing and printing (relo_core.c: bpf_core_parse_spec,
bpf_core_format_spec).
"""

from __future__ import annotations

from .btf import BTF_KIND_ARRAY, BTF_KIND_ENUM, BTF_KIND_ENUM64, BTF_KIND_STRUCT, BTF_KIND_UNION, KIND_NAMES, Btf
from .errors import E2BIG, EINVAL, CoreError

# enum bpf_core_relo_kind, include/uapi/linux/bpf.h
(
    BPF_CORE_FIELD_BYTE_OFFSET, BPF_CORE_FIELD_BYTE_SIZE, BPF_CORE_FIELD_EXISTS,
    BPF_CORE_FIELD_SIGNED, BPF_CORE_FIELD_LSHIFT_U64,
    BPF_CORE_FIELD_RSHIFT_U64, BPF_CORE_TYPE_ID_LOCAL, BPF_CORE_TYPE_ID_TARGET,
    BPF_CORE_TYPE_EXISTS, BPF_CORE_TYPE_SIZE,
    BPF_CORE_ENUMVAL_EXISTS, BPF_CORE_ENUMVAL_VALUE, BPF_CORE_TYPE_MATCHES,
) = range(13)  # fmt: skip

# core_relo_kind_str(): the words of every report
KIND_WORDS = (
    "byte_off", "byte_sz", "field_exists", "signed", "lshift_u64", "rshift_u64", "local_type_id",
    "target_type_id", "type_exists",
    "type_size", "enumval_exists", "enumval_value", "type_matches",
)  # fmt: skip
FIELD_KINDS = frozenset(range(BPF_CORE_FIELD_BYTE_OFFSET, BPF_CORE_FIELD_RSHIFT_U64 + 1))
TYPE_KINDS = frozenset(
    (BPF_CORE_TYPE_ID_LOCAL, BPF_CORE_TYPE_ID_TARGET, BPF_CORE_TYPE_EXISTS, BPF_CORE_TYPE_SIZE, BPF_CORE_TYPE_MATCHES)
)
ENUM_KINDS = frozenset((BPF_CORE_ENUMVAL_EXISTS, BPF_CORE_ENUMVAL_VALUE))

COMPOSITES = (BTF_KIND_STRUCT, BTF_KIND_UNION)
ENUMS = (BTF_KIND_ENUM, BTF_KIND_ENUM64)

BPF_CORE_SPEC_MAX_LEN = 64
U32 = 0xFFFFFFFF


def kind_word(kind: int) -> str:
    """libbpf's word for a relocation kind, "unknown" beyond the table."""
    return KIND_WORDS[kind] if kind < len(KIND_WORDS) else "unknown"


class Spec:
    """A path from a root type to a field, type or enumerator in one BTF.

    `accessors` holds (type id, index, name or None): named members and array indexes only; `raw` every step, those into
    anonymous members included; `bit_offset` is from the root, modulo 2**32 as in libbpf.
    """

    __slots__ = ("accessors", "bit_offset", "btf", "kind", "raw", "root_id")

    def __init__(self, btf: Btf, root_id: int, kind: int) -> None:
        self.btf = btf
        self.root_id = root_id
        self.kind = kind
        self.raw: list[int] = []
        self.accessors: list[tuple[int, int, str | None]] = []
        self.bit_offset = 0

    def advance(self, bits: int) -> None:
        """Move the offset, wrapping as the u32 in struct bpf_core_spec does."""
        self.bit_offset = (self.bit_offset + bits) & U32


def is_flexible(btf: Btf, accessor: tuple[int, int, str | None], elements: int) -> bool:
    """Whether an array without elements, reached by `accessor`, may be indexed freely (is_flex_arr): the last named
    member.
    """
    type_id, index, name = accessor
    return not elements and bool(name) and index == btf.type(type_id).vlen - 1


def parse_access(text: str, negative_allowed: bool) -> list[int]:
    """`0:1:2` as numbers. CoreError for anything else, and for more than 64 steps."""
    steps: list[int] = []
    for word in text.split(":"):
        digits = word[1:] if word[:1] in ("-", "+") else word
        if not (digits.isascii() and digits.isdigit()) or len(digits) > 10:
            raise CoreError(f"access string '{text}' is not a list of numbers", EINVAL, "bad_access_string")
        if len(steps) == BPF_CORE_SPEC_MAX_LEN:
            raise CoreError(f"access string has more than {BPF_CORE_SPEC_MAX_LEN} steps", E2BIG, "too_deep")
        number = int(word)
        if number < 0 and not negative_allowed:
            raise CoreError(f"access string '{text}' has a negative index", EINVAL, "bad_access_string")
        steps.append(number)
    return steps


def parse_spec(btf: Btf, root_id: int, access: str, kind: int, negative_allowed: bool = False) -> Spec:
    """The local spec of a relocation record. CoreError when libbpf cannot parse it (fatal for the object).

    `negative_allowed`: libbpf up to 1.7.0 took a negative index where it did not read out of bounds by it.
    """
    spec = Spec(btf, root_id, kind)
    if kind in TYPE_KINDS:
        if access != "0":
            raise CoreError(f"access string '{access}' of a type relocation, '0' expected", EINVAL, "bad_access_string")
        return spec
    steps = parse_access(access, negative_allowed)
    t = btf.skip_mods_and_typedefs(root_id)
    spec.raw = steps
    if kind in ENUM_KINDS:
        if t.kind not in ENUMS or len(steps) > 1 or not 0 <= steps[0] < t.vlen:
            raise CoreError(f"access string '{access}' names no enumerator of {t!r}", EINVAL, "bad_access_string")
        spec.accessors.append((t.id, steps[0], btf.enumerators(t)[steps[0]][0]))
        return spec
    if kind not in FIELD_KINDS:
        raise CoreError(f"relocation kind {kind} is unknown", EINVAL, "unknown_kind")
    spec.accessors.append((t.id, steps[0], None))
    spec.advance(steps[0] * btf.resolve_size(t.id) * 8)
    id_ = t.id
    for step in steps[1:]:
        id_ = _step_into(spec, id_, step)
    return spec


def _step_into(spec: Spec, id_: int, step: int) -> int:
    """Follow one index of a field access; returns the type id it leads to."""
    btf = spec.btf
    t = btf.skip_mods_and_typedefs(id_)
    if t.kind in COMPOSITES:
        if not 0 <= step < t.vlen:
            raise CoreError(f"{t!r} has no member {step} ({t.vlen} members)", EINVAL, "bad_access_string")
        name, type_id, bits, _ = btf.members(t)[step]
        spec.advance(bits)
        if name:
            spec.accessors.append((t.id, step, name))
        return type_id
    if t.kind == BTF_KIND_ARRAY:
        element, _, elements = btf.array(t)
        element = btf.skip_mods_and_typedefs(element).id
        if not is_flexible(btf, spec.accessors[-1], elements) and not 0 <= step < elements:
            raise CoreError(f"{t!r} of {elements} elements has no index {step}", EINVAL, "bad_access_string")
        spec.accessors.append((element, step, None))
        spec.advance(step * btf.resolve_size(element) * 8)
        return element
    raise CoreError(f"access string goes into {t!r}, which has no parts", EINVAL, "bad_access_string")


def _enumerator_text(spec: Spec) -> str:
    t = spec.btf.skip_mods_and_typedefs(spec.root_id)
    name, value = spec.btf.enumerators(t)[spec.raw[0]]
    width = 64 if t.kind == BTF_KIND_ENUM64 else 32
    value &= (1 << width) - 1
    if t.kflag:  # signed
        value = (value ^ 1 << (width - 1)) - (1 << (width - 1))
    return f"::{name} = {value}"


def path_text(spec: Spec) -> str:
    """The part of a spec behind the type's name: `.a.b[3]`, `::RED`, or nothing for a type."""
    if spec.kind in ENUM_KINDS:
        return f"::{spec.accessors[0][2]}"
    parts = []
    for at, (_, index, name) in enumerate(spec.accessors):
        if name:
            parts.append(f".{name}")
        elif at or index > 0:
            parts.append(f"[{index & U32}]")
    return "".join(parts)


def type_text(btf: Btf, id_: int) -> str:
    """`struct task_struct`, as in spec texts."""
    t = btf.type(id_)
    return f"{KIND_NAMES[t.kind]} {t.name or '<anon>'}"


def format_spec(spec: Spec) -> str:
    """A spec as bpf_core_format_spec() prints it: `<byte_off> [5] struct task_struct.pid (0:92 @ offset 1264)`."""
    head = f"<{kind_word(spec.kind)}> [{spec.root_id}] {type_text(spec.btf, spec.root_id)}"
    if spec.kind in ENUM_KINDS:
        return head + _enumerator_text(spec)
    if spec.kind not in FIELD_KINDS:
        return head
    byte, bit = divmod(spec.bit_offset, 8)
    steps = ":".join(map(str, spec.raw))
    return f"{head}{path_text(spec)} ({steps} @ offset {byte}{f'.{bit}' if bit else ''})"
