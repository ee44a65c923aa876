"""bpf(2) through ctypes: one object that makes the call, and one method per command the loader needs.

`Bpf` is handed to everything that talks to the kernel, so that a test can put a layer in between that denies features
(see tests/support). Every method raises OSError with the kernel's errno. Attribute layouts are those of `union
bpf_attr` (UAPI bpf.h); a kernel that does not know a field takes it as long as it is zero.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from array import array

_NR_BPF = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361, "ppc64": 361}

(MAP_CREATE, MAP_LOOKUP_ELEM, MAP_UPDATE_ELEM, MAP_DELETE_ELEM) = range(4)
PROG_LOAD = 5
(PROG_GET_NEXT_ID, MAP_GET_NEXT_ID, PROG_GET_FD_BY_ID, MAP_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD) = range(11, 16)
(BTF_LOAD, BTF_GET_FD_BY_ID) = (18, 19)
(MAP_FREEZE, BTF_GET_NEXT_ID) = (22, 23)
(LINK_CREATE, PROG_BIND_MAP) = (28, 35)

LOG_MAX = (1 << 24) - 1  # kernels before 5.2 refuse a verifier log buffer of 16 MiB and more
LOG_STATS = 4
_RECORDS = 1 << 16  # bytes that hold the line_info of most programs
_EAGAIN, _ENOENT, _RLIMIT_MEMLOCK = 11, 2, 8

_PROG_LOAD_ATTR = struct.Struct("=IIQQIIQII16sIIIIQIIQIIIIQQIIiIQIi")
_MAP_CREATE_ATTR = struct.Struct("=IIIIIII16sIIIIIQii")


class Buffer:
    """A block of anonymous memory the kernel writes to: its pages cost nothing until they are touched."""

    __slots__ = ("_anchor", "address", "map", "size")

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size)
        self.size = size
        self._anchor = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(self._anchor)

    def text(self) -> bytes:
        """What stands before the first NUL."""
        end = self.map.find(b"\0")
        return self.map[: end if end >= 0 else self.size]

    def clear(self) -> None:
        """Make `text()` empty, so that an answer the kernel never wrote is not taken for one."""
        self.map[0:2] = b"\0\0"

    def drop_stray(self) -> None:
        """Forget a text of one byte, which no log is: kernels before 4.15 copy a log of no length with its first byte,
        which they never wrote."""
        if self.map[1:2] == b"\0":
            self.map[0:1] = b"\0"


def _address(data: bytes) -> int:
    """Where `data` lies; the caller keeps it alive until the call is over."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


