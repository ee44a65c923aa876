"""Maps of an object: definitions from BTF and data sections (libbpf: bpf_object__init_maps), and their initialisers.

Needs no kernel; `map_create` does the bpf(2) work.
"""

from __future__ import annotations

import os

from . import bpf_object as O
from . import btf as B
from .errors import EINVAL, ENOENT, ENOMEM, ENOTSUP, LIBBPF_ERRNO__RELOC, MapError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .bpf_object import BpfObject, Prog

MAP_TYPES = (
    "unspec hash array prog_array perf_event_array percpu_hash percpu_array stack_trace cgroup_array lru_hash "
    "lru_percpu_hash lpm_trie array_of_maps hash_of_maps devmap sockmap cpumap xskmap sockhash cgroup_storage "
    "reuseport_sockarray percpu_cgroup_storage queue stack sk_storage devmap_hash struct_ops ringbuf inode_storage "
    "task_storage bloom_filter user_ringbuf cgrp_storage arena insn_array"
).split()
MAP_TYPE = {name: number for number, name in enumerate(MAP_TYPES)}
MAP_IN_MAP = (MAP_TYPE["array_of_maps"], MAP_TYPE["hash_of_maps"])
RINGBUFS = (MAP_TYPE["ringbuf"], MAP_TYPE["user_ringbuf"])
PROG_ARRAY, PERF_EVENT_ARRAY, STRUCT_OPS, ARENA = (
    MAP_TYPE["prog_array"], MAP_TYPE["perf_event_array"], MAP_TYPE["struct_ops"], MAP_TYPE["arena"],
)  # fmt: skip

BPF_F_RDONLY_PROG, BPF_F_MMAPABLE, BPF_F_LINK, BPF_F_VTYPE_BTF_OBJ_FD = 1 << 7, 1 << 10, 1 << 13, 1 << 15
KCONFIG = "kconfig"
_PTR = 8  # pointers in BPF objects
_U32 = 0xFFFFFFFF
_PINNING_MAX = 1  # LIBBPF_PIN_BY_NAME


class Map:
    """One map. `kind` is None for a definition in `.maps`, otherwise what it holds: O.SEC_DATA, SEC_RODATA, SEC_BSS,
    "kconfig", "struct_ops" or "arena" data. `data` is the initial content of internal maps; `slots` are `(index,
    target)` of an initialised map-in-map or prog array, target a Map or a Prog. After `create_all`: `fd` (None when
    not created) and `errno`/`message` of a refusal."""

    __slots__ = (
        "autocreate", "btf_key", "btf_value", "btf_vmlinux_value", "data", "errno", "extra", "fd", "flags", "ident",
        "index", "inner", "key_size", "kind", "mapping", "max_entries", "message", "name", "numa_node", "real_name",
        "sec_idx", "sec_offset", "slots", "struct_size", "type", "value_btf_fd", "value_size", "values_offset",
    )  # fmt: skip

    def __init__(self, name: str, sec_idx: int = 0, sec_offset: int = 0) -> None:
        self.name = self.real_name = name
        self.sec_idx = sec_idx
        self.sec_offset = sec_offset
        self.index = 0
        self.ident = 0  # the kernel's id, 0 where it gives none
        self.kind: str | None = None
        self.type = self.key_size = self.value_size = self.max_entries = 0
        self.flags = self.numa_node = self.extra = 0
        self.btf_key = self.btf_value = self.btf_vmlinux_value = self.value_btf_fd = 0
        self.inner: Map | None = None
        self.data = bytearray()
        self.slots: list[tuple[int, Map | Prog]] = []
        self.struct_size = self.values_offset = 0
        self.autocreate = True
        self.fd: int | None = None
        self.mapping: Any = None  # of an arena, for as long as its programs are loaded
        self.errno: int | None = None
        self.message: str | None = None

    @property
    def type_name(self) -> str:
        return MAP_TYPES[self.type] if self.type < len(MAP_TYPES) else str(self.type)

    @property
    def is_internal(self) -> bool:
        return self.kind in (O.SEC_DATA, O.SEC_RODATA, O.SEC_BSS, KCONFIG)


