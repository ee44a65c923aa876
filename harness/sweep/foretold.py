"""What the verifier reaches of an object's programs, whatever the configuration nobody knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from math import prod
from typing import Any, NamedTuple

from harness.guest.bpf_object import BpfObject, Prog
from harness.guest.errors import GuestError
from harness.inspection import Inspection
from harness.predict.machine import predict
from harness.predict.models import Model
from harness.predict.program import KnownObject, from_object, kconfig_of, places

# What differs from kernel to kernel and decides no branch: predictions are made without it, and then shared.
FREE_KINDS = frozenset({"byte_off", "target_type_id"})
_MOST_ASSUMPTIONS = 32
# All values of a kind there are, to be tried where a configuration is not known.
_VALUES: Mapping[str, tuple[object, ...]] = {"bool": (0, 1), "tristate": ("n", "y", "m")}


class Reached(NamedTuple):
    """What the verifier reaches of one program, by prediction: relocations by index (None: not known), and the helpers
    it calls whatever is assumed of the configuration, and `perhaps` those that this decides about.
    """

    relocations: dict[int, bool | None]
    helpers: frozenset[int]
    perhaps: frozenset[int] = frozenset()


def foretell(
    obj: BpfObject, name: str, settings: Mapping[str, str], inspection: Inspection, model: Model
) -> dict[str, Reached]:
    """What is reached of each entry program; none of a program, or object, that cannot be linked."""
    opaque = [
        (relo["prog"], relo["insn"])
        for relo in inspection.relos
        if relo["kind"] in FREE_KINDS and relo["outcome"] == "resolved" and not _is_access(relo["after"])
    ]
    found: dict[str, Reached] = {}
    for values in _assumptions(inspection.externs):
        try:
            known = KnownObject(obj, name, settings, values)
        except GuestError:
            return {}
        for prog in obj.entry_progs:
            reached = _reached(known, prog, opaque, inspection, model) if prog.autoload else None
            if reached is not None:
                found[prog.name] = _both(found[prog.name], reached) if prog.name in found else reached
    return found


def unpredicted(prog: Prog, inspection: Inspection, obj: BpfObject) -> Reached:
    """A program that was not walked: its own relocations and those of every subprogram, reached or not."""
    entries = {entry.name for entry in obj.entry_progs} - {prog.name}
    found: dict[int, bool | None] = {
        index: None for index, relo in enumerate(inspection.relos) if relo["prog"] not in entries
    }
    return Reached(found, frozenset())


def liveness(states: Iterable[bool | None]) -> str | None:
    """Of a relocation in all programs it stands in: live when any reaches it."""
    judged = list(states)
    if not judged:
        return None
    return "live" if True in judged else "unknown" if None in judged else "eliminated"


def _reached(
    known: KnownObject, prog: Prog, opaque: Iterable[tuple[str, int]], inspection: Inspection, model: Model
) -> Reached | None:
    """None for a program that cannot be linked."""
    try:
        program = from_object(known, prog, opaque)
    except GuestError:
        return None
    found = predict(program, model)
    certain = predict(program, model, certain=True) if program.secrets else found
    relocations = {
        index: True if insn in certain.visited else None if found.reaches(insn) else found.reaches(insn)
        for index, insn in places(program, inspection.relos).items()
    }
    return Reached(relocations, certain.helpers, found.helpers - certain.helpers)


def _both(one: Reached, other: Reached) -> Reached:
    """What holds under both assumptions; what holds under one only is not known."""
    relocations = {
        index: state if other.relocations.get(index) is state else None for index, state in one.relocations.items()
    }
    helpers = one.helpers & other.helpers
    return Reached(relocations, helpers, (one.helpers | one.perhaps | other.helpers | other.perhaps) - helpers)


def _assumptions(externs: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, object]]:
    """Values of Kconfig externs: those known, and each combination of values for switches that are not. Numbers and
    texts that are not known stay so, and so do switches where there are too many of them.
    """
    rows = list(externs)
    fixed = kconfig_of(rows)
    unknown = [row for row in rows if row["name"] not in fixed and row["type"] in _VALUES]
    values = [_VALUES[row["type"]] for row in unknown]
    if prod(map(len, values)) > _MOST_ASSUMPTIONS:
        unknown, values = [], []
    for combination in product(*values):
        yield {**fixed, **{row["name"]: value for row, value in zip(unknown, combination, strict=True)}}


def _is_access(insn: str) -> bool:
    """Whether an instruction (in hex) is a load or store: its offset decides no branch."""
    return int(insn[:2], 16) & 7 in (1, 2, 3)
