"""struct_ops: objects that hand the kernel a struct of functions (libbpf: init_struct_ops_maps(),
bpf_map__init_kern_struct_ops(), bpf_object_adjust_struct_ops_autoload()).

Each variable in a `.struct_ops` section is a map; its function members are programs, which are attached to the member
of the kernel's struct of the same name.
"""

from __future__ import annotations

from . import bpf_object as O
from . import btf as B
from .errors import EINVAL, ENOENT, ENOTSUP, ESRCH, MapError
from .loader import Attach, Refusal
from .maps import BPF_F_LINK, BPF_F_VTYPE_BTF_OBJ_FD, MAP_TYPE, Map
from .names import essential_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .bpf_object import BpfObject, Prog
    from .externs import KernelSymbols

_VALUE_PREFIX = "bpf_struct_ops_"

# libbpf 1.4: a struct's flavor is no part of its name, structs of modules are found, members that this kernel lacks are
# passed over when they are zero, and what a program may be used for is told by the kernel's members instead of the
# object's. 1.1.2 has none of it, 1.5.0 all; the releases between were not looked at.
_LENIENT = (1, 4)
_WANTS_USE = (1, 5)  # a program in no map is refused before the kernel is asked (1.1.2 asks)
# libbpf 1.7: the struct around the kernel's is looked up first: two errnos differ (1.5.0 does not yet).
_VALUE_FIRST = (1, 7)


class Instance:
    """One struct: its map, its local type, the program of each member's index; `kernel` once found there: the BTF
    that has the kernel's struct, its id, and that of the map's value around it.
    """

    __slots__ = ("item", "kernel", "progs", "type")

    def __init__(self, item: Map, type_: B.Type) -> None:
        self.item = item
        self.type = type_
        self.progs: dict[int, Prog] = {}
        self.kernel: tuple[B.Btf, int, int] | None = None


