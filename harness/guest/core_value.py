"""What a relocation's instruction should hold: values of specs (relo_core.c: bpf_core_calc_relo and its three kinds).
Pure.
"""

from __future__ import annotations

from .btf import BTF_INT_SIGNED, BTF_KIND_ARRAY, BTF_KIND_INT, BTF_KIND_PTR, KIND_NAMES, Btf, Type
from .core_spec import (
    BPF_CORE_ENUMVAL_EXISTS,
    BPF_CORE_FIELD_BYTE_OFFSET,
    BPF_CORE_FIELD_BYTE_SIZE,
    BPF_CORE_FIELD_EXISTS,
    BPF_CORE_FIELD_RSHIFT_U64,
    BPF_CORE_FIELD_SIGNED,
    BPF_CORE_TYPE_ID_TARGET,
    BPF_CORE_TYPE_SIZE,
    ENUM_KINDS,
    ENUMS,
    FIELD_KINDS,
    TYPE_KINDS,
    U32,
    Spec,
    kind_word,
)
from .errors import E2BIG, EINVAL, CoreError

U64 = 0xFFFFFFFFFFFFFFFF


class Value:
    """One side of a relocation: `value` (unsigned 64 bits, None asks for poison), `size` in bytes of what a load would
    read and `type_id` of its type (0: not known, as for bitfields), `validate`: must the instruction hold this value
    beforehand?
    """

    __slots__ = ("size", "type_id", "validate", "value")

    def __init__(self, value: int | None, validate: bool = True, size: int = 0, type_id: int = 0) -> None:
        self.value = value
        self.validate = validate
        self.size = size
        self.type_id = type_id


class Result:
    """What to do to the instruction (struct bpf_core_relo_res): values old and new, sizes for resizing a load, and the
    two ways to poison: `poison` always, `unsafe_resize` only a load or store.
    """

    __slots__ = ("new", "new_size", "orig", "orig_size", "poison", "unsafe_resize", "validate")

    def __init__(self, orig: Value, new: Value, unsafe_resize: bool = False) -> None:
        self.orig = orig.value or 0
        self.validate = orig.validate
        self.orig_size = orig.size
        self.poison = new.value is None
        self.new = new.value or 0
        self.new_size = new.size
        self.unsafe_resize = unsafe_resize


def calc(local: Spec, target: Spec | None, array_element_size: bool, big_endian: bool) -> Result:
    """The result for a local spec and its match, or for no match at all (`target` None). CoreError is fatal.

    `array_element_size`: a load from an array member has the size of an element (libbpf 1.6), not that of the array.
    """
    if local.kind in FIELD_KINDS:
        orig = _field_value(local, local.kind, array_element_size, big_endian)
        new = _field_value(target, local.kind, array_element_size, big_endian)
        # libbpf leaves before it compares sizes when it poisons anyway
        unsafe = target is not None and orig.size != new.size and not _may_resize(local.btf, orig, target.btf, new)
        return Result(orig, new, unsafe)
    if local.kind in TYPE_KINDS:
        return Result(_type_value(local, local.kind), _type_value(target, local.kind))
    if local.kind in ENUM_KINDS:
        return Result(_enum_value(local, local.kind), _enum_value(target, local.kind))
    raise CoreError(f"unrecognized CO-RE relocation {kind_word(local.kind)} ({local.kind})", EINVAL, "unknown_kind")


def _type_value(spec: Spec | None, kind: int) -> Value:
    if spec is None:
        return Value(0)
    if kind == BPF_CORE_TYPE_ID_TARGET:
        return Value(spec.root_id, validate=False)
    if kind == BPF_CORE_TYPE_SIZE:
        return Value(spec.btf.resolve_size(spec.root_id))
    return Value(1)


def _enum_value(spec: Spec | None, kind: int) -> Value:
    if kind == BPF_CORE_ENUMVAL_EXISTS:
        return Value(0 if spec is None else 1)
    if spec is None:
        return Value(None)
    type_id, index, _ = spec.accessors[0]
    # 32-bit enumerators are sign-extended whatever the kind flag says: libbpf reads them through an s32
    return Value(spec.btf.enumerators(spec.btf.type(type_id))[index][1] & U64)


