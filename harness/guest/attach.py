"""Whether a loaded program can be attached where its section says, and detached again: apart from the verdict.

A program type may load and then not attach (kprobe.multi on 4.19: the attach type is not looked at before 5.18), a
symbol or tracepoint may be gone, a tracepoint's argument list shorter than what the program reads. libbpf's
bpf_program__attach() and the attach_fn of its section definitions say what is called for which section. What needs a
device, a lirc receiver or a running program is not attempted, and says so.

The answer has the keys of `attach` in docs/facts.md: status, how, errno, error, stand_in.
"""

from __future__ import annotations

import ctypes
import os
import struct

from .attach_perf import TraceFsError, kprobe_event, software_event, tracepoint_event
from .attempt import Attempt, Gone, NotAttempted, closing
from .prog_types import ATTACH_TYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

(MAP_CREATE, PROG_ATTACH, PROG_DETACH, RAW_TRACEPOINT_OPEN, LINK_CREATE) = (0, 8, 9, 17, 28)
_LOOPBACK = 1  # ifindex of lo in every network namespace
_XDP_FLAGS_SKB_MODE = 1 << 1
_NFPROTO_IPV4, _NF_INET_LOCAL_IN, _PRIORITY = 2, 1, -128
_SO_REUSEPORT, _SO_ATTACH_BPF, _SO_ATTACH_REUSEPORT_EBPF = 15, 50, 52
_SOCKMAP = 15  # BPF_MAP_TYPE_SOCKMAP
_MOST_SYMBOLS = 1000
_EPERM, _ENOENT, _EACCES, _EINVAL, _E2BIG, _EOPNOTSUPP, _ENOTSUPP = 1, 2, 13, 22, 7, 95, 524


def attach_program(
    machine: Any, fd: int, facts: dict[str, Any], maps: Iterable[str], progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Attach the program behind `fd`, detach it, report. `facts` are its own so far (docs/facts.md), `maps` the names
    of its object's.
    """
    progress({"type": "progress", "phase": "attach", "prog": facts["name"]})
    return try_attach(Attempt(machine.bpf, fd, facts, machine.syscall_prefix(), machine.spare_modules, maps))


def try_attach(attempt: Attempt) -> dict[str, Any]:
    """Attach, detach, report."""
    how, work = _method(attempt)
    try:
        detach = work(attempt)
        detach()
    except (NotAttempted, TraceFsError) as reason:
        return answer("not_attempted", how, error=str(reason))
    except Gone as gone:
        return answer("refused", how, errno=_ENOENT, error=str(gone))
    except OSError as error:
        number = error.errno or 0
        return answer("refused", attempt.how or how, errno=number, error=_explained(attempt, number, error))
    return answer("attached", attempt.how or how, stand_in=attempt.stand_in)


def answer(
    status: str, how: str, *, errno: int | None = None, error: str | None = None, stand_in: str | None = None
) -> dict[str, Any]:
    """The facts' `attach`."""
    return {"status": status, "how": how, "errno": errno, "error": error, "stand_in": stand_in}


def _method(attempt: Attempt) -> tuple[str, Callable[[Attempt], Callable[[], None]]]:
    for key in (attempt.kind.partition(".s")[0] if attempt.kind.endswith(".s") else attempt.kind, attempt.prog_type):
        if key in _METHODS:
            return _METHODS[key]
    return "none", _not_attempted("it is attached to a device, socket or program that the section does not name")


def _not_attempted(why: str) -> Callable[[Attempt], Callable[[], None]]:
    def refuse(_attempt: Attempt) -> Callable[[], None]:
        raise NotAttempted(why)

    return refuse


# -- tracing


def _kprobe(attempt: Attempt) -> Callable[[], None]:
    return _probe(attempt, attempt.wanted())


def _ksyscall(attempt: Attempt) -> Callable[[], None]:
    return _probe(attempt, attempt.syscall_prefix + attempt.wanted())


def _probe(attempt: Attempt, text: str) -> Callable[[], None]:
    symbol, _, offset = text.partition("+")
    if not offset and not is_symbol(symbol):
        raise Gone("symbol gone: %s is not in /proc/kallsyms" % symbol)
    number = int(offset, 0) if offset else 0
    return kprobe_event(attempt.fd, symbol, number, attempt.kind.startswith("kret"))


def is_symbol(name: str) -> bool:
    """Whether the kernel or a module of it has a symbol of that name; True where symbols cannot be read."""
    end = " " + name
    try:
        with open("/proc/kallsyms", encoding="ascii", errors="replace") as file:
            return any(line.partition("\t")[0].rstrip().endswith(end) for line in file)
    except OSError:
        return True


def _kprobe_multi(attempt: Attempt) -> Callable[[], None]:
    names = _matching(attempt.wanted())
    if not names:
        raise Gone("symbol gone: no traceable function matches %s" % attempt.target)
    texts = [ctypes.create_string_buffer(name.encode()) for name in names]
    addresses = (ctypes.c_uint64 * len(texts))(*[ctypes.addressof(text) for text in texts])
    returning = int(attempt.kind.startswith("kretprobe"))
    attr = struct.pack(
        "=IIIIIIQQQ", attempt.fd, 0, attempt.attach_type, 0, returning, len(texts), ctypes.addressof(addresses), 0, 0
    )
    return closing(attempt.bpf.call(LINK_CREATE, attr))


def _matching(pattern: str) -> list[str]:
    """Traceable functions; without a list of them the name as it is."""
    from fnmatch import fnmatchcase

    try:
        with open("/sys/kernel/tracing/available_filter_functions", encoding="ascii", errors="replace") as file:
            names = (line.split()[0] for line in file if line.strip())
            found = [name for name in names if fnmatchcase(name, pattern)]
    except OSError:
        return [pattern]
    return list(dict.fromkeys(found))[:_MOST_SYMBOLS]


def _tracepoint(attempt: Attempt) -> Callable[[], None]:
    category, _, name = attempt.wanted().partition("/")
    try:
        return tracepoint_event(attempt.fd, category, name)
    except FileNotFoundError:
        raise Gone("tracepoint gone: %s/%s" % (category, name)) from None


def _raw_tracepoint(attempt: Attempt) -> Callable[[], None]:
    name = ctypes.create_string_buffer(attempt.wanted().encode())
    attr = struct.pack("=QII", ctypes.addressof(name), attempt.fd, 0)
    return closing(attempt.bpf.call(RAW_TRACEPOINT_OPEN, attr))


def _trampoline(attempt: Attempt) -> Callable[[], None]:
    """tp_btf, fentry, fexit, fmod_ret, lsm: the target was given at load; no name here (5.5)."""
    return closing(attempt.bpf.call(RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, attempt.fd, 0)))