class StructOps:
    """All struct_ops of an object, by the rules of a libbpf version (None: the newest). `maps` are its maps, in
    libbpf's order. Raises MapError where libbpf refuses to open.
    """

    def __init__(self, obj: BpfObject, places: dict[str, int], rules: tuple[int, ...] | None = None) -> None:
        self._obj = obj
        self._lenient = rules is None or rules >= _LENIENT
        self._value_first = rules is None or rules >= _VALUE_FIRST
        self._wants_use = rules is None or rules >= _WANTS_USE
        self.instances: list[Instance] = []
        self._attach: dict[int, tuple[Attach, int]] = {}
        self._declared: dict[int, tuple[int, int]] = {}
        self._used: dict[int, bool] = {}
        for sec_idx in sorted(idx for idx, what in obj.sections.items() if what == O.SEC_STRUCT_OPS):
            self._read_section(sec_idx, places)
        self.maps = [instance.item for instance in self.instances]

    def _read_section(self, sec_idx: int, places: dict[str, int]) -> None:
        obj, btf = self._obj, self._obj.btf
        section = obj.elf.sections[sec_idx]
        sec_id = btf.find(section.name, B.BTF_KIND_DATASEC) if btf is not None else None
        if btf is None or sec_id is None:
            raise MapError(f"{obj.path}: struct_ops: no DATASEC '{section.name}' in BTF", EINVAL)
        content = obj.elf.content(section)
        own: list[Instance] = []
        for var_id, offset, _ in btf.datasec(btf.type(sec_id)):
            var = btf.type(var_id)
            own.append(self._instance(btf, var, section.name, sec_idx, places.get(var.name, offset), content))
        self._collect_progs(sec_idx, own)
        self.instances += own

    def _instance(self, btf: B.Btf, var: B.Type, section: str, sec_idx: int, offset: int, content: bytes) -> Instance:
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
        return Instance(item, struct)

    def _collect_progs(self, sec_idx: int, own: list[Instance]) -> None:
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
            self._check_member(instance, member, prog)
            instance.progs[member] = prog

    def _check_member(self, instance: Instance, member: int, prog: Prog) -> None:
        """Whether that member can be that program."""
        btf, name = self._obj.btf, instance.item.name
        assert btf is not None
        words, type_id, _, _ = btf.members(instance.type)[member]
        if not _is_function(btf, type_id):
            raise MapError(f"struct_ops '{name}': cannot relocate non func ptr {words}", EINVAL, name)
        if not prog.section.startswith("struct_ops"):
            raise MapError(f"struct_ops '{name}': prog '{prog.name}' is not a struct_ops program", EINVAL, name)
        use = (instance.type.id, member)
        if self._declared.setdefault(id(prog), use) != use and not self._lenient:
            raise MapError(f"struct_ops '{name}': cannot use prog {prog.name} for func ptr {words}", EINVAL, name)

    # -- against a kernel

    def find_types(self, kernel: KernelSymbols) -> None:
        """Find the kernel's struct for every map and its member for every program. MapError where libbpf gives up on
        the object."""
        for instance in self.instances:
            if instance.item.autocreate:
                self._find_type(instance, kernel)
            for prog in instance.progs.values():
                self._used[id(prog)] = self._used.get(id(prog), False) or instance.item.autocreate

    def _find_type(self, instance: Instance, kernel: KernelSymbols) -> None:
        item, name = instance.item, instance.type.name
        name = essential_name(name) if self._lenient else name
        first, then = (_VALUE_PREFIX + name, name) if self._value_first else (name, _VALUE_PREFIX + name)
        found = kernel.find(first, B.BTF_KIND_STRUCT, modules=self._lenient)
        if found is None:  # find_ksym_btf_id() says ESRCH, btf__find_by_name_kind() ENOENT
            errno = ESRCH if self._lenient else ENOENT
            raise MapError(f"struct_ops '{item.name}': struct {first} is not found in kernel BTF", errno, item.name)
        btf, first_id, module = found
        then_id = btf.find(then, B.BTF_KIND_STRUCT)
        if then_id is None:
            raise MapError(f"struct_ops '{item.name}': struct {then} is not found in kernel BTF", ENOENT, item.name)
        value_id, type_id = (first_id, then_id) if self._value_first else (then_id, first_id)
        value = btf.type(value_id)
        if all(member[1] != type_id for member in btf.members(value)):
            why = f"struct {name} data is not found in struct {value.name}"
            raise MapError(f"struct_ops '{item.name}': {why}", EINVAL, item.name)
        item.btf_vmlinux_value, item.value_size = value_id, value.size
        instance.kernel = (btf, type_id, value_id)
        if module is not None:
            item.value_btf_fd = module.fd
            item.flags |= BPF_F_VTYPE_BTF_OBJ_FD
        self._match_members(instance, btf, btf.type(type_id), Attach(type_id, module.fd if module is not None else 0))

    def _match_members(self, instance: Instance, btf: B.Btf, kernel_type: B.Type, attach: Attach) -> None:
        """Every member has one of that very name in the kernel's struct, and of that kind."""
        local, item = self._obj.btf, instance.item
        assert local is not None
        kernel_members = {m[0]: (index, m) for index, m in enumerate(btf.members(kernel_type))}
        for index, (name, type_id, bit_offset, bits) in enumerate(local.members(instance.type)):
            theirs = kernel_members.get(name)
            size = local.resolve_size(type_id)
            if theirs is None:
                if not self._passed_over(instance, index, bit_offset // 8, size):
                    raise _unsupported(item, f"cannot find member {name} in kernel BTF")
                continue
            kernel_index, (_, kernel_type_id, _, kernel_bits) = theirs
            if bits or kernel_bits:
                raise _unsupported(item, f"bitfield {name} is not supported")
            ours, others = local.skip_mods_and_typedefs(type_id), btf.skip_mods_and_typedefs(kernel_type_id)
            if ours.kind != others.kind or (ours.kind != B.BTF_KIND_PTR and size != btf.resolve_size(kernel_type_id)):
                raise _unsupported(item, f"member {name} is {ours!r} here and {others!r} in the kernel")
            if index in instance.progs and ours.kind == B.BTF_KIND_PTR:
                if not _is_function(btf, kernel_type_id):
                    raise _unsupported(item, f"kernel member {name} is not a func ptr")
                self._use(item, instance.progs[index], attach, kernel_index)

    def _passed_over(self, instance: Instance, index: int, offset: int, size: int) -> bool:
        """Whether a member that this kernel does not have may be there: it is zero and no program."""
        zero = index not in instance.progs and not any(instance.item.data[offset : offset + size])
        return self._lenient and zero

    def _use(self, item: Map, prog: Prog, attach: Attach, member: int) -> None:
        """A program may stand in several structs, for the same member of the same kernel's struct."""
        known, place = self._attach.setdefault(id(prog), (attach, member))
        if (known.btf_id, place) != (attach.btf_id, member):
            raise MapError(f"struct_ops '{item.name}': invalid reuse of prog {prog.name}", EINVAL, item.name)

    def unused(self, prog: Prog) -> bool:
        """Whether libbpf leaves this program out, because no map that is created uses it."""
        return self._used.get(id(prog)) is False

    def holds(self, prog: Prog) -> bool:
        """Whether a struct has the program as one of its functions."""
        return any(prog is own for instance in self.instances for own in instance.progs.values())

    def attach(self, prog: Prog) -> Attach:
        """What the program attaches to: the kernel's struct. One in no struct_ops map attaches to nothing: Refusal, or
        by the older rules libbpf asks the kernel all the same, and that refuses it.
        """
        found = self._attach.get(id(prog))
        if found is None and self._wants_use:
            raise Refusal(f"prog '{prog.name}': a struct_ops program that no struct_ops map uses", EINVAL)
        return Attach() if found is None else found[0]

    def member_index(self, prog: Prog) -> int:
        """The index of the kernel's member, which is the program's expected_attach_type."""
        found = self._attach.get(id(prog))
        return 0 if found is None else found[1]


def _is_function(btf: B.Btf, type_id: int) -> bool:
    """A pointer to a function (resolve_func_ptr())."""
    pointer = btf.skip_mods_and_typedefs(type_id)
    return pointer.kind == B.BTF_KIND_PTR and btf.skip_mods_and_typedefs(pointer.type).kind == B.BTF_KIND_FUNC_PROTO


def _unsupported(item: Map, why: str) -> MapError:
    return MapError(f"struct_ops '{item.name}': {why}", ENOTSUP, item.name)
