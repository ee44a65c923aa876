"""Values for read-only variables, given as text: what a loader does between open and load (`skel->rodata->x = 1`)."""

from __future__ import annotations

import sys

from . import bpf_object as O
from . import btf as B
from .errors import EINVAL, ENOENT, ERANGE, GuestError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .bpf_object import BpfObject
    from .maps import Map


class SettingError(GuestError):
    """A setting that names no variable, or holds what the variable cannot."""

    stage = "open"


class _Variable:
    __slots__ = ("item", "offset", "size", "type_id")

    def __init__(self, item: Map, offset: int, size: int, type_id: int) -> None:
        self.item = item
        self.offset = offset
        self.size = size
        self.type_id = type_id


def apply(obj: BpfObject, maps: list[Map], places: dict[str, int], values: dict[str, str]) -> None:
    """Write each value into the initial content of its variable's map.

    `values` maps names to text: a number (any base Python reads), true or false, an enumerator's name, one character,
    or a string for a char array. Raises SettingError; for an unknown name it lists the known ones.
    """
    if not values:
        return
    known = _variables(obj, maps, places)
    for name, text in values.items():
        if name not in known:
            names = ", ".join(sorted(known)) or "none"
            raise SettingError(f"{obj.path}: no variable '{name}' in .rodata; there are: {names}", ENOENT)
        variable = known[name]
        assert obj.btf is not None
        data = _encode(obj.btf, variable, name, text)
        variable.item.data[variable.offset : variable.offset + len(data)] = data


def _variables(obj: BpfObject, maps: list[Map], places: dict[str, int]) -> dict[str, _Variable]:
    found: dict[str, _Variable] = {}
    btf = obj.btf
    if btf is None:
        return found
    for item in maps:
        sec_id = btf.find(item.real_name, B.BTF_KIND_DATASEC) if item.kind == O.SEC_RODATA else None
        for var_id, listed, size in btf.datasec(btf.type(sec_id)) if sec_id is not None else []:
            var = btf.type(var_id)
            offset = places.get(var.name, listed)
            if var.kind == B.BTF_KIND_VAR and offset + size <= len(item.data):
                found[var.name] = _Variable(item, offset, size, var.type)
    return found


def _encode(btf: B.Btf, variable: _Variable, name: str, text: str) -> bytes:
    t = btf.skip_mods_and_typedefs(variable.type_id)
    if t.kind == B.BTF_KIND_ARRAY:
        return _encode_text(btf, t, variable, name, text)
    if t.kind not in (B.BTF_KIND_INT, B.BTF_KIND_ENUM, B.BTF_KIND_ENUM64):
        raise SettingError(
            f"variable '{name}' is a {B.KIND_NAMES[t.kind]}: only numbers, enums and char arrays can be set", EINVAL
        )
    number = _number(btf, t, name, text)
    bits = 8 * variable.size
    if not -(1 << bits - 1) <= number < 1 << bits:
        raise SettingError(f"value {text} does not fit variable '{name}' of {variable.size} bytes", ERANGE)
    return (number & ((1 << bits) - 1)).to_bytes(variable.size, sys.byteorder)


def _encode_text(btf: B.Btf, array: B.Type, variable: _Variable, name: str, text: str) -> bytes:
    element = btf.skip_mods_and_typedefs(btf.array(array)[0])
    if element.kind != B.BTF_KIND_INT or element.size != 1:
        raise SettingError(f"variable '{name}' is an array, and not of char: it cannot be set", EINVAL)
    data = text.encode()
    if len(data) >= variable.size:
        raise SettingError(f"value of '{name}' is longer than the {variable.size - 1} characters it holds", ERANGE)
    return data.ljust(variable.size, b"\0")


def _number(btf: B.Btf, t: B.Type, name: str, text: str) -> int:
    if text in ("true", "false"):
        return int(text == "true")
    if t.kind != B.BTF_KIND_INT:
        for enumerator, value in btf.enumerators(t):
            if enumerator == text:
                return value
    elif btf.int_data(t)[0] & B.BTF_INT_BOOL and text not in ("0", "1"):
        raise SettingError(f"variable '{name}' is a bool: '{text}' is neither true nor false", EINVAL)
    try:
        return int(text, 0)
    except ValueError:
        raise SettingError(f"value '{text}' of variable '{name}' is no number", EINVAL) from None