# -- definitions


def read_maps(obj: BpfObject, name: str, places: dict[str, int]) -> list[Map]:
    """All maps of an object but the Kconfig and struct_ops ones, in libbpf's order: `.maps`, then data sections.

    `name` is the object's (libbpf puts it before the names of internal maps), `places` the offset of each global
    variable in its section (clang leaves them 0 in BTF). Raises MapError where libbpf refuses the object.
    """
    maps = _user_maps(obj, places) + _data_maps(obj, name)
    for index, item in enumerate(maps):
        item.index = index
    _collect_slots(obj, maps)
    return maps


def _user_maps(obj: BpfObject, places: dict[str, int]) -> list[Map]:
    sec_idx = next((idx for idx, what in obj.sections.items() if what == O.SEC_MAPS), None)
    if sec_idx is None:
        return []
    btf = obj.btf
    sec_id = btf.find(".maps", B.BTF_KIND_DATASEC) if btf is not None else None
    if btf is None or sec_id is None:
        raise MapError(f"{obj.path}: DATASEC '.maps' not found in BTF", ENOENT)
    found = []
    for var_id, offset, size in btf.datasec(btf.type(sec_id)):
        var = btf.type(var_id)
        found.append(_user_map(btf, var, sec_idx, places.get(var.name, offset), size))
    return found


def _user_map(btf: B.Btf, var: B.Type, sec_idx: int, offset: int, size: int) -> Map:
    if not var.name:
        raise MapError("a map without a name in '.maps'", EINVAL)
    if var.kind != B.BTF_KIND_VAR or btf.linkage(var) > 1:
        raise MapError(f"map '{var.name}': unexpected var kind or unsupported map linkage", ENOTSUP, var.name)
    definition = btf.skip_mods_and_typedefs(var.type)
    if definition.kind != B.BTF_KIND_STRUCT:
        raise MapError(f"map '{var.name}': unexpected def kind {B.KIND_NAMES[definition.kind]}", EINVAL, var.name)
    if definition.size > size:
        raise MapError(f"map '{var.name}': invalid def size", EINVAL, var.name)
    item = Map(var.name, sec_idx, offset)
    item.struct_size = size  # of the variable: initialised slots make it larger than its type
    _Definition(btf, item).read(definition)
    return item


