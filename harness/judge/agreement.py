"""Do two loaders agree on an object? Facts of our own loader against facts of the real libbpf, from the same kernel:
pure.

Compared are what libbpf's users would notice: whether the object and each program load and where they are refused,
every relocation's outcome, values and bytes, externs, and all final instructions, with what differs by nature
(descriptors, module indexes, kernel addresses) replaced by the names in `refs`. Texts for people are not compared.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Facts = Mapping[str, Any]
Row = dict[str, Any]

_LDIMM64, _PSEUDO_BTF_ID = 0x18, 3
_MAX_INSN_ROWS = 5
_SPEC_MAX = 255  # libbpf writes a spec into 256 bytes (spec_buf of bpf_core_calc_relo_insn())


def disagreements(python: Facts, libbpf: Facts) -> list[Row]:
    """What the two do not agree on; empty when they do.

    A row has `what` (object, skipped, core_relo, extern, map, prog, insns), `where` (its name), `field`, and what each
    says under `python` and `libbpf`.
    """
    errors = [facts["object_error"] for facts in (python, libbpf)]
    stages = {error["stage"] for error in errors if error is not None}
    if "open" in stages:  # there is no object to compare
        return list(_object(python, libbpf))
    return [
        *_object(python, libbpf),
        *_core_relos(python, libbpf),
        *_named("extern", python["externs"], libbpf["externs"], _extern),
        # Stopped at externs or maps, our loader has not come to list them all; libbpf lists what it opened.
        *_named("map", python["maps"], libbpf["maps"], _map, only_common=bool(stages & {"externs", "maps"})),
        *_progs(python, libbpf),
    ]


def _row(what: str, where: str, field: str, mine: object, theirs: object) -> Row:
    return {"what": what, "where": where, "field": field, "python": mine, "libbpf": theirs}


def _object(python: Facts, libbpf: Facts) -> Iterator[Row]:
    mine, theirs = python["object_error"], libbpf["object_error"]
    if _place(mine) != _place(theirs):
        yield _row("object", "", "object_error", _brief(mine), _brief(theirs))
    if python["skipped_core_relos"] != libbpf["skipped_core_relos"] and mine is None:
        yield _row("skipped", "", "skipped_core_relos", python["skipped_core_relos"], libbpf["skipped_core_relos"])


def _place(error: Mapping[str, Any] | None) -> tuple[str, int | None] | None:
    return None if error is None else (error["stage"], error["errno"])


def _brief(error: Mapping[str, Any] | None) -> str | None:
    return None if error is None else f"{error['stage']} (errno {error['errno']}): {error['message']}"


def _core_relos(python: Facts, libbpf: Facts) -> Iterator[Row]:
    mine = {_relo_key(line): line for line in python["core_relos"]}
    theirs = {_relo_key(line): line for line in libbpf["core_relos"]}
    fatal_in_subprogram = _gave_up_for_all(libbpf)
    for key in dict.fromkeys((*mine, *theirs)):
        if key not in mine or key not in theirs:
            if not fatal_in_subprogram or key in theirs:  # libbpf said nothing about what came after the fatal one
                yield _row("core_relo", key, "present", key in mine, key in theirs)
            continue
        for field, one, other in _relo_fields(mine[key], theirs[key]):
            yield _row("core_relo", key, field, one, other)


def _relo_key(line: Mapping[str, Any]) -> str:
    return f"{line['section']}: {line['prog']}+{line['insn']} {line['kind']}"


def _relo_fields(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    yield from _fields(mine, theirs, ("outcome", "before"))
    yield from _specs(mine, theirs, "local_spec")
    if mine["outcome"] == theirs["outcome"] != "error":
        yield from _specs(mine, theirs, "target_spec")
        yield from _fields(mine, theirs, ("new_value", "after"))
    if theirs["orig_value"] is not None:  # libbpf names it only where it patches a value
        yield from _fields(mine, theirs, ("orig_value",))


def _specs(mine: Mapping[str, Any], theirs: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any, Any]]:
    if (mine[name] or "")[:_SPEC_MAX] != (theirs[name] or "")[:_SPEC_MAX]:
        yield name, mine[name], theirs[name]


def _fields(mine: Mapping[str, Any], theirs: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, Any, Any]]:
    for name in names:
        if mine[name] != theirs[name]:
            yield name, mine[name], theirs[name]


def _map(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    # A libbpf older than the kind has no word for it.
    yield from _fields(mine, theirs, ("type", "errno") if theirs["type"] is not None else ("errno",))


def _extern(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    yield from _fields(mine, theirs, ("outcome",))
    if mine["kind"] != "kconfig" or mine["value"] is None or theirs["value"] is None:
        return  # a symbol's address is the kernel's matter
    spelled = theirs.get("type") is None  # libbpf's own text, of which numbers can be read
    value = _number(theirs["value"]) if spelled else theirs["value"]
    if value is not None and (not spelled or isinstance(mine["value"], int)) and mine["value"] != value:
        yield "value", mine["value"], theirs["value"]


def _number(text: object) -> int | None:
    try:
        return int(str(text), 0)
    except ValueError:
        return None


def _named(
    what: str,
    mine: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    compare: Any,
    *,
    only_common: bool = False,
) -> Iterator[Row]:
    ours = {row["name"]: row for row in mine}
    others = {row["name"]: row for row in theirs}
    for name in dict.fromkeys((*ours, *others)):
        if name not in ours or name not in others:
            if only_common:
                continue
            yield _row(what, name, "present", name in ours, name in others)
            continue
        for field, one, other in compare(ours[name], others[name]):
            yield _row(what, name, field, one, other)


# --- programs ---------------------------------------------------------------------------------------------------------


def _gave_up_for_all(libbpf: Facts) -> bool:
    """libbpf relocates subprograms whether they are called or not: a fatal relocation in one leaves it no program to
    judge.
    """
    error = libbpf["object_error"]
    if error is None or error["stage"] != "core":
        return False
    return all(prog["stage"] == "core" for prog in libbpf["progs"] if prog["autoload"])


def _progs(python: Facts, libbpf: Facts) -> Iterator[Row]:
    mine = {prog["name"]: prog for prog in python["progs"]}
    theirs = {prog["name"]: prog for prog in libbpf["progs"]}
    hopeless = _gave_up_for_all(libbpf)
    for name in dict.fromkeys((*mine, *theirs)):
        if name not in mine or name not in theirs:
            yield _row("prog", name, "present", name in mine, name in theirs)
        elif not (hopeless and mine[name]["alone"]):
            yield from _prog(name, mine[name], theirs[name])


def _prog(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Row]:
    fields = ("autoload", "loaded", "stage", "errno", "prog_type", "section")
    for field, one, other in _fields(mine, theirs, fields):
        yield _row(
            "prog", name, field, one if field != "errno" else _why(mine), other if field != "errno" else _why(theirs)
        )
    if mine["insns"] and theirs["insns"] and not (mine["stage"] == theirs["stage"] == "pre_verifier"):
        yield from _insns(name, mine, theirs)


def _why(prog: Mapping[str, Any]) -> str:
    return f"{prog['errno']}: {prog['error']}"


def _insns(name: str, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[Row]:
    ours, others = normalised(mine), normalised(theirs)
    if len(ours) != len(others):
        yield _row("insns", name, "count", len(ours), len(others))
        return
    different = [index for index, (one, other) in enumerate(zip(ours, others, strict=True)) if one != other]
    for index in different[:_MAX_INSN_ROWS]:
        yield _row("insns", name, f"insn {index}", _spelled(ours[index]), _spelled(others[index]))
    if len(different) > _MAX_INSN_ROWS:
        yield _row("insns", name, "more", f"{len(different)} instructions differ", None)
    mine_relos = sorted(row["insn"] for row in mine["relos"])
    their_relos = sorted(row["insn"] for row in theirs["relos"])
    if mine_relos != their_relos:
        yield _row("insns", name, "relos", mine_relos, their_relos)


def _spelled(insn: tuple[object, ...]) -> str:
    return " ".join(str(part) for part in insn)


def normalised(prog: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """The final instructions of a program's facts as (code, registers, off, imm), with names for what the loader made
    up.

    A map's descriptor, a module's index among the descriptors of kernel functions, a module BTF's descriptor and a
    kernel address are replaced; offsets into a map and BTF type ids are the same for every loader and stay.
    """
    code = base64.b64decode(prog["insns"])
    insns: list[tuple[object, ...]] = list(struct.iter_unpack("<BBhi", code))
    for ref in prog["refs"]:
        if ref["insn"] >= len(insns):
            continue
        kind, index = _kind(ref, insns[ref["insn"]]), ref["insn"]
        rule, name = _RULES.get(kind, ()), f"{kind}:{ref['name']}"
        for slot, field in rule:
            place = index + slot
            if place < len(insns):
                parts = list(insns[place])
                parts[field] = name
                insns[place] = tuple(parts)
    return insns


def _kind(ref: Mapping[str, Any], insn: tuple[object, ...]) -> str:
    """A symbol's address by BTF id (a typed ksym) is not made up by the loader, one from /proc/kallsyms is."""
    registers = insn[1]
    typed = insn[0] == _LDIMM64 and isinstance(registers, int) and registers >> 4 == _PSEUDO_BTF_ID
    return "btf_id" if typed and ref["kind"] == "ksym" else str(ref["kind"])


# kind of reference -> (slot, field) pairs that are replaced; field 2 is off, 3 is imm
_RULES: Mapping[str, tuple[tuple[int, int], ...]] = {
    "map_fd": ((0, 3),),
    "map_value": ((0, 3),),
    "kfunc": ((0, 2),),
    "ksym": ((0, 3), (1, 3)),
    "btf_id": ((1, 3),),
}
