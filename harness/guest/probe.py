"""What this kernel can do, found by trying: the features libbpf probes (its FEAT_ names in lower case; `btf_load` is
FEAT_BTF).

Nothing here reads a version number: distributions port features back and take them away. Each probe makes the call that
needs the feature, in its smallest form, and closes what it made.
"""

from __future__ import annotations

import os
import struct

from . import raw_btf as R
from .insn import BPF_PSEUDO_CALL, CALL, EXIT, LDIMM64, native
from .prog_types import ATTACH_TYPE, PROG_TYPE
from .syscall import LINK_CREATE, Bpf, MapCreate, ProgLoad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_EBADF, _EINVAL = 9, 22
_MOV64_IMM, _MOV64_REG, _ADD64_IMM, _ST_DW = 0xB7, 0xBF, 0x07, 0x7A
BPF_F_MMAPABLE = 1 << 10
_MAP_ARRAY = 2
_FUNC_PROBE_READ_KERNEL, _FUNC_GET_FUNC_IP, _FUNC_GET_ATTACH_COOKIE = 113, 173, 174


def _code(*insns: tuple[int, ...]) -> bytes:
    return b"".join(native(*insn) for insn in insns)


_RETURN_0 = ((_MOV64_IMM,), (EXIT,))


def _accepts(bpf: Bpf, load: ProgLoad) -> bool:
    try:
        os.close(bpf.prog_load(load))
    except OSError:
        return False
    return True


def _program(kind: str, *insns: tuple[int, ...]) -> ProgLoad:
    return ProgLoad(PROG_TYPE[kind], _code(*insns))


def _prog_name(bpf: Bpf) -> bool:
    load = _program("socket_filter", *_RETURN_0)
    load.name = "cmtx_probe"
    return _accepts(bpf, load)


def _exp_attach_type(bpf: Bpf) -> bool:
    load = _program("cgroup_sock", *_RETURN_0)
    load.expected_attach_type = ATTACH_TYPE["cgroup_inet_sock_create"]
    return _accepts(bpf, load)


def _with_array(bpf: Bpf, value_size: int, use: Callable[[int], bool], flags: int = 0) -> bool:
    """Whether `use(map fd)` holds for a fresh array of one value; False when it cannot be made."""
    array = MapCreate(_MAP_ARRAY, 4, value_size, 1)
    array.flags = flags
    try:
        fd = bpf.map_create(array)
    except OSError:
        return False
    try:
        return use(fd)
    finally:
        os.close(fd)


def _global_data(bpf: Bpf) -> bool:
    def use(fd: int) -> bool:
        value = ((LDIMM64, 1, 2, 0, fd), (0, 0, 0, 0, 16), (_ST_DW, 1, 0, 0, 42), *_RETURN_0)
        return _accepts(bpf, _program("socket_filter", *value))

    return _with_array(bpf, 32, use)


def _array_mmap(bpf: Bpf) -> bool:
    return _with_array(bpf, 4, lambda _fd: True, BPF_F_MMAPABLE)


def _prog_bind_map(bpf: Bpf) -> bool:
    def use(fd: int) -> bool:
        try:
            prog = bpf.prog_load(_program("socket_filter", *_RETURN_0))
        except OSError:
            return False
        try:
            bpf.bind_map(prog, fd)
        except OSError:
            return False
        finally:
            os.close(prog)
        return True

    return _with_array(bpf, 32, use)


def _ldimm64_full_range_off(bpf: Bpf) -> bool:
    """Up to 12a1fe6e12db the verifier refused a direct value offset of 1 << 29 and more by that very name."""

    def use(fd: int) -> bool:
        load = _program("tracepoint", (LDIMM64, 1, 2, 0, fd), (0, 0, 0, 0, 1 << 30), (EXIT,))
        try:
            os.close(bpf.prog_load(load, 1, 4096))
        except OSError:
            return b"invalid access to map value pointer" in bpf.log_buffer().text()
        return False

    return _with_array(bpf, 4, use)


def _probe_read_kern(bpf: Bpf) -> bool:
    call = ((_MOV64_REG, 1, 10), (_ADD64_IMM, 1, 0, 0, -8), (_MOV64_IMM, 2, 0, 0, 8), (_MOV64_IMM, 3))
    return _accepts(bpf, _program("tracepoint", *call, (CALL, 0, 0, 0, _FUNC_PROBE_READ_KERNEL), (EXIT,)))


