"""A sweep for people: what would load where, and each relocation that is not the same everywhere; a line a finding."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from harness import ci_log
from harness.model.sweep import Class, Range, SweepResult, SweptObject, SweptRelocation
from harness.report.untrusted import line

_MOST_RANGES = 6


def render(result: SweepResult) -> str:
    """The whole report as text, ending in a newline."""
    parts = [text for swept in result.objects for text in (*_object(swept), "")]
    return ci_log.plain("\n".join([*parts, *_closing(result)]) + "\n")


def _closing(result: SweepResult) -> Iterator[str]:
    for btf in result.btfs:
        if btf.error is not None:
            yield line(f"not judged: {btf.id}: {btf.error}")
    for note in result.notes:
        yield line(f"note: {note}")
    judged = [btf for btf in result.btfs if btf.error is None]
    distros = len({btf.distro for btf in judged})
    yield (
        f"{_count(len(result.objects), 'object')} against {_count(len(judged), 'BTF')} of"
        f" {_count(distros, 'distribution')} in {result.seconds:.1f} s"
        f" ({result.indexed} indexed anew); liveness is predicted, not proven"
    )


def _object(swept: SweptObject) -> Iterator[str]:
    left_out = f", {swept.other_arch} of another architecture left out" if swept.other_arch else ""
    yield line(
        f"{swept.name}: {_count(len(swept.core_relos), 'relocation')} against {_count(swept.btfs, 'BTF')}{left_out}"
    )
    yield from (line(f"  note: {note}") for note in swept.notes)
    for prog in swept.progs:
        yield line(f"  {prog.name}" + (f"  ({prog.section})" if prog.section else ""))
        yield from (_finding(one, swept.btfs) for one in prog.classes)
    told = [relo for relo in swept.core_relos if is_telling(relo)]
    for group in _alike(told):
        first = group[0]
        where = f"{first.source.file}:{first.source.line}  " if first.source else ""
        again = f"  ({len(group)} times)" if len(group) > 1 else ""
        yield line(f"  {where}{first.field}  {first.kind}{again}")
        yield from (_finding(one, swept.btfs) for one in first.classes)
    same = len(swept.core_relos) - len(told)
    if same:
        yield f"  {_count(same, 'relocation')} {'is' if same == 1 else 'are'} resolved alike everywhere"


def is_telling(relo: SweptRelocation) -> bool:
    """Not resolved everywhere, or a check that is not the same everywhere."""
    return not relo.is_plain and (len(relo.classes) > 1 or relo.classes[0].outcome != "resolved")


def _alike(relocations: Iterable[SweptRelocation]) -> list[list[SweptRelocation]]:
    """Those of which the same is said, together."""
    groups: dict[object, list[SweptRelocation]] = {}
    for relo in relocations:
        fates = tuple((one.outcome, one.values, one.liveness, one.ranges) for one in relo.classes)
        groups.setdefault((relo.field, relo.kind, fates), []).append(relo)
    return list(groups.values())


def _finding(one: Class, total: int) -> str:
    word = one.outcome
    if one.outcome == "resolved" and one.values:
        word = f"= {one.values[0]}"
    elif one.distinct_values > 1:
        word += f" to {one.distinct_values} values"
    if one.liveness is not None and one.outcome != "loads":
        word += f", {one.liveness}"
    where = "everywhere" if one.count == total else f"on {one.count}: {_ranges(one.ranges)}"
    because = f": {one.reason}" if one.reason else ""
    return line(f"    {word} {where}{because}")


def _ranges(ranges: Sequence[Range]) -> str:
    shown = [f"{one.distro}{' ' + one.arch if one.arch else ''} {one.text}" for one in ranges[:_MOST_RANGES]]
    if len(ranges) > _MOST_RANGES:
        left = ranges[_MOST_RANGES:]
        shown.append(f"and {sum(len(one.btfs) for one in left)} more in {len(left)} ranges")
    return "; ".join(shown)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
