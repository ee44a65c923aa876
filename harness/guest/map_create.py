"""Maps created on a kernel, in libbpf's order (bpf_object__create_maps()): sizes, contents, freezing, slots."""

from __future__ import annotations

import os
import struct

from . import bpf_object as O
from .errors import EINVAL
from .maps import ARENA, BPF_F_MMAPABLE, KCONFIG, MAP_IN_MAP, MAP_TYPE, PERF_EVENT_ARRAY, RINGBUFS, STRUCT_OPS
from .syscall import Bpf, MapCreate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from .maps import Map

# The kernel refuses BTF for key and value of these (bpf_object__create_map()).
_WITHOUT_BTF = frozenset(
    MAP_TYPE[name]
    for name in (
        "perf_event_array", "cgroup_array", "stack_trace", "array_of_maps", "hash_of_maps", "devmap", "devmap_hash",
        "cpumap", "xskmap", "sockmap", "sockhash", "queue", "stack", "arena",
    )
)  # fmt: skip
# Maps whose size is no one's choice: 0 is right for them.
_SIZELESS = frozenset(
    MAP_TYPE[name]
    for name in (
        "perf_event_array", "sk_storage", "inode_storage", "task_storage", "cgrp_storage", "cgroup_storage",
        "percpu_cgroup_storage", "struct_ops",
    )
)  # fmt: skip
_STACK_TRACE, _STACK_DEPTH = MAP_TYPE["stack_trace"], 127  # sysctl kernel.perf_event_max_stack as it comes


# libbpf 1.4: an arena is mapped when it is made (1.1.2 knows no arenas, 1.5.0 does).
_MAPS_ARENAS = (1, 4)


