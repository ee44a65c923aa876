"""struct_ops: objects that hand the kernel a struct of functions (libbpf: init_struct_ops_maps(),
bpf_map__init_kern_struct_ops(), bpf_object_adjust_struct_ops_autoload()).

Each variable in a `.struct_ops` section is a map; its function members are programs, which are attached to the member
of the kernel's struct of the same name.
"""

from __future__ import annotations

from . import bpf_object as O
from . import btf as B
from .errors import EINVAL, ENOTSUP, ESRCH, MapError
from .externs import find_own
from .loader import Attach
from .maps import BPF_F_LINK, BPF_F_VTYPE_BTF_OBJ_FD, MAP_TYPE, Map
from .names import essential_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .bpf_object import BpfObject, Prog
    from .externs import KernelSymbols

_PTR = 8
_VALUE_PREFIX = "bpf_struct_ops_"


class _Instance:
    """One struct: its map, its local type, and the program of each member's index."""

    __slots__ = ("item", "progs", "type")

    def __init__(self, item: Map, type_: B.Type) -> None:
        self.item = item
        self.type = type_
        self.progs: dict[int, Prog] = {}


class StructOps:
    """All struct_ops of an object. `maps` are its maps, in libbpf's order. Raises MapError where libbpf refuses to
    open."""

    def __init__(self, obj: BpfObject, places: dict[str, int]) -> None:
        self._obj = obj
        self._instances: list[_Instance] = []
        self._attach: dict[int, tuple[Attach, int]] = {}
        self._errors: dict[int, str] = {}
        self._used: dict[int, bool] = {}
        for sec_idx in sorted(idx for idx, what in obj.sections.items() if what == O.SEC_STRUCT_OPS):
            self._read_section(sec_idx, places)
        self.maps = [instance.item for instance in self._instances]

    def _read_section(self, sec_idx: int, places: dict[str, int]) -> None:
        obj, btf = self._obj, self._obj.btf
        section = obj.elf.sections[sec_idx]
        sec_id = btf.find(section.name, B.BTF_KIND_DATASEC) if btf is not None else None
        if btf is None or sec_id is None:
            raise MapError(f"{obj.path}: struct_ops: no DATASEC '{section.name}' in BTF", EINVAL)
        content = obj.elf.content(section)
        own: list[_Instance] = []
        for var_id, offset, _ in btf.datasec(btf.type(sec_id)):
            var = btf.type(var_id)
            own.append(self._instance(btf, var, section.name, sec_idx, places.get(var.name, offset), content))
        self._collect_progs(sec_idx, own)
        self._instances += own

    def _instance(self, btf: B.Btf, var: B.Type, section: str, sec_idx: int, offset: int, content: bytes) -> _Instance:
        struct = btf.skip_mods_and_typedefs(var.type)
        if struct.kind != B.BTF_KIND_STRUCT or not struct.name:
            raise MapError(f"struct_ops '{var.name}': not a variable of a named struct type", EINVAL, var.name)
        if offset + struct.size > len(content):
            raise MapError(f"struct_ops '{var.name}': lies outside section {section}", EINVAL, var.name)
        item = Map(var.name, sec_idx, offset)
        item.kind = O.SEC_STRUCT_OPS
        item.type, item.key_size, item.value_size, item.max_entries = MAP_TYPE["struct_ops"], 4, struct.size, 1
        item.flags = BPF_F_LINK if section.endswith(".link") else 0
        item.autocreate = not section.startswith("?")
        item.data = bytearray(content[offset : offset + struct.size])
        return _Instance(item, struct)

    def _collect_progs(self, sec_idx: int, own: list[_Instance]) -> None:
        """Which program each member points at: relocations of the section (bpf_object__collect_st_ops_relos())."""
        obj = self._obj
        rel = obj.rel_sections.get(sec_idx)
        if rel is None or obj.btf is None:
            return
        for offset, _, sym_idx in obj.elf.relocs(rel):
            instance = next((i for i in own if 0 <= offset - i.item.sec_offset < i.type.size), None)
            symbol = obj.elf.symbols[sym_idx] if sym_idx < len(obj.elf.symbols) else None
            if instance is None or symbol is None:
                raise MapError(f"struct_ops: relocation at {offset} belongs to no variable", EINVAL)
            name = instance.item.name
            place = (offset - instance.item.sec_offset) * 8
            member = next((i for i, m in enumerate(obj.btf.members(instance.type)) if m[2] == place), None)
            prog = obj.find_prog(symbol.shndx, symbol.value // 8)
            if member is None or prog is None:
                raise MapError(
                    f"struct_ops '{name}': cannot find the member or program at offset {place // 8}", EINVAL, name
                )
            if not prog.section.startswith("struct_ops"):
                raise MapError(f"struct_ops '{name}': prog '{prog.name}' is not a struct_ops program", EINVAL, name)
            instance.progs[member] = prog

    # -- against a kernel

    def find_types(self, kernel: KernelSymbols) -> None:
        """Find the kernel's struct for every map and its member for every program. MapError where libbpf gives up on
        the object."""
        for instance in self._instances:
            if instance.item.autocreate:
                self._find_type(instance, kernel)
            for prog in instance.progs.values():
                self._used[id(prog)] = self._used.get(id(prog), False) or instance.item.autocreate

    def _find_type(self, instance: _Instance, kernel: KernelSymbols) -> None:
        item, name = instance.item, essential_name(instance.type.name)
        found = kernel.find(name, B.BTF_KIND_STRUCT)
        if found is None:
            raise MapError(f"struct_ops '{item.name}': struct {name} is not found in kernel BTF", ESRCH, item.name)
        btf, type_id, module = found
        value_name = _VALUE_PREFIX + name
        value_id = (
            btf.find(value_name, B.BTF_KIND_STRUCT) if module is None else find_own(btf, value_name, B.BTF_KIND_STRUCT)
        )
        if value_id is None:
            raise MapError(
                f"struct_ops '{item.name}': struct {value_name} is not found in kernel BTF", ESRCH, item.name
            )
        item.btf_vmlinux_value = value_id
        item.value_size = btf.type(value_id).size
        if module is not None:
            item.value_btf_fd = module.fd
            item.flags |= BPF_F_VTYPE_BTF_OBJ_FD
        self._match_members(instance, btf, btf.type(type_id), Attach(type_id, module.fd if module is not None else 0))

    def _match_members(self, instance: _Instance, btf: B.Btf, kernel_type: B.Type, attach: Attach) -> None:
        local = self._obj.btf
        assert local is not None
        kernel_members = {m[0]: (index, m) for index, m in enumerate(btf.members(kernel_type))}
        for index, (name, type_id, bit_offset, bits) in enumerate(local.members(instance.type)):
            theirs = kernel_members.get(essential_name(name))
            prog = instance.progs.get(index)
            size = local.resolve_size(type_id)
            if theirs is None:
                self._missing(instance, index, name, bit_offset // 8, size)
                continue
            kernel_index, (_, kernel_type_id, _, kernel_bits) = theirs
            if bits or kernel_bits:
                raise MapError(
                    f"struct_ops '{instance.item.name}': bitfield {name} is not supported", ENOTSUP, instance.item.name
                )
            ours, others = local.skip_mods_and_typedefs(type_id), btf.skip_mods_and_typedefs(kernel_type_id)
            if ours.kind != others.kind or (ours.kind != B.BTF_KIND_PTR and size != btf.resolve_size(kernel_type_id)):
                raise MapError(
                    f"struct_ops '{instance.item.name}': member {name} is {ours!r} here and {others!r} in the kernel",
                    ENOTSUP,
                    instance.item.name,
                )  # fmt: skip
            if prog is not None:
                self._attach[id(prog)] = (attach, kernel_index)

    def _missing(self, instance: _Instance, index: int, name: str, offset: int, size: int) -> None:
        """A member this kernel does not have: fine as long as it is zero; its program is then not loaded."""
        if any(instance.item.data[offset : offset + size]):
            raise MapError(
                f"struct_ops '{instance.item.name}': cannot find member {name} in kernel BTF",
                ENOTSUP,
                instance.item.name,
            )
        prog = instance.progs.pop(index, None)
        if prog is not None:
            prog.autoload = False
            self._errors[id(prog)] = f"struct {instance.type.name} of this kernel has no member {name}"

    def unused(self, prog: Prog) -> bool:
        """Whether libbpf leaves this program out, because no map that is created uses it."""
        return id(prog) in self._errors or self._used.get(id(prog)) is False

    def attach(self, prog: Prog) -> Attach:
        """What the program attaches to: the kernel's struct. One in no struct_ops map attaches to nothing: libbpf
        asks the kernel all the same, and that refuses it.
        """
        found = self._attach.get(id(prog))
        return Attach() if found is None else found[0]

    def member_index(self, prog: Prog) -> int:
        """The index of the kernel's member, which is the program's expected_attach_type."""
        found = self._attach.get(id(prog))
        return 0 if found is None else found[1]
