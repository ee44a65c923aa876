"""struct_ops, attached as a whole: the map gets its value, with the programs' descriptors where the kernel's struct has
function pointers, which registers it (bpf_map__attach_struct_ops()); a map of `.struct_ops.link` is registered by a
link (6.4). Registered means known: a congestion control is then one that could be chosen, a scheduler of sched_ext
schedules, for the moment it takes to undo it.
"""

from __future__ import annotations

import os
import struct

from .attach import answer
from .maps import BPF_F_LINK
from .names import essential_name
from .prog_types import ATTACH_TYPE
from .syscall import LINK_CREATE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import Prog
    from .btf import Btf
    from .struct_ops import Instance, StructOps
    from .syscall import Bpf

_KEY = bytes(4)
_EINVAL, _EEXIST = 22, 17
_REASONS = {
    _EINVAL: "the kernel refuses this struct: something it needs is missing or not as it wants it",
    _EEXIST: "one of the same name is registered",
}


def attach_all(
    bpf: Bpf, local: Btf | None, found: StructOps, progs: dict[int, int], facts: list[dict[str, Any]],
    progress: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """Register each struct and put the answer into the facts of its programs. `progs`: descriptors of those that were
    loaded, by id of their Prog.
    """
    by_name = {prog["name"]: prog for prog in facts if prog["loaded"]}
    for instance in found.instances if local is not None else ():
        own = [by_name[prog.name] for prog in instance.progs.values() if prog.name in by_name]
        if own and instance.item.fd is not None and instance.kernel is not None:
            progress({"type": "progress", "phase": "attach", "prog": own[0]["name"]})
            assert local is not None
            attached = _attach(bpf, local, instance, progs)
            for prog in own:
                prog["attach"] = attached


def missing(instance: Instance, loaded: Any) -> dict[str, Any] | None:
    """The answer where a program of the struct was refused: it is not registered in part. `loaded(prog)` says."""
    lacking: list[Prog] = [prog for prog in instance.progs.values() if not loaded(prog)]
    if not lacking:
        return None
    return answer("not_attempted", how(instance), error="%s of the same struct was not loaded" % lacking[0].name)


def how(instance: Instance) -> str:
    """In words, which request registers it."""
    link = instance.item.flags & BPF_F_LINK
    return "struct_ops map %s, %s" % (instance.item.name, "BPF_LINK_CREATE" if link else "BPF_MAP_UPDATE_ELEM")


def refusal(instance: Instance, number: int) -> dict[str, Any]:
    """The answer for an errno of the kernel's."""
    return answer("refused", how(instance), errno=number, error=_REASONS.get(number, os.strerror(number)))


def _attach(bpf: Bpf, local: Btf, instance: Instance, progs: dict[int, int]) -> dict[str, Any]:
    absent = missing(instance, lambda prog: id(prog) in progs)
    if absent is not None:
        return absent
    item = instance.item
    assert item.fd is not None
    try:
        bpf.map_update(item.fd, _KEY, value(local, instance, progs))
        if item.flags & BPF_F_LINK:
            os.close(bpf.call(LINK_CREATE, struct.pack("=IIII", item.fd, 0, ATTACH_TYPE["struct_ops"], 0)))
        else:
            bpf.map_delete(item.fd, _KEY)
    except OSError as error:
        return refusal(instance, error.errno or 0)
    return answer("attached", how(instance))


def value(local: Btf, instance: Instance, progs: dict[int, int]) -> bytes:
    """The map's value as the kernel lays it out: each member of ours in the place of the kernel's of that name
    (bpf_map__init_kern_struct_ops()), a program's descriptor for a function.
    """
    assert instance.kernel is not None
    btf, type_id, value_id = instance.kernel
    whole = bytearray(btf.type(value_id).size)
    start = next(place for name, _, place, _ in btf.members(btf.type(value_id)) if name == "data") // 8
    theirs = {name: start + place // 8 for name, _, place, _ in btf.members(btf.type(type_id))}
    for index, (name, member_type, place, _) in enumerate(local.members(instance.type)):
        at = theirs.get(essential_name(name))
        prog = instance.progs.get(index)
        if at is None:
            continue
        if prog is not None:
            struct.pack_into("=Q", whole, at, progs[id(prog)])
        else:
            size = local.resolve_size(member_type)
            whole[at : at + size] = instance.item.data[place // 8 : place // 8 + size]
    return bytes(whole)
