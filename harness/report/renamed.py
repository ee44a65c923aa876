"""What a type or an enumerator has become on another kernel: as `successor` for members, a suggestion and never a fact.

A renamed type keeps most of its members (an enum its enumerators), often its size, and the name it gets is one the
other kernel did not have. A renamed enumerator stands between the same neighbours of its enum, often with the same
value.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from itertools import takewhile

from harness.c_types import c_type
from harness.guest.btf import (
    BTF_KIND_ENUM,
    BTF_KIND_ENUM64,
    BTF_KIND_STRUCT,
    BTF_KIND_TYPEDEF,
    BTF_KIND_UNION,
    Btf,
    Type,
)
from harness.guest.names import essential_name
from harness.report.successor import ENOUGH, Suggestion, size_of

_KINDS = {
    "struct": (BTF_KIND_STRUCT,), "union": (BTF_KIND_UNION,), "enum": (BTF_KIND_ENUM, BTF_KIND_ENUM64),
    "typedef": (BTF_KIND_TYPEDEF,),
}  # fmt: skip
_WORDS = {kind: word for word, kinds in _KINDS.items() for kind in kinds}
_MOST_NAMES = 40  # by likeness of name, whose insides are then compared
_LIKE = 0.5
ENOUGH_FOR_A_TYPE = 6.0  # the choice is larger than among the members of one type


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """A type as it is compared: `parts` are its members' or enumerators' names."""

    name: str
    parts: frozenset[str]
    size: int | None
    said: str


def type_successor(has: Btf, lacks: Btf, keyword: str, name: str) -> Suggestion | None:
    """The likely counterpart in `lacks` of a type that only `has` has. `keyword`: struct, union, enum, typedef."""
    kinds = _KINDS.get(keyword)
    if kinds is None or named(has, keyword, name) is None or named(lacks, keyword, name) is not None:
        return None
    ours = _shape(has, named(has, keyword, name))
    old = set(_names(has, kinds))
    there = (_shape(lacks, lacks.type(id_)) for new, id_ in _names(lacks, kinds).items() if new not in old)
    scored = [(_type_points(ours, other), other) for other in _nearest(ours, there)]
    best = max(scored, key=lambda pair: sum(points for points, _ in pair[0]), default=None)
    if best is None or sum(points for points, _ in best[0]) < ENOUGH_FOR_A_TYPE:
        return None
    return Suggestion(
        kind="type", root=name, known=(name,), found=(best[1].name,), known_type=f"{keyword}, {ours.said}",
        found_type=f"{keyword}, {best[1].said}", reasons=tuple(reason for points, reason in best[0] if points),
    )  # fmt: skip


def enumerator_successor(has: Btf, lacks: Btf, enum: str, enumerator: str) -> Suggestion | None:
    """The likely counterpart in `lacks` of an enumerator that only `has` has, in the enum of the same name."""
    ours, theirs = named(has, "enum", enum), named(lacks, "enum", enum)
    if ours is None or theirs is None:
        return None
    here, there = has.enumerators(ours), lacks.enumerators(theirs)
    at = next((place for place, (name, _) in enumerate(here) if name == enumerator), None)
    if at is None or enumerator in dict(there):
        return None
    old = dict(here)
    scored = [(_enumerator_points(here, at, there, place), name, value)
              for place, (name, value) in enumerate(there) if name not in old]  # fmt: skip
    best = max(scored, key=lambda item: sum(points for points, _ in item[0]), default=None)
    if best is None or sum(points for points, _ in best[0]) < ENOUGH:
        return None
    return Suggestion(
        kind="enumerator", root=enum, known=(enumerator,), found=(best[1],), known_type=f"= {here[at][1]}",
        found_type=f"= {best[2]}", reasons=tuple(reason for points, reason in best[0] if points),
    )  # fmt: skip


def named(btf: Btf, keyword: str, name: str) -> Type | None:
    """The type of exactly that name; of several the one with the most members."""
    found = [btf.type(id_) for id_ in btf.ids_by_essential_name(essential_name(name))]
    return max((t for t in found if t.kind in _KINDS[keyword] and t.name == name), key=lambda t: t.vlen, default=None)


@lru_cache(maxsize=8)
def _names(btf: Btf, kinds: tuple[int, ...]) -> dict[str, int]:
    """Every name of those kinds and its type of most members."""
    found: dict[str, int] = {}
    for id_ in range(1, btf.count):
        if btf.kind(id_) in kinds:
            t = btf.type(id_)
            if t.name and (t.name not in found or btf.type(found[t.name]).vlen < t.vlen):
                found[t.name] = id_
    return found


def _nearest(ours: _Shape, there: Iterator[_Shape]) -> list[_Shape]:
    """Those that share members, and of the others the most alike by name: comparing names letter by letter is slow."""
    words = set(ours.name.lower().split("_")) - {""}

    def shared(other: _Shape) -> tuple[int, int]:
        return len(ours.parts & other.parts), len(words & set(other.name.lower().split("_")))

    return sorted(there, key=shared, reverse=True)[:_MOST_NAMES]


def _shape(btf: Btf, t: Type | None) -> _Shape:
    if t is None:
        return _Shape(name="", parts=frozenset(), size=None, said="")
    if t.kind == BTF_KIND_TYPEDEF:
        below = btf.skip_mods_and_typedefs(t.type)
        inside = _shape(btf, below)
        return _Shape(name=t.name, parts=inside.parts, size=inside.size, said=f"of {c_type(btf, t.type)}")
    size = size_of(btf, t.id) if t.kind in _WORDS else None
    if t.kind in _KINDS["enum"]:
        parts = frozenset(name for name, _ in btf.enumerators(t))
        return _Shape(name=t.name, parts=parts, size=size, said=_count(t.vlen, "enumerator"))
    parts = frozenset(_member_names(btf, t)) if t.kind in _WORDS else frozenset()
    return _Shape(name=t.name, parts=parts, size=size, said=f"{_count(size or 0, 'byte')}")


def _member_names(btf: Btf, t: Type, depth: int = 3) -> Iterator[str]:
    """Names of members, those of unnamed ones in their place."""
    for name, type_id, _, _ in btf.members(t):
        if name:
            yield name
        elif depth:
            inner = btf.skip_mods_and_typedefs(type_id)
            if inner.kind in (BTF_KIND_STRUCT, BTF_KIND_UNION):
                yield from _member_names(btf, inner, depth - 1)


def _type_points(ours: _Shape, other: _Shape) -> list[tuple[float, str]]:
    shared, either = len(ours.parts & other.parts), len(ours.parts | other.parts)
    same = shared / either if either else 0.0
    return [
        (_name_points(ours.name, other.name), f"a similar name ({ours.name}, {other.name})"),
        (4.0 * same if same >= _LIKE else 0.0, f"{shared} of {either} members have the same names"),
        (1.5 if ours.size and ours.size == other.size else 0.0, "the same size"),
    ]


def _enumerator_points(
    here: Sequence[tuple[str, int]], at: int, there: Sequence[tuple[str, int]], place: int
) -> list[tuple[float, str]]:
    sides = [
        (word, one) for word, step in (("after", -1), ("before", 1))
        if (one := _neighbour(here, at + step)) is not None and one == _neighbour(there, place + step)
    ]  # fmt: skip
    stands = " and ".join(f"{word} {name}" for word, name in sides)
    was, now = here[at], there[place]
    return [
        (_name_points(was[0], now[0]), f"a similar name ({was[0]}, {now[0]})"),
        (1.5 * len(sides), f"it stands {stands}"),
        (1.5 if was[1] == now[1] else 0.0, "the same value"),
    ]


def _neighbour(names: Sequence[tuple[str, int]], at: int) -> str | None:
    return names[at][0] if 0 <= at < len(names) else None


def _name_points(was: str, now: str) -> float:
    """4 for names that differ in underscores only, 3.5 where one holds all words of the other, less for alike ones.

    Words at the front that both have (an enum's prefix, a subsystem's) say nothing.
    """
    one, other = was.strip("_").split("_"), now.strip("_").split("_")
    if one == other:
        return 4.0
    if set(one) <= set(other) or set(other) <= set(one):
        return 3.5
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    similar = SequenceMatcher(None, "_".join(one[shared:]), "_".join(other[shared:])).ratio()
    return 3.0 * similar if similar >= _LIKE else 0.0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
