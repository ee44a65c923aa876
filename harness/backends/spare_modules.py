"""Modules a guest gets for `--attach`, when an object has programs that are attached through one: distributions build
the clsact qdisc, the bpf classifier and the bpf action as modules, which a guest of ours does not hold.

They are only handed over: the guest inserts them for the time of an attempt (`guest/attach_netlink.py`), so that
nothing else is judged on another kernel than without `--attach`. A machine that is somebody's has its own.
"""

from __future__ import annotations

from collections.abc import Callable

from harness import backends, kernels
from harness.errors import CorematrixError
from harness.guest.elf import Elf
from harness.guest.errors import GuestError
from harness.guest.prog_types import parse_section
from harness.store import Store

_MODULES = {"sched_cls": ("sch_ingress", "cls_bpf"), "sched_act": ("act_bpf",)}
_SECONDS = 60.0


def hand_over(session: backends.Backend, data: bytes, store: Store, on_event: Callable[[str], None]) -> None:
    """Give the guest what programs of this object need; nothing where they need nothing, or it is no guest. A kernel
    without these modules goes without. Raises GuestLostError.
    """
    names = wanted(data)
    if not names or session.kernel.spec.backend in backends.MACHINES:
        return
    try:
        found = kernels.kernel_modules(session.kernel, names, store, on_event)
    except CorematrixError as error:
        on_event(f"no modules for attaching: {error.message}")
        return
    blobs = {path.name.partition(".")[0].replace("-", "_"): path.read_bytes() for path in found.paths}
    files = [{"name": name, "size": len(blob)} for name, blob in blobs.items()]
    message = {"op": "modules", "files": files}
    session.request(message, blob=b"".join(blobs.values()), seconds=_SECONDS, wanted="modules")


def wanted(data: bytes) -> tuple[str, ...]:
    """The modules that programs of an object are attached through, by its sections; none for what is no ELF file."""
    try:
        sections = Elf(data, "object").sections
    except GuestError:
        return ()
    found = [parse_section(section.name) for section in sections]
    types = dict.fromkeys(item.type_name for item in found if item is not None and not item.attach)
    return tuple(name for kind in types for name in _MODULES.get(kind, ()))