def _bpf_cookie(bpf: Bpf) -> bool:
    return _accepts(bpf, _program("tracepoint", (CALL, 0, 0, 0, _FUNC_GET_ATTACH_COOKIE), (EXIT,)))


def _loads_btf(words: list[int], strings: bytes) -> Callable[[Bpf], bool]:
    data = R.blob(words, strings)

    def probe(bpf: Bpf) -> bool:
        try:
            os.close(bpf.btf_load(data))
        except OSError:
            return False
        return True

    return probe


def _func_btf(linkage: int) -> Callable[[Bpf], bool]:
    proto = [*R.head(0, R.KIND_FUNC_PROTO, 1), 7, 1]
    return _loads_btf([*R.integer(1), *proto, *R.head(5, R.KIND_FUNC, linkage, 2)], b"\0int\0x\0a\0")


_STATIC_VAR = [*R.integer(0), *R.head(1, R.KIND_VAR, 0, 1), 0]
_DATASEC = [*_STATIC_VAR, *R.head(3, R.KIND_DATASEC, 1, 4), 2, 0, 4]


def _module_btf(bpf: Bpf) -> bool:
    """Names in bpf_btf_info came together with module BTF (5.11)."""
    try:
        fd = bpf.btf_load(R.blob(R.integer(1), b"\0int\0"))
    except OSError:
        return False
    try:
        bpf.btf_info(fd)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _arg_ctx_tag(bpf: Bpf) -> bool:
    """Whether `__arg_ctx` of a global function is read (6.8): bpf_get_func_ip wants a context."""
    words = [
        *R.integer(1), *R.head(0, R.KIND_PTR), *R.head(0, R.KIND_FUNC_PROTO, 1, 1), 1, 2,
        *R.head(1, R.KIND_FUNC, 1, 3), *R.head(0, R.KIND_FUNC_PROTO, 1, 1), 3, 2, *R.head(3, R.KIND_FUNC, 1, 5),
        *R.head(5, R.KIND_DECL_TAG, 0, 6), 0,
    ]  # fmt: skip
    try:
        fd = bpf.btf_load(R.blob(words, b"\0a\0b\0arg:ctx\0"))
    except OSError:
        return False
    load = _program("kprobe", (CALL, 0, 1, 0, 1), (EXIT,), (CALL, 0, 0, 0, _FUNC_GET_FUNC_IP), (EXIT,))
    load.btf_fd = fd
    load.func_info = struct.pack("=IIII", 0, 4, 2, 6)
    try:
        return _accepts(bpf, load)
    finally:
        os.close(fd)


def _uprobe_multi_link(bpf: Bpf) -> bool:
    """EBADF for "/" (no regular file) says the link type exists; EINVAL for pid -1 says its PID filter is the mended
    one (6.6)."""
    load = _program("kprobe", *_RETURN_0)
    load.expected_attach_type = ATTACH_TYPE["trace_uprobe_multi"]
    try:
        prog = bpf.prog_load(load)
    except OSError:
        return False
    try:
        return _uprobe_link_errno(bpf, prog, 0) == _EBADF and _uprobe_link_errno(bpf, prog, -1) == _EINVAL
    finally:
        os.close(prog)


def _uprobe_link_errno(bpf: Bpf, prog: int, pid: int) -> int:
    import ctypes

    load_type = ATTACH_TYPE["trace_uprobe_multi"]
    path, offset = ctypes.create_string_buffer(b"/"), ctypes.c_uint64(0)
    attr = struct.pack(
        "=IiIIQQQQIIi", prog, -1, load_type, 0, ctypes.addressof(path), ctypes.addressof(offset),
        0, 0, 1, 0, pid,
    )  # fmt: skip
    try:
        os.close(bpf.call(LINK_CREATE, attr))
    except OSError as error:
        return error.errno or 0
    return 0


def calls(bpf: Bpf) -> bool:
    """Whether programs may call functions of their own (4.16). Asked only for programs that do, so no part of
    `survey`."""
    return _accepts(bpf, _program("socket_filter", (CALL, 0, BPF_PSEUDO_CALL, 0, 1), (EXIT,), *_RETURN_0))


