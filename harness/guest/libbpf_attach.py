"""Attaching under the second loader: libbpf's own bpf_program__attach() and bpf_map__attach_struct_ops().

Where libbpf leaves attaching to its user (no attach function in the section's definition: XDP, cgroups, sockets, tc),
and where it has already taken the object down because it gave up at another program, our own way is taken, with the
program libbpf loaded.
"""

from __future__ import annotations

import ctypes
import os

from . import attach_struct_ops
from .attach import answer, attach_program
from .attach_uprobe import find_binary
from .btf_load import variable_places
from .errors import GuestError
from .struct_ops import StructOps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import BpfObject
    from .libbpf_loader import Load

_HOW = "bpf_program__attach() of libbpf %s"
_NO_PROBE = "probe gone: the notes of the binary have no %s"
_ENOENT, _EOPNOTSUPP = 2, 95
_USER = ("uprobe", "uretprobe", "usdt")


def attach(
    load: Load, machine: Any, entry: dict[str, Any], progress: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Attach a program that the kernel has taken, detach it, report (docs/facts.md)."""
    lib, pointer, verdict = load.lib, load.progs[entry["name"]], load.doors.verdicts[entry["name"]]
    assert verdict.fd is not None
    if lib.bpf_program__fd(pointer) < 0:
        return attach_program(machine, verdict.fd, entry, load.maps, progress)
    progress({"type": "progress", "phase": "attach", "prog": entry["name"]})
    how, before = _HOW % lib.version, len(load.log.warnings)
    link = lib.bpf_program__attach(pointer)
    number = ctypes.get_errno()
    if link is not None:
        lib.bpf_link__destroy(link)
        return answer("attached", how)
    words = load.log.warnings[before:]
    ours = attach_program(machine, verdict.fd, entry, load.maps, progress)
    elsewhere = _in_user_space(entry) and (ours["stand_in"] is not None or ours["status"] == "refused")
    if (number == _EOPNOTSUPP and not words) or elsewhere:
        return ours  # nothing libbpf does by itself, or a binary that is not here
    if find_binary((entry["attach_target"] or "").partition(":")[0]) is None and _in_user_space(entry):
        return answer("not_attempted", how, error="\n".join(words[-2:]))
    said = "\n".join(words[-2:]) or (_NO_PROBE % entry["attach_target"] if number == _ENOENT else os.strerror(number))
    error = ours["error"] if ours["status"] == "refused" else said
    return answer("refused", how, errno=number, error=error)


def _in_user_space(entry: dict[str, Any]) -> bool:
    return str(entry["section"]).removeprefix("?").startswith(_USER)


def attach_struct_ops_of(load: Load, file: BpfObject, progs: dict[str, dict[str, Any]]) -> None:
    """Register each struct_ops map of an object that libbpf has loaded as a whole."""
    try:
        instances = StructOps(file, variable_places(file)).instances
    except GuestError:
        return  # libbpf has said what is wrong with it
    for instance in instances:
        pointer = load.maps.get(instance.item.name)
        names = [prog.name for prog in instance.progs.values() if progs.get(prog.name, {}).get("loaded")]
        if pointer is None or not names or not instance.item.autocreate:
            continue
        found = attach_struct_ops.missing(instance, lambda prog: progs.get(prog.name, {}).get("loaded"))
        found = found or _register(load, pointer, instance)
        for name in names:
            progs[name]["attach"] = found


def _register(load: Load, pointer: int, instance: Any) -> dict[str, Any]:
    link = load.lib.bpf_map__attach_struct_ops(pointer)
    number = ctypes.get_errno()
    if link is None:
        return attach_struct_ops.refusal(instance, number)
    load.lib.bpf_link__destroy(link)
    return answer("attached", "bpf_map__attach_struct_ops() of libbpf %s" % load.lib.version)
