"""Small parts of the facts that do not need a Load: rows, settings, evidence."""

from __future__ import annotations

import ctypes
import os
import sys
from time import perf_counter

from . import btf_load, settings
from .bpf_object import SEC_RODATA
from .core_spec import kind_word
from .errors import GuestError
from .evidence import Collector, Subject, is_guard, returns_nothing
from .externs import Externs
from .kconfig import parse_u64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import BpfObject
    from .kconfig import Extern
    from .libbpf_debug_log import DebugLog
    from .libbpf_doors import Verdict


def object_name(name: str) -> str:
    """What libbpf would call the object had it opened the file itself (bpf_object__new): the base name up to the first
    dot.
    """
    return os.path.basename(name).partition(".")[0]


def core_kind(kind: int) -> str:
    """libbpf's word for a relocation kind."""
    return kind_word(kind)


def extern_rows(log: DebugLog, file: BpfObject | None, kconfig: bytes | None) -> list[dict[str, Any]]:
    """One row for each extern libbpf knows of, spelled as our own loader spells its rows (externs.py). Outcomes, places
    and addresses are what libbpf said, Kconfig values the bytes in its `.kconfig` map (`kconfig`); from the object
    `file` comes only what is declared there: kind, type, weak. Without either, values are libbpf's text.
    """
    declared = _declared(file) if log.externs else None
    rows = {row["name"]: row for row in declared.facts()} if declared is not None else {}
    config = {extern.name: extern for extern in declared.kconfig} if declared is not None else {}
    found = []
    for name, said in log.externs.items():
        known = rows.get(name, said)
        found.append(
            {"name": name, "kind": known["kind"], "type": known.get("type"), "value": said["value"],
             "weak": known["weak"], "outcome": _extern_outcome(said), "reason": said["reason"]}
        )  # fmt: skip
        if name in config:
            _set_kconfig_value(found[-1], config[name], said["off"], kconfig)
        elif name in rows:
            found[-1]["value"] = parse_u64(said["value"] or "") if known["type"] == "typeless" else None
    return found


def _declared(file: BpfObject | None) -> Externs | None:
    try:
        return Externs(file) if file is not None else None
    except GuestError:
        return None


def _set_kconfig_value(row: dict[str, Any], extern: Extern, off: int | None, image: bytes | None) -> None:
    """From libbpf's memory, at the place libbpf named; as `externs` has it, a strong one without a value has none."""
    if row["outcome"] != "resolved" and not extern.weak:
        row["value"] = None
    elif image is not None and off is not None and off + extern.size <= len(image):
        extern.value = image[off : off + extern.size]
        row["value"] = extern.plain_value(sys.byteorder)
    else:
        row["type"] = None


def _extern_outcome(said: dict[str, Any]) -> str:
    if (said["reason"] or "").startswith("not found"):
        return "missing"
    return said["outcome"] or "missing"


class _Image:
    """Initial contents of one of libbpf's maps, as `settings.apply` wants a map: `data` is libbpf's own memory."""

    __slots__ = ("data", "kind", "real_name")

    def __init__(self, name: str, address: int, size: int) -> None:
        self.kind = SEC_RODATA
        self.real_name = ".rodata" if name.endswith(".rodata") else name
        self.data = (ctypes.c_char * size).from_address(address)


def apply_settings(file: BpfObject, images: dict[str, tuple[int, int]], values: dict[str, str]) -> None:
    """Write the request's values into libbpf's read-only images (name -> address, size). Raises SettingError."""
    maps = [_Image(name, *place) for name, place in images.items()]
    settings.apply(file, maps, btf_load.variable_places(file), values)  # type: ignore[arg-type]


def collect_evidence(
    machine: Any, entry: dict[str, Any], verdict: Verdict, lines: dict[int, dict[str, Any]], file: BpfObject | None,
    progress: Callable[[dict[str, Any]], None], seconds: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
    """The same evidence as for our own loader, from libbpf's final instructions and attributes (`verdict.load`)."""
    started = perf_counter()
    features, load = machine.features, verdict.load
    subject = Subject(load, [(func["start"], func["insns"]) for func in entry["funcs"]], verdict.fd is not None)
    if load.func_info and features["btf_func_global"]:
        subject.is_static = [not func["global"] for func in entry["funcs"]]
        subject.void = [returns_nothing(file, func["name"]) for func in entry["funcs"]]
    subject.relos = [(row["relo"], row["insn"]) for row in entry["relos"]]
    subject.guards = [pair for pair in subject.relos if is_guard(lines[pair[0]]["kind"], lines[pair[0]]["outcome"])]
    subject.processed = entry["verifier"]["processed_insns"] if entry["verifier"] else None
    collector = Collector(machine.bpf, features["dead_code_removal"] and features["btf_func"])
    try:
        return collector.collect(
            subject, lambda phase: progress({"type": "progress", "phase": phase, "prog": entry["name"]})
        )
    finally:
        collector.close()
        seconds["evidence"] += perf_counter() - started
