"""Perf events that programs are attached to: kprobes, uprobes, tracepoints, a software event. Detaching is closing.

Where perf_event_open(2) knows no kprobe or uprobe PMU (before 4.17), the event is made through tracefs, as libbpf
does it (perf_event_kprobe_open_legacy(), perf_event_uprobe_open_legacy()).
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct

from .attempt import Gone
from .probe import PERF_EVENT_OPEN

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_TYPE_SOFTWARE, _TYPE_TRACEPOINT, _COUNT_SW_CPU_CLOCK = 1, 2, 0
_IOC_ENABLE, _IOC_DISABLE, _IOC_SET_BPF = 0x2400, 0x2401, 0x40042408  # <linux/perf_event.h>
# The architectures whose _IOC() puts the direction elsewhere (powerpc: _IOC_WRITE is 4, and 3 bits wide).
_IOC_OF = {"ppc64le": (0x20002400, 0x20002401, 0x80042408)}
_REF_CTR_SHIFT = 32  # PERF_UPROBE_REF_CTR_OFFSET_SHIFT
_ATTR_SIZE = 112  # PERF_ATTR_SIZE_VER5
_PMU = "/sys/bus/event_source/devices/%s/type"
_ROOTS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")


class TraceFsError(Exception):
    """No tracing file system is mounted."""


def kprobe_event(prog: int, symbol: str, offset: int, returning: bool) -> Callable[[], None]:
    """Attach `prog` (a descriptor) to a kernel function; what detaches it. Raises OSError."""
    return _probe(prog, "kprobe", symbol, offset, int(returning))


def uprobe_event(prog: int, path: str, offset: int, returning: bool, semaphore: int = 0) -> Callable[[], None]:
    """Attach to the instruction at `offset` of a file, in every process; `semaphore` is the place in the file of a
    counter of those attached (0: none). Raises OSError.
    """
    return _probe(prog, "uprobe", path, offset, int(returning) | semaphore << _REF_CTR_SHIFT)


def has_semaphores() -> bool:
    """Whether this kernel's uprobes count up a semaphore (a6ca88b241d5, 4.20)."""
    return os.path.exists("/sys/bus/event_source/devices/uprobe/format/ref_ctr_offset")


def _probe(prog: int, pmu: str, name: str, offset: int, config: int) -> Callable[[], None]:
    try:
        with open(_PMU % pmu, encoding="ascii") as file:
            kind = int(file.read())
    except OSError:
        return _legacy_probe(prog, pmu, name, offset, bool(config & 1))
    text = ctypes.create_string_buffer(name.encode())
    return _attached(prog, _open(kind, config, ctypes.addressof(text), offset))


def tracepoint_event(prog: int, category: str, name: str) -> Callable[[], None]:
    """Attach to a tracepoint. Raises FileNotFoundError when there is none of that name, TraceFsError, OSError."""
    return _attached(prog, _open(_TYPE_TRACEPOINT, _event_id(_root(), category, name)))


def software_event(prog: int) -> Callable[[], None]:
    """Attach to a CPU clock that ticks once in a million years."""
    return _attached(prog, _open(_TYPE_SOFTWARE, _COUNT_SW_CPU_CLOCK, period=1 << 62))


def _legacy_probe(prog: int, pmu: str, name: str, offset: int, returning: bool) -> Callable[[], None]:
    root, group = _root(), pmu + "s"
    if not os.path.exists(root + "/%s_events" % pmu):
        raise Gone("this kernel is built without %ss (CONFIG_%s_EVENTS)" % (pmu, pmu.upper()))
    event = "corematrix_%d_%x" % (os.getpid(), offset)
    place = "%s+%d" % (name, offset) if pmu == "kprobe" else "%s:0x%x" % (name, offset)
    _append(root + "/%s_events" % pmu, "%s:%s/%s %s" % ("r" if returning else "p", group, event, place))

    def remove() -> None:
        _append(root + "/%s_events" % pmu, "-:%s/%s" % (group, event))

    try:
        close = _attached(prog, _open(_TYPE_TRACEPOINT, _event_id(root, group, event)))
    except OSError:
        remove()
        raise

    def detach() -> None:
        close()
        remove()

    return detach


def _append(path: str, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def _root() -> str:
    for root in _ROOTS:
        if os.path.exists(root + "/events"):
            return root
    raise TraceFsError("there is no tracing file system: tracepoints and old kprobes cannot be looked up")


def _event_id(root: str, category: str, name: str) -> int:
    with open("%s/events/%s/%s/id" % (root, category, name), encoding="ascii") as file:
        return int(file.read())


def _open(kind: int, config: int, config1: int = 0, config2: int = 0, period: int = 0) -> int:
    """perf_event_open(2) for any process on CPU 0."""
    attr = bytearray(_ATTR_SIZE)
    struct.pack_into("=IIQQ", attr, 0, kind, _ATTR_SIZE, config, period)
    struct.pack_into("=QQ", attr, 56, config1, config2)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    block = (ctypes.c_char * len(attr)).from_buffer(attr)
    words = [ctypes.c_long(word) for word in (-1, 0, -1, 8)]  # PERF_FLAG_FD_CLOEXEC
    fd = int(libc.syscall(ctypes.c_long(PERF_EVENT_OPEN[os.uname().machine]), block, *words))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return fd


def _attached(prog: int, event: int) -> Callable[[], None]:
    enable, disable, set_bpf = _IOC_OF.get(os.uname().machine, (_IOC_ENABLE, _IOC_DISABLE, _IOC_SET_BPF))
    try:
        fcntl.ioctl(event, set_bpf, prog)
        fcntl.ioctl(event, enable, 0)
    except OSError:
        os.close(event)
        raise

    def detach() -> None:
        fcntl.ioctl(event, disable, 0)
        os.close(event)

    return detach