class _Definition:
    """Reads the struct of a map definition into a Map (parse_btf_map_def(), fill_map_from_def())."""

    def __init__(self, btf: B.Btf, item: Map, is_inner: bool = False) -> None:
        self._btf = btf
        self._map = item
        self._is_inner = is_inner

    def _bad(self, what: str, errno: int = EINVAL) -> MapError:
        return MapError(f"map '{self._map.name}': {what}", errno, self._map.name)

    def read(self, definition: B.Type) -> None:
        members = self._btf.members(definition)
        for position, (name, type_id, bit_offset, _) in enumerate(members):
            reader = _FIELDS.get(name)
            if reader is None:
                raise self._bad(f"unknown field '{name}'", ENOTSUP)
            if name == "values" and position != len(members) - 1:
                raise self._bad("'values' member should be last")
            self._map.values_offset = bit_offset // 8
            reader(self, name, type_id)
        if self._map.type == 0:
            raise self._bad("map type isn't specified")
        if self._map.type in RINGBUFS:
            self._map.max_entries = ringbuf_size(self._map.max_entries, os.sysconf("SC_PAGE_SIZE"))

    def _uint(self, name: str, type_id: int) -> int:
        """`__uint(name, val)`: a pointer to an array of val elements."""
        pointer = self._btf.skip_mods_and_typedefs(type_id)
        target = self._btf.type(pointer.type) if pointer.kind == B.BTF_KIND_PTR else pointer
        if target.kind != B.BTF_KIND_ARRAY or pointer.kind != B.BTF_KIND_PTR:
            raise self._bad(f"attr '{name}': expected PTR to ARRAY")
        return self._btf.array(target)[2]

    def _ulong(self, name: str, type_id: int) -> int:
        """`__ulong(name, val)`: an enum with one value, or the same as `__uint`."""
        t = self._btf.skip_mods_and_typedefs(type_id)
        if t.kind == B.BTF_KIND_PTR:
            return self._uint(name, type_id)
        values = self._btf.enumerators(t) if t.kind in (B.BTF_KIND_ENUM, B.BTF_KIND_ENUM64) else []
        if len(values) != 1:
            raise self._bad(f"attr '{name}': expected ENUM or ENUM64 with one value")
        return values[0][1] & (2**64 - 1)

    def number(self, name: str, type_id: int) -> None:
        attribute = {"map_flags": "flags"}.get(name, name)
        setattr(self._map, attribute, self._uint(name, type_id))

    def map_extra(self, name: str, type_id: int) -> None:
        self._map.extra = self._ulong(name, type_id)

    def pinning(self, name: str, type_id: int) -> None:
        """Read and checked, never acted on: a harness leaves nothing pinned."""
        if self._is_inner:
            raise self._bad("inner def can't be pinned")
        if self._uint(name, type_id) > _PINNING_MAX:
            raise self._bad("invalid pinning value")

    def size(self, name: str, type_id: int) -> None:
        self._set_size(name, self._uint(name, type_id))

    def typed(self, name: str, type_id: int) -> None:
        """`__type(key, T)`: a pointer to the type."""
        pointer = self._btf.type(type_id)
        if pointer.kind != B.BTF_KIND_PTR:
            raise self._bad(f"{name} spec is not PTR: {B.KIND_NAMES[pointer.kind]}")
        size = self._btf.resolve_size(pointer.type)
        self._set_size(f"{name}_size", size)
        setattr(self._map, f"btf_{name}", pointer.type)

    def _set_size(self, attribute: str, size: int) -> None:
        known = getattr(self._map, attribute)
        if known and known != size:
            raise self._bad(f"conflicting {attribute} {known} != {size}")
        setattr(self._map, attribute, size)

    def values(self, _name: str, type_id: int) -> None:
        """`__array(values, T)`: the template of inner maps, or the signature of a prog array's programs."""
        if self._is_inner:
            raise self._bad("multi-level inner maps not supported", ENOTSUP)
        if self._map.type not in (*MAP_IN_MAP, PROG_ARRAY):
            raise self._bad("should be map-in-map or prog-array")
        self._set_size("value_size", 4)
        array = self._btf.type(type_id)
        if array.kind != B.BTF_KIND_ARRAY or self._btf.array(array)[2]:
            raise self._bad("'values' spec is not a zero-sized array")
        pointer = self._btf.skip_mods_and_typedefs(self._btf.array(array)[0])
        if pointer.kind != B.BTF_KIND_PTR:
            raise self._bad(f"'values' def is of unexpected kind {B.KIND_NAMES[pointer.kind]}")
        target = self._btf.skip_mods_and_typedefs(pointer.type)
        wanted = B.BTF_KIND_FUNC_PROTO if self._map.type == PROG_ARRAY else B.BTF_KIND_STRUCT
        if target.kind != wanted:
            raise self._bad(f"'values' def is of unexpected kind {B.KIND_NAMES[target.kind]}")
        if self._map.type != PROG_ARRAY:
            self._map.inner = Map(f"{self._map.name}.inner")
            _Definition(self._btf, self._map.inner, is_inner=True).read(target)


_FIELDS = {
    "type": _Definition.number,
    "max_entries": _Definition.number,
    "map_flags": _Definition.number,
    "numa_node": _Definition.number,
    "key_size": _Definition.size,
    "value_size": _Definition.size,
    "key": _Definition.typed,
    "value": _Definition.typed,
    "values": _Definition.values,
    "pinning": _Definition.pinning,
    "map_extra": _Definition.map_extra,
}


