"""Hundreds of answers, said in a few lines: equal ones together, and the kernels they hold for as ranges. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from harness.model.release import range_text, runs
from harness.model.sweep import Class, Range
from harness.model.verdict import Evidence, Liveness
from harness.sweep.answers import Fate
from harness.sweep.targets import Target

_SHOWN_VALUES = 4


def classes(fates: Mapping[int, Fate], targets: Sequence[Target]) -> tuple[Class, ...]:
    """Classes of one thing's fates (by target index; `targets` in order), the largest first; resolved ones last."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for index in sorted(fates):
        groups.setdefault(fates[index].key, []).append(index)
    judged = sorted(fates)
    made = [_class([fates[index] for index in members], members, judged, targets) for members in groups.values()]
    return tuple(sorted(made, key=lambda one: (one.outcome in ("resolved", "loads"), -one.count, one.reason or "")))


def _class(fates: Sequence[Fate], members: Sequence[int], judged: Sequence[int], targets: Sequence[Target]) -> Class:
    first = fates[0]
    values = sorted({fate.value for fate in fates if fate.value is not None})
    return Class(
        outcome=first.outcome,
        count=len(members),
        ranges=ranges(members, judged, targets),
        reason=first.reason,
        liveness=None if first.liveness is None else Liveness(first.liveness),
        evidence=Evidence.PREDICTED if first.liveness is not None else None,
        values=tuple(values[:_SHOWN_VALUES]) if first.value_matters else (),
        distinct_values=len(values),
    )


def ranges(members: Iterable[int], judged: Sequence[int], targets: Sequence[Target]) -> tuple[Range, ...]:
    """The members as ranges of the judged targets, within each distribution and architecture."""
    chosen = set(members)
    found = []
    for (distro, arch), group in groupby(judged, key=lambda index: (targets[index].distro, targets[index].arch)):
        line = list(group)
        for start, end in runs([index in chosen for index in line]):
            inside = line[start:end]
            found.append(
                Range(
                    distro=distro,
                    arch=arch,
                    text=range_text(start, end, [targets[index].release for index in line]),
                    btfs=tuple(targets[index].id for index in inside),
                )
            )
    return tuple(found)
