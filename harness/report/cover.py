"""`run --cover` for people: kernels that were not booted, which booted one stands for each, and what stays unproven."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from harness.model.cover import ANOTHER_RELEASE, NOT_KNOWN, UNTOLD, Cover, StandIn
from harness.report.paint import Paint
from harness.report.untrusted import code, line, markdown

_MOST_NAMES = 4
# In which order remarks are told, and how a heading says them.
_WORDS = {
    "proof": "left open by the boot", "attach": "attach points", "kfunc": "kernel functions", "config": "configuration",
    "architecture": "architecture", "helpers": "helpers", "verifier": "verifier",
}  # fmt: skip


class Row(NamedTuple):
    """Kernels that were not booted and of which the same is to be said: `by` (booted kernel, objects it stands for),
    programs nobody shows, and what is unproven: (topic, text, of which objects and programs).
    """

    kernels: tuple[str, ...]
    bootable: bool
    by: tuple[tuple[str, tuple[str, ...]], ...]
    objects: int
    uncovered: tuple[str, ...]
    unproven: tuple[tuple[str, str, tuple[str, ...]], ...]
    checked: int


def head(cover: Cover) -> str:
    """What was decided, in a sentence."""
    size = "no smaller set does" if cover.minimal else f"at least {cover.at_least} are needed"
    return (
        f"{len(cover.booted)} of {cover.kernels} kernels booted, {cover.kernels - len(cover.booted)} not: the"
        f" {cover.outcomes} outcomes a sweep foretells are shown by {', '.join(cover.booted)} ({size})"
        + (f"; {cover.unshown} more by none: of their kernels only BTF is at hand, or no configuration"
           if cover.unshown else "")
    )


def rows(cover: Cover) -> list[Row]:
    """In the cover's order, kernels of which the same is said together."""
    kernels: dict[str, list[StandIn]] = {}
    for one in cover.stand_ins:
        kernels.setdefault(one.kernel, []).append(one)
    alike: dict[Row, list[str]] = {}
    for kernel, found in kernels.items():
        alike.setdefault(_row(found), []).append(kernel)
    return [row._replace(kernels=tuple(names)) for row, names in alike.items()]


def _row(found: list[StandIn]) -> Row:
    by: dict[str, list[str]] = {}
    told: dict[tuple[str, str], list[str]] = {}
    for one in found:
        for share in one.by:
            whole = len(one.by) == 1 and not one.uncovered
            by.setdefault(share.kernel, []).extend(
                [one.object] if whole else [f"{one.object}/{prog}" for prog in share.progs]
            )
        for remark in one.unproven:
            subject = f"{one.object}/{remark.prog}" if remark.prog else one.object
            told.setdefault((remark.what, remark.text), []).append(subject)
    order = list(_WORDS)
    return Row(
        kernels=(),
        bootable=found[0].bootable,
        by=tuple((name, tuple(names)) for name, names in sorted(by.items(), key=lambda item: -len(item[1]))),
        objects=len(found),
        uncovered=tuple(f"{one.object}/{prog}" for one in found for prog in one.uncovered),
        unproven=tuple(
            (what, text, tuple(names))
            for (what, text), names in sorted(told.items(), key=lambda item: order.index(item[0][0]))
        ),
        checked=sum(len(one.checked) for one in found),
    )


def _brief(names: Iterable[str], total: int = 0) -> str:
    """Some names and how many more; `total`: how many there are at all."""
    every = list(names)
    if len(every) == total > 1:
        return f"all {total} objects"
    more = f" and {len(every) - _MOST_NAMES} more" if len(every) > _MOST_NAMES else ""
    return ", ".join(every[:_MOST_NAMES]) + more


def _by(row: Row) -> str:
    return "; ".join(f"{name} ({_brief(names, row.objects)})" for name, names in row.by) or "nobody"