class Bpf:
    """The running kernel's bpf(2). Not safe for use by several threads: the log buffer is shared."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._libc.syscall.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_long)
        self._libc.syscall.restype = ctypes.c_long
        self._nr = _NR_BPF[os.uname().machine]
        self._log: Buffer | None = None
        self._records: Buffer | None = None
        self._raise_memlock()

    def _raise_memlock(self) -> None:
        # Maps and programs were charged to RLIMIT_MEMLOCK until 5.11; libbpf lifts it too (bump_rlimit_memlock()).
        unlimited = struct.pack("=QQ", 2**64 - 1, 2**64 - 1)
        self._libc.setrlimit(_RLIMIT_MEMLOCK, unlimited)

    def call(self, command: int, attr: bytes | bytearray) -> int:
        """One bpf(2) call; `attr` is written back to when it is a bytearray. Returns what the kernel returned."""
        block = (ctypes.c_char * len(attr)).from_buffer(attr) if isinstance(attr, bytearray) else attr
        result = int(self._libc.syscall(self._nr, command, block, len(attr)))
        if result < 0:
            errno = ctypes.get_errno()
            raise OSError(errno, os.strerror(errno))
        return result

    def log_buffer(self) -> Buffer:
        """The log buffer: LOG_MAX bytes of address space, reused by every load."""
        if self._log is None:
            self._log = Buffer(LOG_MAX)
        return self._log

    # -- programs

    def prog_load(self, load: ProgLoad, log_level: int = 0, log_size: int = 0) -> int:
        """Load; the verifier's log of up to `log_size` bytes lands in `log_buffer()`. Returns the program's fd.

        EAGAIN (a signal, or a race with another user of the verifier) is tried again a few times, as libbpf does.
        """
        license_ = load.license + b"\0"
        log = self.log_buffer() if log_level else None
        if log is not None:
            log.clear()
        name = load.name.encode()[:15]
        fds = struct.pack(f"={len(load.fd_array)}i", *load.fd_array) if load.fd_array else b""
        funcs = load.func_info if load.btf_fd else b""
        lines = load.line_info if load.btf_fd else b""
        attr = _PROG_LOAD_ATTR.pack(
            load.prog_type, len(load.insns) // 8, _address(load.insns), _address(license_),
            log_level, min(log_size, LOG_MAX) if log else 0, log.address if log else 0,
            load.kern_version, load.prog_flags, name, 0, load.expected_attach_type,
            load.btf_fd, load.func_info_size if funcs else 0, _address(funcs) if funcs else 0,
            len(funcs) // load.func_info_size if funcs else 0,
            load.line_info_size if lines else 0, _address(lines) if lines else 0,
            len(lines) // load.line_info_size if lines else 0,
            load.attach_btf_id, load.attach_btf_obj_fd, 0, _address(fds) if fds else 0, 0, 0, 0, 0, 0, 0, 0, 0,
        )  # fmt: skip
        attempts = 5
        while True:
            try:
                return self.call(PROG_LOAD, attr)
            except OSError as error:
                if log is not None:
                    log.drop_stray()
                attempts -= 1
                if error.errno != _EAGAIN or not attempts:
                    raise

    def prog_line_cols(self, fd: int, capacity: int) -> list[int]:
        """`line_col` of each line_info record the program still has; at most `capacity` are fetched."""
        records = self._records
        if records is None or records.size < 16 * capacity:
            records = self._records = Buffer(max(16 * capacity, _RECORDS))
        info = bytearray(232)
        struct.pack_into("=I", info, 148, capacity)
        struct.pack_into("=Q", info, 152, records.address)
        struct.pack_into("=I", info, 172, 16)
        self.info(fd, info)
        count = min(struct.unpack_from("=I", info, 148)[0], capacity)
        return array("I", records.map[: 16 * count])[3::4].tolist()

    def prog_info(self, fd: int) -> dict[str, int]:
        """id, number of translated instructions, BTF id and count of line_info records of a loaded program."""
        info = bytearray(232)
        self.info(fd, info)
        get = struct.unpack_from
        return {
            "id": get("=I", info, 4)[0], "xlated_insns": get("=I", info, 20)[0] // 8,
            "btf_id": get("=I", info, 128)[0], "nr_line_info": get("=I", info, 148)[0],
        }  # fmt: skip

    def bind_map(self, prog_fd: int, map_fd: int) -> None:
        """Keep a map alive as long as the program (BPF_PROG_BIND_MAP, 5.10)."""
        self.call(PROG_BIND_MAP, struct.pack("=III", prog_fd, map_fd, 0))

    # -- maps

    def map_create(self, m: MapCreate) -> int:
        attr = _MAP_CREATE_ATTR.pack(
            m.type, m.key_size, m.value_size, m.max_entries, m.flags, m.inner_fd, m.numa_node, m.name.encode()[:15], 0,
            m.btf_fd, m.btf_key, m.btf_value, m.btf_vmlinux_value, m.extra, m.value_btf_obj_fd, 0,
        )  # fmt: skip
        return self.call(MAP_CREATE, attr)

    def map_update(self, fd: int, key: bytes, value: bytes, flags: int = 0) -> None:
        self.call(MAP_UPDATE_ELEM, struct.pack("=IIQQQ", fd, 0, _address(key), _address(value), flags))

    def map_delete(self, fd: int, key: bytes) -> None:
        self.call(MAP_DELETE_ELEM, struct.pack("=IIQQQ", fd, 0, _address(key), 0, 0))

    def map_id(self, fd: int) -> int:
        """The map's id; 0 before 4.13, when maps had none."""
        info = bytearray(80)
        try:
            self.info(fd, info)
        except OSError:
            return 0
        return int(struct.unpack_from("=I", info, 4)[0])

    def map_freeze(self, fd: int) -> None:
        self.call(MAP_FREEZE, struct.pack("=I", fd))

    # -- BTF

    def btf_load(self, data: bytes, log_level: int = 0) -> int:
        """Load BTF; the log lands in `log_buffer()` when `log_level` is not 0."""
        log = self.log_buffer() if log_level else None
        if log is not None:
            log.clear()
        attr = struct.pack(
            "=QQIII", _address(data), log.address if log else 0, len(data), LOG_MAX if log else 0, log_level
        )
        return self.call(BTF_LOAD, attr)

    def btf_info(self, fd: int) -> tuple[int, str, bool, int]:
        """`(id, name, is the kernel's own, size in bytes)`; the name is empty for BTF loaded by a process."""
        name = Buffer(64)
        info = bytearray(struct.pack("=QIIQII", 0, 0, 0, name.address, 64, 0))
        self.info(fd, info)
        _, size, ident, _, _, kernel = struct.unpack("=QIIQII", info)
        return ident, name.text().decode(), bool(kernel), size

    def btf_data(self, fd: int, size: int) -> bytes:
        data = Buffer(size)
        info = bytearray(struct.pack("=QIIQII", data.address, size, 0, 0, 0, 0))
        self.info(fd, info)
        return data.map[:size]

    # -- objects by id

    def info(self, fd: int, info: bytearray) -> None:
        """BPF_OBJ_GET_INFO_BY_FD (4.13): `info` is filled in place."""
        block = (ctypes.c_char * len(info)).from_buffer(info)
        self.call(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, len(info), ctypes.addressof(block)))

    def ids(self, command: int) -> list[int]:
        """Every id a *_GET_NEXT_ID command (4.13) gives out."""
        found: list[int] = []
        last = 0
        while True:
            attr = bytearray(struct.pack("=III", last, 0, 0))
            try:
                self.call(command, attr)
            except OSError as error:
                if error.errno == _ENOENT:
                    return found
                raise
            last = struct.unpack_from("=I", attr, 4)[0]
            found.append(last)

    def fd_by_id(self, command: int, ident: int) -> int:
        return self.call(command, struct.pack("=III", ident, 0, 0))


