"""Traffic control programs, attached through rtnetlink as bpf_tc_attach() and tc(8) do: a classifier in direct action
mode behind a clsact qdisc of `lo`, or an action.

Distributions build the qdisc, the classifier and the action as modules: in a guest those it was given are inserted for
the time of the attempt. Elsewhere the kernel asks for them itself (request_module()).
"""

from __future__ import annotations

import _socket
import os
import struct
from time import monotonic, sleep

from .attempt import Attempt
from .libc import delete_module, finit_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# <linux/netlink.h>, <linux/rtnetlink.h>
_AF_NETLINK, _NETLINK_ROUTE, _NLMSG_ERROR = 16, 0, 2
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_NEWQDISC, _DELQDISC, _NEWTFILTER, _DELTFILTER, _NEWACTION, _DELACTION = 36, 37, 44, 45, 48, 49
_TCA_KIND, _TCA_OPTIONS = 1, 2
_NESTED = 0x8000
# <linux/pkt_cls.h>, <linux/tc_act/tc_bpf.h>: attributes of a bpf classifier and of a bpf action
_BPF_FD, _BPF_NAME, _BPF_FLAGS, _DIRECT_ACTION = 6, 7, 8, 1
_ACT_TAB, _ACT_KIND, _ACT_OPTIONS, _ACT_INDEX, _ACT_PARMS, _ACT_FD, _ACT_NAME = 1, 1, 2, 3, 2, 5, 6
_CLSACT, _CLSACT_HANDLE, _INGRESS = 0xFFFFFFF1, 0xFFFF0000, 0xFFFFFFF2
_LOOPBACK, _HANDLE = 1, 1
_PRIORITY = 0xC0DE  # of the classifier, and the index of the action: nobody else's
_ETH_P_ALL, _TC_ACT_UNSPEC = 3, -1
_OWN = b"corematrix"
_ENOENT, _EEXIST = 2, 17
_GONE_SECONDS = 2.0


def classifier(attempt: Attempt) -> Callable[[], None]:
    """Attach behind lo's ingress; what detaches it and leaves lo as it was. Raises OSError."""
    return with_modules(attempt, ("sch_ingress", "cls_bpf"), _classifier)


def action(attempt: Attempt) -> Callable[[], None]:
    """Make an action of it; what removes that again. Raises OSError."""
    return with_modules(attempt, ("act_bpf",), _action)


def with_modules(
    attempt: Attempt, names: tuple[str, ...], work: Callable[[int], Callable[[], None]]
) -> Callable[[], None]:
    """`work`, if need be (ENOENT) with modules that are removed again when it is detached."""
    try:
        return work(attempt.fd)
    except OSError as error:
        given = [name for name in names if name in attempt.modules]
        if error.errno != _ENOENT or not given:
            raise
    inserted = [name for name in given if _insert(name, attempt.modules[name])]
    try:
        detach = work(attempt.fd)
    except OSError:
        _remove(inserted)
        raise

    def undo() -> None:
        detach()
        _remove(inserted)

    return undo


def _classifier(prog: int) -> Callable[[], None]:
    made = _make_clsact()
    options = _number(_BPF_FD, prog) + _text(_BPF_NAME, _OWN) + _number(_BPF_FLAGS, _DIRECT_ACTION)
    place = _tc(_HANDLE, _INGRESS, _PRIORITY << 16 | _socket.htons(_ETH_P_ALL)) + _text(_TCA_KIND, b"bpf")
    try:
        _ask(_NEWTFILTER, _CREATE | _EXCL, place + _attribute(_TCA_OPTIONS | _NESTED, options))
    except OSError:
        if made:
            _remove_clsact()
        raise
    return _remove_clsact if made else lambda: _ask(_DELTFILTER, 0, place)


def _make_clsact() -> bool:
    """False where lo has one: then it is somebody's."""
    try:
        _ask(_NEWQDISC, _CREATE | _EXCL, _tc(_CLSACT_HANDLE, _CLSACT) + _text(_TCA_KIND, b"clsact"))
    except OSError as error:
        if error.errno != _EEXIST:
            raise
        return False
    return True


def _remove_clsact() -> None:
    _ask(_DELQDISC, 0, _tc(_CLSACT_HANDLE, _CLSACT))


def _action(prog: int) -> Callable[[], None]:
    kind = _text(_ACT_KIND, b"bpf")
    parameters = struct.pack("=IIiii", _PRIORITY, 0, _TC_ACT_UNSPEC, 0, 0)  # struct tc_act_bpf
    options = _attribute(_ACT_PARMS, parameters) + _number(_ACT_FD, prog) + _text(_ACT_NAME, _OWN)
    _ask(_NEWACTION, _CREATE | _EXCL, _actions(kind + _attribute(_ACT_OPTIONS | _NESTED, options)))
    return lambda: _ask(_DELACTION, 0, _actions(kind + _number(_ACT_INDEX, _PRIORITY)))


# -- messages


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: bytes) -> bytes:
    return _attribute(kind, value + b"\0")


def _tc(handle: int, parent: int, info: int = 0) -> bytes:
    """struct tcmsg, for lo."""
    return struct.pack("=BxxxiIII", 0, _LOOPBACK, handle, parent, info)


def _actions(one: bytes) -> bytes:
    """struct tcamsg with a table of one action."""
    return bytes(4) + _attribute(_ACT_TAB | _NESTED, _attribute(1 | _NESTED, one))


def _ask(kind: int, flags: int, body: bytes) -> None:
    """One request, acknowledged. Raises OSError with the kernel's errno."""
    message = struct.pack("=IHHII", 16 + len(body), kind, flags | _REQUEST | _ACK, 1, 0) + body
    netlink = _socket.socket(_AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETLINK_ROUTE)
    try:
        netlink.send(message)
        answer = netlink.recv(1 << 16)
        while struct.unpack_from("=H", answer, 4)[0] != _NLMSG_ERROR:
            answer = netlink.recv(1 << 16)
    finally:
        netlink.close()
    number = -struct.unpack_from("=i", answer, 16)[0]
    if number:
        raise OSError(number, os.strerror(number))


# -- modules


def _insert(name: str, data: bytes) -> bool:
    """Whether it was us who inserted it."""
    file = os.memfd_create(name)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(file, view) :]
        finit_module(file)
    except OSError as error:
        if error.errno != _EEXIST:
            raise
        return False
    finally:
        os.close(file)
    return True


def _remove(names: list[str]) -> None:
    """What was inserted, the last first: other objects of this guest are to find the kernel as they would without. A
    classifier is freed in the kernel's own time (RCU), and holds its module until then.
    """
    limit = monotonic() + _GONE_SECONDS
    for name in reversed(names):
        while True:
            try:
                delete_module(name)
                break
            except OSError:
                if monotonic() > limit:
                    return
                sleep(0.001)  # announced to nobody
