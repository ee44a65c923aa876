"""What a field has become on another kernel: a search of its BTF, a suggestion and never a fact.

A rename leaves traces: the new member is one the other kernel does not have, it stands between the same neighbours, it
has the same type, its name is similar (`state` -> `__state`). A move into a named or unnamed member keeps the last
word of the path. Each trace is worth points; below `ENOUGH` nothing is suggested.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import NamedTuple

from harness.c_types import c_type
from harness.guest.btf import (
    BTF_KIND_ARRAY,
    BTF_KIND_ENUM,
    BTF_KIND_ENUM64,
    BTF_KIND_INT,
    BTF_KIND_PTR,
    BTF_KIND_STRUCT,
    BTF_KIND_UNION,
    Btf,
    Type,
)
from harness.guest.errors import CoreError
from harness.guest.names import essential_name

_COMPOSITE = (BTF_KIND_STRUCT, BTF_KIND_UNION)
_DEPTH = 3  # named members to look into; unnamed ones do not count
_MOST_FIELDS = 4000
ENOUGH = 5.0


class Field(NamedTuple):
    """A member of a type, unnamed ones on the way left out of `path`; `before` and `after` are its neighbours."""

    path: tuple[str, ...]
    type_id: int
    bit_offset: int
    bitfield_size: int
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """The likely counterpart of `known` (a path on the kernel that has it) on the other kernel, and what speaks for it.

    `kind`: of a `field` `known` and `found` are paths below the struct `root`, `known_type` and `found_type` C for
    people; of an `enumerator` they are names in the enum `root`, and its values; of a `type` names and descriptions.
    """

    kind: str = "field"
    root: str
    known: tuple[str, ...]
    found: tuple[str, ...]
    known_type: str
    found_type: str
    reasons: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """`task_struct.state (volatile long) is likely task_struct.__state (unsigned int) there: ...`"""
        head = {"field": f"{self.root}.", "enumerator": f"{self.root}::"}.get(self.kind, "")
        was, now = (f"{head}{'.'.join(path)}" for path in (self.known, self.found))
        return f"{was} ({self.known_type}) is likely {now} ({self.found_type}) there: {', '.join(self.reasons)}"


def successor(has: Btf, lacks: Btf, root: str, path: Sequence[str]) -> Suggestion | None:
    """The likely counterpart in `lacks` of a member that `has` has; None when there is no type or nothing is likely."""
    ours, theirs = _composite(has, root), _composite(lacks, root)
    if ours is None or theirs is None:
        return None
    here, there = list(_fields(has, ours)), list(_fields(lacks, theirs))
    known = next((item for item in here if item.path == tuple(path)), None)
    if known is None:
        return None
    if any(item.path == known.path for item in there):
        return None
    old = {item.path for item in here}
    scored = [(_points(has, lacks, known, item), item) for item in there if item.path not in old]
    best = max(scored, key=lambda pair: sum(points for points, _ in pair[0]), default=None)
    if best is None or sum(points for points, _ in best[0]) < ENOUGH:
        return None
    return Suggestion(
        root=root, known=known.path, found=best[1].path, known_type=c_type(has, known.type_id),
        found_type=c_type(lacks, best[1].type_id), reasons=tuple(reason for points, reason in best[0] if points),
    )  # fmt: skip


def find_field(btf: Btf, root: str, path: Sequence[str]) -> Field | None:
    """The member of a type by its path; None when it has none."""
    top = _composite(btf, root)
    return next((item for item in _fields(btf, top) if item.path == tuple(path)), None) if top is not None else None


def _composite(btf: Btf, name: str) -> Type | None:
    """The type of that essential name that is a whole struct or union; of several the largest."""
    types = [btf.type(id_) for id_ in btf.ids_by_essential_name(essential_name(name))]
    whole = [item for item in types if item.kind in _COMPOSITE and item.name == name]
    return max(whole, key=lambda item: item.vlen, default=None)


def _fields(btf: Btf, top: Type) -> Iterator[Field]:
    """All members, those of unnamed members in their place, those of named ones below them, up to `_DEPTH`."""
    left = [_MOST_FIELDS]

    def walk(t: Type, path: tuple[str, ...], start: int) -> Iterator[Field]:
        members = btf.members(t)
        for number, (name, type_id, offset, bits) in enumerate(members):
            left[0] -= 1
            if left[0] < 0:
                return
            inner = btf.skip_mods_and_typedefs(type_id)
            below = (*path, name) if name else path
            if name:
                before = members[number - 1][0] if number else ""
                after = members[number + 1][0] if number + 1 < len(members) else ""
                yield Field(below, type_id, start + offset, bits, before, after)
            if inner.kind in _COMPOSITE and len(below) < _DEPTH:
                yield from walk(inner, below, start + offset)

    return walk(top, (), 0)


def _points(has: Btf, lacks: Btf, known: Field, found: Field) -> list[tuple[float, str]]:
    """What speaks for one being the other."""
    was, now = known.path[-1], found.path[-1]
    kind_was, kind_now = _kind(has, known.type_id), _kind(lacks, found.type_id)
    if kind_was != kind_now:
        return []
    plain = (was.strip("_"), now.strip("_"))
    similar = SequenceMatcher(None, *plain).ratio()
    same_place = known.path[:-1] == found.path[:-1]
    moved = was == now
    name = 4.0 if moved else 4.0 if plain[0] == plain[1] else 3.0 * similar if similar >= 0.5 else 0.0
    type_was, type_now = c_type(has, known.type_id), c_type(lacks, found.type_id)
    neighbours = sum(one == other != "" for one, other in ((known.before, found.before), (known.after, found.after)))
    return [
        (name, "the same name" if moved else f"a similar name ({was}, {now})"),
        (2.0 if type_was == type_now else 0.5, "the same type" if type_was == type_now else f"also {_A[kind_now]}"),
        (1.5 * neighbours, _neighbours(known, found)),
        (1.0 if same_place and not moved else 0.0, "in the same struct"),
    ]


def _neighbours(known: Field, found: Field) -> str:
    words = []
    if known.before and known.before == found.before:
        words.append(f"after {known.before}")
    if known.after and known.after == found.after:
        words.append(f"before {known.after}")
    return "it stands " + " and ".join(words)


_A = {
    "number": "a number", "pointer": "a pointer", "composite": "a struct or union", "array": "an array",
    "?": "the like",
}  # fmt: skip
_KINDS = {
    BTF_KIND_INT: "number", BTF_KIND_ENUM: "number", BTF_KIND_ENUM64: "number", BTF_KIND_PTR: "pointer",
    BTF_KIND_STRUCT: "composite", BTF_KIND_UNION: "composite", BTF_KIND_ARRAY: "array",
}  # fmt: skip


def _kind(btf: Btf, type_id: int) -> str:
    """What libbpf's bpf_core_fields_are_compat tells apart."""
    return _KINDS.get(btf.skip_mods_and_typedefs(type_id).kind, "?")


def size_of(btf: Btf, type_id: int) -> int | None:
    """Bytes, None for what has none."""
    try:
        return btf.resolve_size(type_id)
    except CoreError:
        return None
