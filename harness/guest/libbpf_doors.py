"""What stands between libbpf and the kernel while it loads an object: each program gets its own verdict.

libbpf gives an object up at the first refused map or program. Here it is told that all went well: a refused request is
noted and answered with the descriptor of an empty memory file, so that the object as a whole is relocated with its own
autoload set and every later program is still asked for, with the attributes libbpf chose for it. Descriptors that
libbpf closes when it is done (module BTFs, rejected maps) stay open until `release()`, since the evidence loads need
them.
"""

from __future__ import annotations

import ctypes
import os
import struct

from .loader import LOG_KEPT, with_its_end
from .syscall import LOG_MAX, LOG_STATS, MAP_CREATE, MAP_FREEZE, MAP_UPDATE_ELEM, PROG_BIND_MAP, PROG_LOAD, ProgLoad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .libbpf_ffi import Library
    from .syscall import Bpf

_EAGAIN, _ENOSPC = 11, 28
_ATTEMPTS = 5  # PROG_LOAD_ATTEMPTS of libbpf's bpf.c
_STAND_IN_SIZE = 1 << 32  # sparse: libbpf maps global data and arenas of its maps
_OFF_INSNS, _OFF_LOG = 8, 24
_CALL, _PSEUDO_KFUNC_CALL = 0x85, 2
_NR_DUP3 = {"x86_64": 292, "aarch64": 24, "riscv64": 24, "s390x": 326, "ppc64le": 316, "ppc64": 316}


class Verdict:
    """The kernel's answer to one program: `load` what libbpf asked for, `fd` None or the program's, `errno`, `log`."""

    __slots__ = ("errno", "fd", "load", "log", "log_truncated")

    def __init__(self, load: ProgLoad, fd: int | None, errno: int | None, log: bytes, truncated: bool) -> None:
        self.load = load
        self.fd = fd
        self.errno = errno
        self.log = log[-LOG_KEPT:]
        self.log_truncated = truncated or len(log) > LOG_KEPT