# perf_event_open's number and what libbpf's arch_specific_syscall_pfx() says, by `uname -m`.
PERF_EVENT_OPEN = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "s390x": 331, "ppc64le": 319}
SYSCALL_PREFIX = {"x86_64": "x64", "aarch64": "arm64", "riscv64": "riscv", "s390x": "s390x", "ppc64le": "powerpc"}


def syscall_wrapper() -> bool:
    """Whether system calls are functions like __x64_sys_bpf: tried with a kprobe on it, else looked up in
    /proc/kallsyms.

    Asked only for LINUX_HAS_SYSCALL_WRAPPER, so it is no part of `survey`.
    """
    machine = os.uname().machine
    name = f"__{SYSCALL_PREFIX[machine]}_sys_bpf"
    found = _kprobe_works(name, PERF_EVENT_OPEN[machine])
    if found is not None:
        return found
    return _kprobe_event_works(name)


def _kprobe_event_works(name: str) -> bool:
    """A kprobe through the tracing file system (add_kprobe_event_legacy()); False where there is none."""
    root = "/sys/kernel/debug/tracing" if os.path.exists("/sys/kernel/debug/tracing") else "/sys/kernel/tracing"
    try:
        with open(root + "/kprobe_events", "a", encoding="ascii") as file:
            file.write(f"p:kprobes/corematrix_probe {name}\n")
            file.flush()
            file.write("-:kprobes/corematrix_probe\n")
    except OSError:
        return False
    return True


def _kprobe_works(name: str, number: int) -> bool | None:
    """None where this kernel has no kprobe events for perf_event_open() (before 4.17)."""
    import ctypes

    try:
        with open("/sys/bus/event_source/devices/kprobe/type", encoding="ascii") as file:
            kind = int(file.read())
    except (OSError, ValueError):
        return None
    text = ctypes.create_string_buffer(name.encode())
    attr = bytearray(112)
    struct.pack_into("=II", attr, 0, kind, len(attr))
    struct.pack_into("=Q", attr, 56, ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    block = (ctypes.c_char * len(attr)).from_buffer(attr)
    words = [ctypes.c_long(word) for word in (-1, 0, -1, 8)]  # any process, CPU 0, no group, PERF_FLAG_FD_CLOEXEC
    fd = int(libc.syscall(ctypes.c_long(number), block, *words))
    if fd >= 0:
        os.close(fd)
        return True
    return False if ctypes.get_errno() == 2 else None


PROBES: dict[str, Callable[[Bpf], bool]] = {
    "prog_name": _prog_name,
    "global_data": _global_data,
    "btf_load": _loads_btf(R.integer(1), b"\0int\0"),
    "btf_func": _func_btf(0),
    "btf_func_global": _func_btf(1),
    "btf_datasec": _loads_btf(_DATASEC, b"\0x\0.data\0"),
    "btf_qmark_datasec": _loads_btf(_DATASEC, b"\0x\0?.data\0"),
    "btf_float": _loads_btf(R.head(1, R.KIND_FLOAT, 0, 4), b"\0float\0"),
    "btf_decl_tag": _loads_btf([*_STATIC_VAR, *R.head(1, R.KIND_DECL_TAG, 0, 2), 0xFFFFFFFF], b"\0tag\0"),
    "btf_type_tag": _loads_btf(
        [*R.integer(0), *R.head(1, R.KIND_TYPE_TAG, 0, 1), *R.head(0, R.KIND_PTR, 0, 2)], b"\0tag\0"
    ),
    "btf_enum64": _loads_btf(R.head(1, R.KIND_ENUM64, 0, 8), b"\0enum64\0"),
    "array_mmap": _array_mmap,
    "exp_attach_type": _exp_attach_type,
    "probe_read_kern": _probe_read_kern,
    "prog_bind_map": _prog_bind_map,
    "module_btf": _module_btf,
    "bpf_cookie": _bpf_cookie,
    "uprobe_multi_link": _uprobe_multi_link,
    "arg_ctx_tag": _arg_ctx_tag,
    "ldimm64_full_range_off": _ldimm64_full_range_off,
}


def survey(bpf: Bpf) -> dict[str, bool]:
    """Every probe's answer, by name."""
    return {name: probe(bpf) for name, probe in PROBES.items()}