def terminal(cover: Cover, paint: Paint, *, verbose: bool) -> Iterator[str]:
    """Lines of the section; `verbose`: every remark as it is."""
    yield from paint.wrapped(line(head(cover)), "    ", first="  ")
    for note in cover.notes:
        yield from paint.wrapped(line(note), "    ", "quiet", first="  • ")
    for row in rows(cover):
        only = "" if row.bootable else ", of which only BTF is at hand"
        yield ""
        names = _brief(row.kernels) + (f" ({len(row.kernels)} kernels)" if len(row.kernels) > 1 else "")
        yield from paint.wrapped(line(names + only), "    ", "strong", first="  ")
        if row.by:
            yield from paint.wrapped(line(f"as {_by(row)}"), "      ", first="    ")
        if row.uncovered:
            text = f"shown by no kernel that can be booted: {_brief(row.uncovered)}"
            yield from paint.wrapped(line(text), "      ", "trouble", first="    ")
        if row.checked:
            yield from paint.wrapped(f"{row.checked} attach targets and kernel functions are there, with the same"
                                     " signature", "      ", "quiet", first="    ")  # fmt: skip
        for text in _unproven(row) if verbose else _unproven_in_short(row):
            yield from paint.wrapped(line(text), "        ", "quiet", first="    unproven: ")


def _unproven(row: Row) -> Iterator[str]:
    for what, text, names in row.unproven:
        yield f"{_WORDS[what]}: {text} ({_brief(names, row.objects)})"


def _unproven_in_short(row: Row) -> Iterator[str]:
    """What holds of nearly every object in a line each; the rest as it is."""
    for what, word in _WORDS.items():
        found = [(text, names) for topic, text, names in row.unproven if topic == what]
        if what == "helpers" and found:
            used = sorted({name for text, _ in found for name in text.partition(":")[0].split(", ")})
            yield f"{word}: BTF names {_brief(used)}, not which types of program may call them"
        elif what == "verifier" and found:
            yield f"{word}: {_verifier([text for text, _ in found])}"
        elif what == "config":
            yield from _configuration(word, found, row.objects)
        else:
            untold = [names for text, names in found if text.endswith(UNTOLD)]
            if untold:
                yield f"{word}: BTF tells nothing of those of {_brief(name for names in untold for name in names)}"
            for text, names in found:
                if not text.endswith(UNTOLD):
                    yield f"{word}: {text} ({_brief(names, row.objects)})"


def _verifier(texts: list[str]) -> str:
    """The rules in which it differs, then whose limits were shown."""
    rules = [text.partition(" (")[0] for text in texts if not text.startswith(ANOTHER_RELEASE)]
    others = [text.removeprefix(ANOTHER_RELEASE) for text in texts if text.startswith(ANOTHER_RELEASE)]
    limits = [f"{ANOTHER_RELEASE}{', '.join(dict.fromkeys(others))}"] if others else []
    return "; ".join([*dict.fromkeys(rules), *limits])


def _configuration(word: str, found: list[tuple[str, tuple[str, ...]]], objects: int) -> Iterator[str]:
    """Values that are not known here in a line for each kernel that has them and the same objects; the rest as it is.
    """
    unknown: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for text, names in found:
        key, _, rest = text.partition(f" is {NOT_KNOWN}, ")
        if rest:
            unknown.setdefault((rest.rpartition(" on ")[2], names), []).append(key)
        else:
            yield f"{word}: {text} ({_brief(names, objects)})"
    for (kernel, names), keys in unknown.items():
        yield f"{word}: known of {kernel}, not of this one: {_brief(keys)} ({_brief(names, objects)})"


def markdown_section(cover: Cover) -> str:
    """A table, what is unproven folded."""
    lines = [f"**Covered, not booted.** {markdown(head(cover))}", ""]
    lines += [f"- {markdown(note)}" for note in cover.notes]
    lines += ["", "| kernel | a booted kernel stands for it | shown by none | same in BTF |", "|---|---|---|---|"]
    found = rows(cover)
    for row in found:
        name = ", ".join(map(code, row.kernels)) + ("" if row.bootable else " (BTF only)")
        lines.append(f"| {name} | {markdown(_by(row))} | {markdown(_brief(row.uncovered))} | {row.checked} |")
    for row in found:
        lines += ["", f"<details><summary>{markdown(_brief(row.kernels))}: what that leaves unproven</summary>", ""]
        for what, text, names in row.unproven:
            lines.append(f"- {_WORDS[what]}: {markdown(text)} ({markdown(_brief(names, row.objects))})")
        lines += ["", "</details>"]
    return "\n".join(lines)