def _field_value(spec: Spec | None, kind: int, array_element_size: bool, big_endian: bool) -> Value:
    """bpf_core_calc_field_relo()."""
    if kind == BPF_CORE_FIELD_EXISTS:
        return Value(0 if spec is None else 1)
    if spec is None:
        return Value(None)
    if not spec.accessors[-1][2]:
        return _element_value(spec, kind)
    field = Field(spec)
    if kind == BPF_CORE_FIELD_BYTE_OFFSET:
        if field.is_bitfield:
            return Value(field.byte_off, validate=False)
        sized = _innermost(spec.btf, field.type) if array_element_size else field.type
        return Value(field.byte_off, size=spec.btf.resolve_size(sized.id), type_id=field.type.id)
    if kind == BPF_CORE_FIELD_BYTE_SIZE:
        return Value(field.byte_sz, validate=not field.is_bitfield)
    if kind == BPF_CORE_FIELD_SIGNED:
        return Value(int(is_signed(spec.btf, field.type)))
    if kind == BPF_CORE_FIELD_RSHIFT_U64:
        return Value(64 - field.bit_sz & U32)
    before = field.bit_off - field.byte_off * 8
    shift = (8 - field.byte_sz) * 8 + before if big_endian else 64 - (before + field.bit_sz)
    return Value(shift & U32, validate=not field.is_bitfield)  # u32 arithmetic: a field of over 8 bytes wraps


def _element_value(spec: Spec, kind: int) -> Value:
    """The last step is an array index (or the root itself): there is no member to ask."""
    type_id = spec.accessors[-1][0]
    if kind == BPF_CORE_FIELD_BYTE_OFFSET:
        return Value(spec.bit_offset // 8, size=spec.btf.resolve_size(type_id), type_id=type_id)
    if kind == BPF_CORE_FIELD_BYTE_SIZE:
        return Value(spec.btf.resolve_size(type_id))
    raise CoreError(f"{kind_word(kind)} can't be applied to array access", EINVAL, "array_access")


class Field:
    """Place and width of a spec's last member: `bit_off`, `bit_sz`, and `byte_off`, `byte_sz` of the load that holds
    it.
    """

    __slots__ = ("bit_off", "bit_sz", "byte_off", "byte_sz", "is_bitfield", "type")

    def __init__(self, spec: Spec) -> None:
        btf = spec.btf
        type_id, index, _ = spec.accessors[-1]
        _, member_id, _, bits = btf.members(btf.type(type_id))[index]
        self.type = btf.skip_mods_and_typedefs(member_id)
        self.bit_off = spec.bit_offset
        self.is_bitfield = bits > 0
        if self.is_bitfield:
            self.bit_sz = bits
            self._find_window()
        else:
            self.byte_sz = btf.resolve_size(self.type.id)
            self.byte_off = self.bit_off // 8
            self.bit_sz = self.byte_sz * 8

    def _find_window(self) -> None:
        """The smallest aligned load, of at least the declared type's size, that holds all bits."""
        size = self.type.size
        if not size:  # libbpf would divide by it
            raise CoreError(f"bitfield of {self.type!r}, which has no size", EINVAL, "bitfield")
        while True:
            start = self.bit_off // 8 // size * size
            if self.bit_off + self.bit_sz - start * 8 <= size * 8:
                break
            if size >= 8:
                raise CoreError("bitfield can't be read with one 64-bit load", E2BIG, "bitfield")
            size *= 2
        self.byte_off, self.byte_sz = start, size


def _innermost(btf: Btf, t: Type) -> Type:
    """What an array of arrays of ... consists of."""
    for _ in range(64):
        if t.kind != BTF_KIND_ARRAY:
            return t
        t = btf.skip_mods_and_typedefs(btf.array(t)[0])
    raise CoreError(f"{t!r} is nested too deep", EINVAL, "too_deep")


def is_signed(btf: Btf, t: Type) -> bool:
    """What <signed> says of a field's type: only ints and enums (by their kind flag) can be signed."""
    if t.kind in ENUMS:
        return bool(t.kflag)
    return t.kind == BTF_KIND_INT and bool(btf.int_data(t)[0] & BTF_INT_SIGNED)


def _may_resize(local: Btf, orig: Value, target: Btf, new: Value) -> bool:
    """Whether a load may change its width: pointers, and ints that are not (exactly) signed; zero extension is right
    for both.
    """
    before, after = local.type(orig.type_id), target.type(new.type_id)
    if before.kind == BTF_KIND_PTR and after.kind == BTF_KIND_PTR:
        return True
    if before.kind != BTF_KIND_INT or after.kind != BTF_KIND_INT:
        return False
    return local.int_data(before)[0] != BTF_INT_SIGNED and target.int_data(after)[0] != BTF_INT_SIGNED


def describe(spec: Spec) -> dict[str, object] | None:
    """Size, signedness and kind of what a spec leads to, for reports; None for what has no size."""
    try:
        if spec.kind in FIELD_KINDS and spec.accessors[-1][2]:
            field = Field(spec)
            t, size = field.type, field.byte_sz
        else:
            root = spec.accessors[-1][0] if spec.kind in FIELD_KINDS else spec.root_id
            t, size = spec.btf.skip_mods_and_typedefs(root), spec.btf.resolve_size(root)
    except CoreError:
        return None
    return {"size": size, "signed": is_signed(spec.btf, t), "kind": KIND_NAMES[t.kind]}