class Doors:
    """Takes libbpf's bpf(2) requests for the time of a `with` block.

    `prog_of_insns(address)` names the program whose instructions lie there (None: a probe of libbpf's own),
    `wanted(name)` says whether to ask the kernel for it, `map_of(name, attributes)` which of the object's maps a
    BPF_MAP_CREATE is for (None: a probe). After the block `verdicts` holds a Verdict by program name, `sequences` what
    was asked for each program, refused or not, `map_errors` the errno of each refused map by name, `map_names` the map
    behind each descriptor.
    """

    def __init__(self, lib: Library, bpf: Bpf) -> None:
        self._lib = lib
        self._bpf = bpf
        self._stand_ins: set[tuple[int, int]] = set()
        self._open: list[int] = []
        self.prog_of_insns: Callable[[int], str | None] = lambda _address: None
        self.wanted: Callable[[str], bool] = lambda _name: True
        self.map_of: Callable[[str, tuple[int, ...]], str | None] = lambda _name, _attributes: None
        self.verdicts: dict[str, Verdict] = {}
        self.sequences: dict[str, ProgLoad] = {}
        self.map_errors: dict[str, int] = {}
        self.map_names: dict[int, str] = {}
        self._nr_dup3 = _NR_DUP3[os.uname().machine]

    def __enter__(self) -> Doors:
        self._lib.syscall, self._lib.close, self._lib.trouble = self._syscall, self._close, None
        return self

    def __exit__(self, *exc: object) -> None:
        self._lib.syscall = self._lib.close = None
        if self._lib.trouble is not None and exc[0] is None:
            raise self._lib.trouble

    def release(self) -> None:
        """Close what libbpf has closed, and the programs."""
        fds = self._open + [verdict.fd for verdict in self.verdicts.values() if verdict.fd is not None]
        for fd in sorted(set(fds)):
            try:
                os.close(fd)
            except OSError:
                continue  # libbpf reused the number for something it closed itself
        self._open.clear()

    # --- the doors ----------------------------------------------------------------------------------------------------

    def _close(self, fd: int) -> int:
        self._open.append(fd)
        return 0

    def _syscall(self, number: int, command: int, attr: int, *rest: int) -> int:
        if number == self._bpf._nr:
            answer = _COMMANDS.get(command)
            if answer is not None:
                return answer(self, number, command, attr, *rest)
        elif number == self._nr_dup3 and command in self.map_names:
            # Since 1.4 a map is moved to the number its instructions already hold.
            self.map_names[attr] = self.map_names[command]
        return self._lib.real_syscall(number, command, attr, *rest)

    def _prog_load(self, number: int, command: int, attr: int, *rest: int) -> int:
        name = self.prog_of_insns(ctypes.c_uint64.from_address(attr + _OFF_INSNS).value)
        if name is None:
            return self._lib.real_syscall(number, command, attr, *rest)
        load = self.sequences[name] = _read_load(attr, rest[0])
        if not self.wanted(name):
            return self._stand_in()
        request = (number, command, attr, *rest)
        verdict = self.verdicts[name] = self._ask(load, lambda: self._lib.real_syscall(*request), attr)
        return os.dup(verdict.fd) if verdict.fd is not None else self._stand_in()

    def _ask(self, load: ProgLoad, request: Callable[[], int], attr: int) -> Verdict:
        """The verdict, from libbpf's own attributes but for the log: statistics first, and after a refusal what a
        person would read (level 1). A log that does not fit is ENOSPC and no verdict: then once more without one.
        """
        fd, errno, log = self._attempt(request, attr, LOG_STATS)
        truncated = errno == _ENOSPC
        if truncated:
            fd, errno, _ = self._attempt(request, attr, 0)
        elif fd is None and log:
            short = log
            again, errno_again, log = self._attempt(request, attr, 1 | LOG_STATS)
            truncated = errno_again == _ENOSPC
            log = with_its_end(log, short) if truncated else log
            if again is not None:
                os.close(again)
        return Verdict(load, fd, errno, log, truncated)

    def _attempt(self, request: Callable[[], int], attr: int, level: int) -> tuple[int | None, int | None, bytes]:
        log = self._bpf.log_buffer()
        log.clear()
        fields = (level, LOG_MAX, log.address) if level else (0, 0, 0)
        struct.pack_into("=IIQ", (ctypes.c_char * 16).from_address(attr + _OFF_LOG), 0, *fields)
        for _ in range(_ATTEMPTS):
            fd = request()
            errno = ctypes.get_errno()
            if fd >= 0 or errno != _EAGAIN:
                break
        return (fd, None, log.text()) if fd >= 0 else (None, errno, log.text())

    def _map_create(self, number: int, command: int, attr: int, *rest: int) -> int:
        raw = ctypes.string_at(attr, rest[0]).ljust(64, b"\0")
        name = self.map_of(raw[28:44].rstrip(b"\0").decode("latin-1"), struct.unpack_from("=IIII", raw))
        fd = self._lib.real_syscall(number, command, attr, *rest)
        if fd < 0:
            errno = ctypes.get_errno()
            if name is None or any(struct.unpack_from("=II", raw, 52)):  # with BTF libbpf tries a second time without
                ctypes.set_errno(errno)
                return -1
            self.map_errors[name] = errno
            fd = self._stand_in()
        if name is not None:
            self.map_names[fd] = name
        return fd

    def _map_write(self, number: int, command: int, attr: int, *rest: int) -> int:
        """Contents and freezing of a map that does not exist, and slots that should hold a program that does not."""
        if command != PROG_BIND_MAP and self.is_stand_in(ctypes.c_uint32.from_address(attr).value):
            return 0
        result = self._lib.real_syscall(number, command, attr, *rest)
        if result < 0 and (self._names_stand_in(command, attr) or self._refused_inner_map(command, attr)):
            return 0
        return result

    def _refused_inner_map(self, command: int, attr: int) -> bool:
        """A map that will not take its initial map: libbpf then gives up, as if it could not create the outer one."""
        errno = ctypes.get_errno()
        outer = self.map_names.get(ctypes.c_uint32.from_address(attr).value)
        value = ctypes.c_uint64.from_address(attr + 16).value if command == MAP_UPDATE_ELEM else 0
        inner = ctypes.c_uint32.from_address(value).value if value else -1
        ctypes.set_errno(errno)
        if outer is None or inner not in self.map_names or self.map_names[inner] == outer:
            return False
        self.map_errors[outer] = errno
        return True

    def _names_stand_in(self, command: int, attr: int) -> bool:
        errno = ctypes.get_errno()
        if command == MAP_UPDATE_ELEM:
            value = ctypes.c_uint64.from_address(attr + 16).value
            found = bool(value) and self.is_stand_in(ctypes.c_uint32.from_address(value).value)
        else:
            found = any(self.is_stand_in(ctypes.c_uint32.from_address(attr + place).value) for place in (0, 4))
        ctypes.set_errno(errno)
        return found

    # --- stand-ins ----------------------------------------------------------------------------------------------------

    def _stand_in(self) -> int:
        fd = os.memfd_create("corematrix-stand-in")
        os.ftruncate(fd, _STAND_IN_SIZE)
        status = os.fstat(fd)
        self._stand_ins.add((status.st_dev, status.st_ino))
        return fd

    def is_stand_in(self, fd: int) -> bool:
        """Whether `fd` (or what it was duplicated from: libbpf 1.4 and later dup3() onto a number chosen before) is one
        of ours.
        """
        try:
            status = os.fstat(fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) in self._stand_ins