class Creator:
    """Creates an object's maps on a kernel; `features` are the probes' answers, `btf_fd` the object's loaded BTF or 0.

    `adaptations` collects what was done without, as `(name, detail)`; `rules` is a libbpf version, None the newest.
    """

    def __init__(
        self, bpf: Bpf, features: dict[str, bool], btf_fd: int, rules: tuple[int, ...] | None = None
    ) -> None:
        self._maps_arenas = rules is None or rules >= _MAPS_ARENAS
        self._bpf = bpf
        self._features = features
        self._btf_fd = btf_fd
        self.adaptations: list[tuple[str, str]] = []

    def create_all(self, maps: Sequence[Map]) -> None:
        """Create, fill, freeze, initialise. A refusal is left in the map's `errno` and `message`, and the others go
        on: libbpf would give up on the object there, our caller decides what that means for each program."""
        for item in maps:
            if item.is_internal and not self._features["global_data"]:
                item.autocreate = False
                self.adaptations.append(
                    ("no_global_data", f"map '{item.real_name}' left out: no global data in this kernel")
                )
            if item.autocreate:
                self._set_sizes(item)
                self._try(item)
        for item in maps:
            if item.fd is not None and item.type in MAP_IN_MAP:
                self._init_slots(item)

    def _set_sizes(self, item: Map) -> None:
        """Many objects leave sizes to their tool, which sets them between open and load; any that is not zero will do
        here."""
        if item.max_entries == 0 and item.type not in _SIZELESS:
            item.max_entries = 1 if item.type not in RINGBUFS else os.sysconf("SC_PAGE_SIZE")
            self.adaptations.append(
                ("max_entries_set", f"map '{item.name}' has no max_entries: {item.max_entries} taken")
            )
        if item.type == _STACK_TRACE and item.value_size == 0:
            item.value_size = 8 * _STACK_DEPTH
            self.adaptations.append(("value_size_set", f"map '{item.name}' has no value_size: {item.value_size} taken"))

    def _try(self, item: Map) -> None:
        try:
            item.fd = self._create(item)
            item.ident = self._bpf.map_id(item.fd)
            if item.is_internal:
                self._populate(item)
            elif item.type == ARENA and self._maps_arenas:
                self._map_arena(item)
        except OSError as error:
            item.errno = error.errno
            item.message = (
                f"map '{item.name}' ({item.type_name}): failed to create: {error.strerror} (errno {error.errno})"
            )

    def _create(self, item: Map) -> int:
        attr = MapCreate(item.type, item.key_size, item.value_size, self._max_entries(item))
        attr.flags = item.flags if self._features["array_mmap"] else item.flags & ~BPF_F_MMAPABLE
        attr.name = item.name if self._features["prog_name"] else ""
        attr.numa_node, attr.extra = item.numa_node, item.extra
        attr.btf_vmlinux_value, attr.value_btf_obj_fd = item.btf_vmlinux_value, item.value_btf_fd
        if self._btf_fd:
            attr.btf_fd = self._btf_fd
            if item.type not in _WITHOUT_BTF:
                attr.btf_key, attr.btf_value = item.btf_key, item.btf_value
            else:
                attr.btf_fd = 0
            if item.type == STRUCT_OPS:
                attr.btf_value = 0
        if item.inner is None:
            return self._create_or_without_btf(attr)
        attr.inner_fd = self._create(item.inner)
        try:
            return self._create_or_without_btf(attr)
        finally:
            os.close(attr.inner_fd)

    def _max_entries(self, item: Map) -> int:
        """A perf event array of no size gets one entry for each possible CPU (map_set_def_max_entries())."""
        if item.type == PERF_EVENT_ARRAY and item.max_entries == 0:
            return possible_cpus()
        return item.max_entries

    def _create_or_without_btf(self, attr: MapCreate) -> int:
        try:
            return self._bpf.map_create(attr)
        except OSError:
            if not (attr.btf_key or attr.btf_value):
                raise
        attr.btf_fd = attr.btf_key = attr.btf_value = 0
        return self._bpf.map_create(attr)

    def _populate(self, item: Map) -> None:
        if item.fd is None:
            return
        if item.kind != O.SEC_BSS:  # zeros are what the kernel makes it of
            self._bpf.map_update(item.fd, struct.pack("=I", 0), bytes(item.data))
        if item.kind in (O.SEC_RODATA, KCONFIG):
            self._freeze(item.fd)

    def _map_arena(self, item: Map) -> None:
        """The verifier wants to know where an arena lies for user space; mapping it says so
        (bpf_object__create_maps())."""
        import mmap

        if item.fd is not None and not item.extra:
            item.mapping = mmap.mmap(item.fd, item.max_entries * mmap.PAGESIZE)

    def _freeze(self, fd: int) -> None:
        try:
            self._bpf.map_freeze(fd)
        except OSError as error:
            # BPF_MAP_FREEZE came with 5.2, as did global data; libbpf fails on any refusal.
            raise OSError(error.errno, f"failed to freeze it as read-only: {error.strerror}") from error

    def _init_slots(self, item: Map) -> None:
        for index, target in item.slots:
            fd = getattr(target, "fd", None)
            if fd is None:
                item.errno, item.message = (
                    EINVAL,
                    f"map '{item.name}': slot [{index}]: map '{target.name}' does not exist",
                )
                return
            self.fill_slot(item, index, fd)
            if item.errno is not None and item.fd is not None:  # libbpf: the map could not be created
                os.close(item.fd)
                item.fd = None
                return

    def fill_slot(self, item: Map, index: int, fd: int) -> None:
        """Put a map's or a program's fd into a slot; a refusal is left in the map."""
        try:
            if item.fd is not None:
                self._bpf.map_update(item.fd, struct.pack("=I", index), struct.pack("=I", fd))
        except OSError as error:
            item.errno = error.errno
            item.message = f"map '{item.name}': failed to initialize slot [{index}]: {error.strerror}"


def close_all(maps: Sequence[Map]) -> None:
    """Close every map's fd."""
    for item in maps:
        if item.mapping is not None:
            item.mapping.close()
            item.mapping = None
        if item.fd is not None:
            os.close(item.fd)
            item.fd = None


def possible_cpus(path: str = "/sys/devices/system/cpu/possible") -> int:
    """CPUs that could ever be there: a list like "0-3,5" (libbpf_num_possible_cpus())."""
    with open(path, encoding="ascii") as file:
        text = file.read().strip()
    total = 0
    for part in text.split(","):
        low, _, high = part.partition("-")
        total += int(high or low) - int(low) + 1
    return total