class ProgLoad:
    """What BPF_PROG_LOAD is given; everything but the instructions defaults to "leave it out".

    `insns`, `func_info` and `line_info` are raw records in native byte order; `name` of "" means no name (kernels
    before 4.15 refuse one); `btf_fd` 0 means none, and then func_info and line_info are not passed either.
    """

    __slots__ = (
        "attach_btf_id", "attach_btf_obj_fd", "btf_fd", "expected_attach_type", "fd_array", "func_info",
        "func_info_size", "insns", "kern_version", "license", "line_info", "line_info_size", "name", "prog_flags",
        "prog_type",
    )  # fmt: skip

    def __init__(self, prog_type: int, insns: bytes, license_: bytes = b"GPL") -> None:
        self.prog_type = prog_type
        self.insns = insns
        self.license = license_
        self.name = ""
        self.kern_version = 0
        self.prog_flags = 0
        self.expected_attach_type = 0
        self.btf_fd = 0
        self.func_info = b""
        self.func_info_size = 8
        self.line_info = b""
        self.line_info_size = 16
        self.attach_btf_id = 0
        self.attach_btf_obj_fd = 0
        self.fd_array: list[int] = []

    def copy(self) -> ProgLoad:
        """An independent copy (the parts are immutable, except fd_array, which is shared on purpose)."""
        twin = ProgLoad(self.prog_type, self.insns, self.license)
        for field in self.__slots__:
            setattr(twin, field, getattr(self, field))
        return twin


class MapCreate:
    """What BPF_MAP_CREATE is given. `btf_fd` 0 means no BTF for key and value."""

    __slots__ = (
        "btf_fd", "btf_key", "btf_value", "btf_vmlinux_value", "extra", "flags", "inner_fd", "key_size", "max_entries",
        "name", "numa_node", "type", "value_btf_obj_fd", "value_size",
    )  # fmt: skip

    def __init__(self, type_: int, key_size: int, value_size: int, max_entries: int) -> None:
        self.type = type_
        self.key_size = key_size
        self.value_size = value_size
        self.max_entries = max_entries
        self.flags = self.inner_fd = self.numa_node = 0
        self.name = ""
        self.btf_fd = self.btf_key = self.btf_value = self.btf_vmlinux_value = 0
        self.extra = 0
        self.value_btf_obj_fd = 0