def ringbuf_size(wanted: int, page: int) -> int:
    """Bytes of a ring buffer: `wanted` when it is a page times a power of two, else the next such size
    (adjust_ringbuf_sz())."""
    if wanted == 0:
        return 0
    if wanted % page == 0 and (wanted // page) & (wanted // page - 1) == 0:
        return wanted
    size = page
    while size <= wanted:
        size *= 2
    return size if size < 1 << 32 else wanted


def _data_maps(obj: BpfObject, name: str) -> list[Map]:
    kinds = (O.SEC_DATA, O.SEC_RODATA, O.SEC_BSS)
    found = []
    for sec_idx in sorted(idx for idx, what in obj.sections.items() if what in kinds):
        section = obj.elf.sections[sec_idx]
        kind = obj.sections[sec_idx]
        if section.size > _U32:
            raise MapError(f"{obj.path}: section {section.name} of {section.size} bytes", ENOMEM, section.name)
        if section.size:
            # The zeros of .bss are nowhere written down: the kernel's own do.
            content = bytearray() if kind == O.SEC_BSS else bytearray(obj.elf.content(section))
            item = internal_map(obj, name, kind, section.name, content, sec_idx)
            item.value_size = section.size
            found.append(item)
    return found


def internal_map(obj: BpfObject, name: str, kind: str, real_name: str, data: bytearray, sec_idx: int) -> Map:
    """The array of one value that stands for a data section (bpf_object__init_internal_map())."""
    item = Map(internal_map_name(name, real_name), sec_idx)
    item.real_name = real_name
    item.kind = kind
    item.type, item.key_size, item.value_size, item.max_entries = MAP_TYPE["array"], 4, len(data), 1
    item.flags = BPF_F_RDONLY_PROG if kind in (O.SEC_RODATA, KCONFIG) else 0
    item.data = data
    sec_id = obj.btf.find(real_name, B.BTF_KIND_DATASEC) if obj.btf is not None else None
    if obj.btf is not None and sec_id is not None:
        item.btf_value = sec_id
        variables = obj.btf.datasec(obj.btf.type(sec_id))
        if any(obj.btf.linkage(obj.btf.type(var_id)) != 0 for var_id, _, _ in variables if _is_var(obj.btf, var_id)):
            item.flags |= BPF_F_MMAPABLE
    return item


def _is_var(btf: B.Btf, type_id: int) -> bool:
    return btf.kind(type_id) == B.BTF_KIND_VAR


def internal_map_name(name: str, real_name: str) -> str:
    """At most 15 characters: as much of the object's name as fits before the section's (internal_map_name())."""
    suffix = min(max(7, len(real_name)), 15)
    prefix = 0 if "." in real_name[1:] else min(15 - suffix, len(name))  # .rodata.str1.1 goes by its own name
    text = (name[:prefix] + real_name[:suffix])[:15]
    return "".join(c if c.isalnum() or c in "_." else "_" for c in text)


def _collect_slots(obj: BpfObject, maps: list[Map]) -> None:
    """Initialisers of map-in-maps and prog arrays: relocations against `.maps` (bpf_object__collect_map_relos())."""
    user = [item for item in maps if item.kind is None]
    rel = obj.rel_sections.get(user[0].sec_idx) if user else None
    if rel is None:
        return
    for offset, _, sym_idx in obj.elf.relocs(rel):
        owner = next((m for m in user if m.sec_offset <= offset <= m.sec_offset + m.struct_size - _PTR), None)
        symbol = obj.elf.symbols[sym_idx] if sym_idx < len(obj.elf.symbols) else None
        if owner is None or symbol is None or owner.type not in (*MAP_IN_MAP, PROG_ARRAY):
            raise MapError(f".maps relocation at {offset}: cannot find the map it initialises", EINVAL)
        target: Map | Prog | None
        if owner.type == PROG_ARRAY:
            target = next((p for p in obj.progs if p.name == symbol.name and p.sec_idx == symbol.shndx), None)
            if target is not None and target.is_subprog:
                raise MapError(f"map '{owner.name}': '{symbol.name}' is not an entry-point program", EINVAL, owner.name)
        else:
            target = next((m for m in user if m.name == symbol.name), None)
        place = offset - owner.sec_offset - owner.values_offset
        if target is None or place < 0 or place % _PTR:
            raise MapError(
                f"map '{owner.name}': unexpected slot initialiser '{symbol.name}'", LIBBPF_ERRNO__RELOC, owner.name
            )
        owner.slots.append((place // _PTR, target))