def _iterator(attempt: Attempt) -> Callable[[], None]:
    if "map_elem" in (attempt.target or "") or "sk_storage" in (attempt.target or ""):
        raise NotAttempted("this iterator goes over a map that its user chooses")
    return _linked(attempt, 0)


def _usdt(attempt: Attempt) -> Callable[[], None]:
    from .attach_usdt import usdt

    return usdt(attempt)


def _in_user_space(name: str) -> Callable[[Attempt], Callable[[], None]]:
    def attach(attempt: Attempt) -> Callable[[], None]:
        from . import attach_uprobe

        work: Callable[[Attempt], Callable[[], None]] = getattr(attach_uprobe, name)
        return work(attempt)

    return attach


def _perf_event(attempt: Attempt) -> Callable[[], None]:
    return software_event(attempt.fd)


# -- networking, cgroups, sockets


def _linked(attempt: Attempt, target: int, flags: int = 0, rest: bytes = b"") -> Callable[[], None]:
    attr = struct.pack("=IIII", attempt.fd, target, attempt.attach_type, flags) + rest
    return closing(attempt.bpf.call(LINK_CREATE, attr))


def _xdp(attempt: Attempt) -> Callable[[], None]:
    if attempt.attach_type != ATTACH_TYPE["xdp"]:
        raise NotAttempted("it belongs into an entry of a map (devmap, cpumap)")
    return _linked(attempt, _LOOPBACK, _XDP_FLAGS_SKB_MODE)


def _classifier(attempt: Attempt) -> Callable[[], None]:
    """Through netlink, as every kernel can that has the modules; where it cannot, as a tcx link (6.6)."""
    from .attach_netlink import classifier

    if attempt.attach_type in _TCX:
        return _tcx(attempt, attempt.attach_type)
    try:
        return classifier(attempt)
    except OSError as error:
        if error.errno != _ENOENT:
            raise
    try:
        return _tcx(attempt, _TCX[0])
    except OSError:
        raise NotAttempted(
            "this kernel has the clsact qdisc or the bpf classifier in no module that is here, and no tcx (6.6)"
        ) from None


def _tcx(attempt: Attempt, attach_type: int) -> Callable[[], None]:
    attempt.attach_type, attempt.how = attach_type, "BPF_LINK_CREATE on lo (tcx)"
    return _linked(attempt, _LOOPBACK)