_COMMANDS = {
    MAP_CREATE: Doors._map_create,
    MAP_UPDATE_ELEM: Doors._map_write,
    MAP_FREEZE: Doors._map_write,
    PROG_BIND_MAP: Doors._map_write,
    PROG_LOAD: Doors._prog_load,
}

_LOAD_ATTR = struct.Struct("=IIQQIIQII16sIIIIQIIQIIIIQ")


def _read_load(attr: int, size: int) -> ProgLoad:
    """`union bpf_attr` of a BPF_PROG_LOAD, as ProgLoad: copies of everything it points to."""
    fields = _LOAD_ATTR.unpack(ctypes.string_at(attr, size).ljust(_LOAD_ATTR.size, b"\0")[: _LOAD_ATTR.size])
    load = ProgLoad(fields[0], ctypes.string_at(fields[2], fields[1] * 8), ctypes.string_at(fields[3]))
    (load.kern_version, load.prog_flags) = fields[7:9]
    load.name = fields[9].rstrip(b"\0").decode("latin-1")
    load.expected_attach_type, load.btf_fd = fields[11:13]
    load.func_info_size, func_info, func_info_cnt = fields[13:16]
    load.func_info = ctypes.string_at(func_info, load.func_info_size * func_info_cnt) if func_info_cnt else b""
    load.line_info_size, line_info, line_info_cnt = fields[16:19]
    load.line_info = ctypes.string_at(line_info, load.line_info_size * line_info_cnt) if line_info_cnt else b""
    load.attach_btf_id, load.attach_btf_obj_fd = fields[19:21]
    load.fd_array = _read_fd_array(fields[22], load.insns)
    return load


def _read_fd_array(address: int, insns: bytes) -> list[int]:
    """As many entries as kernel function calls use (their `off` is an index; the attribute does not say how many there
    are).
    """
    if not address:
        return []
    last = -1
    for code, regs, off, _imm in struct.iter_unpack("=BBhi", insns):
        if code == _CALL and regs >> 4 == _PSEUDO_KFUNC_CALL:
            last = max(last, off)
    return list((ctypes.c_int32 * (last + 1)).from_address(address)) if last >= 0 else []
