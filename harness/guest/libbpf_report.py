"""Small parts of the facts that do not need a Load: rows, settings, evidence."""

from __future__ import annotations

import ctypes
import os
from time import perf_counter

from . import btf_load, settings
from .bpf_object import SEC_RODATA
from .core_spec import kind_word
from .evidence import Collector, Subject, is_guard, returns_nothing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import BpfObject
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


def extern_rows(log: DebugLog) -> list[dict[str, Any]]:
    """One row for each extern libbpf knows of; values are libbpf's text."""
    return [
        {"name": name, "kind": said["kind"], "type": None, "value": said["value"], "weak": said["weak"],
         "outcome": _extern_outcome(said), "reason": said["reason"]}
        for name, said in log.externs.items()
    ]  # fmt: skip


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