def _action(attempt: Attempt) -> Callable[[], None]:
    from .attach_netlink import action

    try:
        return action(attempt)
    except OSError as error:
        if error.errno != _ENOENT:
            raise
    raise NotAttempted("this kernel has the bpf action (CONFIG_NET_ACT_BPF) in no module that is here")


def _sockmap(attempt: Attempt) -> Callable[[], None]:
    """To an empty sockmap of our own: whatever is attached there sees no socket."""
    attach_type = attempt.attach_type or ATTACH_TYPE["sk_skb_stream_verdict"]  # SEC("sk_skb") leaves the choice
    sockets = attempt.bpf.call(MAP_CREATE, struct.pack("=IIIIIII", _SOCKMAP, 4, 4, 1, 0, 0, 0))
    attr = struct.pack("=IIIII", sockets, attempt.fd, attach_type, 0, 0)
    try:
        attempt.bpf.call(PROG_ATTACH, attr)
    except OSError:
        os.close(sockets)
        raise

    def detach() -> None:
        try:
            attempt.bpf.call(PROG_DETACH, attr)
        finally:
            os.close(sockets)

    return detach


def _netfilter(attempt: Attempt) -> Callable[[], None]:
    return _linked(attempt, 0, 0, struct.pack("=IIiI", _NFPROTO_IPV4, _NF_INET_LOCAL_IN, _PRIORITY, 0))


def _netns(attempt: Attempt) -> Callable[[], None]:
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return _linked(attempt, namespace)
    finally:
        os.close(namespace)


def _cgroup(attempt: Attempt) -> Callable[[], None]:
    """In a cgroup made for this, with no process in it."""
    from .cgroups import empty_cgroup

    try:
        group, remove = empty_cgroup()
    except OSError as error:
        raise NotAttempted("no cgroup (v2) to attach to can be made: %s" % error.strerror) from None
    attr = struct.pack("=IIIII", group, attempt.fd, attempt.attach_type, 0, 0)
    try:
        attempt.bpf.call(PROG_ATTACH, attr)
    except OSError:
        remove()
        raise

    def detach() -> None:
        try:
            attempt.bpf.call(PROG_DETACH, attr)
        finally:
            remove()

    return detach


def _socket(option: int) -> Callable[[Attempt], Callable[[], None]]:
    def attach(attempt: Attempt) -> Callable[[], None]:
        import _socket

        opened = _socket.socket(_socket.AF_UNIX if option == _SO_ATTACH_BPF else _socket.AF_INET, _socket.SOCK_DGRAM)
        try:
            if option == _SO_ATTACH_REUSEPORT_EBPF:
                opened.setsockopt(_socket.SOL_SOCKET, _SO_REUSEPORT, 1)
            opened.setsockopt(_socket.SOL_SOCKET, option, struct.pack("=i", attempt.fd))
        except OSError:
            opened.close()
            raise
        return opened.close

    return attach


_KPROBE = ("kprobe event (perf)", _kprobe)
_TRAMPOLINE = ("BPF_RAW_TRACEPOINT_OPEN", _trampoline)
_MULTI = ("BPF_LINK_CREATE, kprobe_multi", _kprobe_multi)
_UPROBE = ("uprobe event (perf)", _in_user_space("uprobe"))
_UPROBE_MULTI = ("BPF_LINK_CREATE, uprobe_multi", _in_user_space("uprobe_multi"))
_SOCKMAP_OF_OURS = ("BPF_PROG_ATTACH to a sockmap", _sockmap)
_TCX = (ATTACH_TYPE["tcx_ingress"], ATTACH_TYPE["tcx_egress"])

# The section's first part, else the program type.
_METHODS: dict[str, tuple[str, Callable[[Attempt], Callable[[], None]]]] = {
    "kprobe": _KPROBE, "kretprobe": _KPROBE,
    "ksyscall": ("kprobe event (perf)", _ksyscall), "kretsyscall": ("kprobe event (perf)", _ksyscall),
    "kprobe.multi": _MULTI, "kretprobe.multi": _MULTI, "kprobe.session": _MULTI,
    "uprobe": _UPROBE, "uretprobe": _UPROBE, "usdt": ("uprobe events (perf) by the binary's notes", _usdt),
    "uprobe.multi": _UPROBE_MULTI, "uretprobe.multi": _UPROBE_MULTI, "uprobe.session": _UPROBE_MULTI,
    "tracepoint": ("tracepoint event (perf)", _tracepoint), "tp": ("tracepoint event (perf)", _tracepoint),
    "raw_tracepoint": ("BPF_RAW_TRACEPOINT_OPEN", _raw_tracepoint),
    "raw_tracepoint_writable": ("BPF_RAW_TRACEPOINT_OPEN", _raw_tracepoint),
    "iter": ("BPF_LINK_CREATE", _iterator),
    "tracing": _TRAMPOLINE,
    "lsm_cgroup": ("BPF_PROG_ATTACH to a cgroup", _cgroup),
    "lsm": _TRAMPOLINE,
    "perf_event": ("software event (perf)", _perf_event),
    "xdp": ("BPF_LINK_CREATE on lo", _xdp),
    "netkit": ("netlink", _not_attempted("it belongs to a netkit device")),
    "sched_cls": ("clsact qdisc of lo (netlink)", _classifier),
    "sched_act": ("bpf action (netlink)", _action),
    "netfilter": ("BPF_LINK_CREATE, IPv4 local_in", _netfilter),
    "sk_lookup": ("BPF_LINK_CREATE on a network namespace", _netns),
    "flow_dissector": ("BPF_LINK_CREATE on a network namespace", _netns),
    "socket_filter": ("SO_ATTACH_BPF", _socket(_SO_ATTACH_BPF)),
    "sk_reuseport": ("SO_ATTACH_REUSEPORT_EBPF", _socket(_SO_ATTACH_REUSEPORT_EBPF)),
    **dict.fromkeys(
        ("cgroup_skb", "cgroup_sock", "cgroup_sock_addr", "cgroup_device", "cgroup_sysctl", "cgroup_sockopt",
         "sock_ops"),
        ("BPF_PROG_ATTACH to a cgroup", _cgroup),
    ),
    "sk_msg": _SOCKMAP_OF_OURS, "sk_skb": _SOCKMAP_OF_OURS,
    "syscall": ("none", _not_attempted("it is run by its user and attached to nothing")),
    "ext": ("freplace", _not_attempted("it replaces a function of a program that runs")),
}  # fmt: skip

# errno -> what it means for a family of methods; the kernel functions that return it.
_REASONS = (
    ("raw_tracepoint", _ENOENT, "tracepoint gone: there is no {target}"),  # bpf_get_raw_tracepoint()
    # __bpf_probe_register(), perf_event_set_bpf_prog()
    ("raw_tracepoint", _EINVAL, "argument list changed: it reads more arguments than {target} has"),
    ("tracepoint", _EACCES, "argument list changed: it reads past the end of {target}'s record"),
    # The last is check_ftrace_location(), without CONFIG_KPROBES_ON_FTRACE: riscv64 of 6.12.
    ("kprobe", _EINVAL, "{target} is there and cannot be probed (notrace, blacklisted, or ftrace owns its entry)"),
    ("kprobe", _ENOENT, "symbol gone: {target}"),
    ("multi", _EINVAL, "this kernel has no kprobe.multi links (5.18): the type loads and cannot be attached"),
    ("multi", _EOPNOTSUPP, "this kernel is built without what kprobe.multi links need (CONFIG_FPROBE)"),
    ("multi", _E2BIG, "this kernel has no kprobe.multi links (5.18): the type loads and cannot be attached"),
    ("multi", _ENOENT, "symbol gone: {target}"),
    ("umulti", _EINVAL, "this kernel has no uprobe.multi links (6.6): the type loads and cannot be attached"),
    ("umulti", _E2BIG, "this kernel has no uprobe.multi links (6.6): the type loads and cannot be attached"),
    ("tcx", _EINVAL, "this kernel has no tcx links (6.6): a classifier is attached through netlink there"),
    ("xdp", _EINVAL, "this kernel has no XDP links (5.9): it is attached through netlink there"),
    ("", _ENOTSUPP, "this kernel cannot do it (ENOTSUPP): no trampoline, or the function is not traceable"),
    ("", _EPERM, "not permitted"),
)  # fmt: skip


def _explained(attempt: Attempt, number: int, error: OSError) -> str:
    family = _family(attempt)
    for name, errno, words in _REASONS:
        if errno == number and name in ("", family):
            return words.format(target=attempt.target)
    return error.strerror or "errno %d" % number


def _family(attempt: Attempt) -> str:
    """Whose reasons count: the program type's, but for what is attached in another way than its type usually is."""
    user = attempt.kind.startswith("u")
    if attempt.kind.partition(".")[2].startswith(("multi", "session")):
        return "umulti" if user else "multi"
    return "uprobe" if user else "tcx" if attempt.attach_type in _TCX else str(attempt.prog_type)
