"""Kernel against kernel as text or JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from harness import ci_log
from harness.errors import UsageError
from harness.model.plain_json import to_json
from harness.report import suspicion, untrusted
from harness.report.kernel_diff import KernelDiff, Step
from harness.report.leads import Lead
from harness.report.paint import Paint

FORMATS = ("terminal", "text", "json")


def render(format: str, found: Sequence[KernelDiff], *, width: int = 100, colour: bool = False) -> str:
    """The differences, one pair of kernels after the other; UsageError for no such format."""
    if format == "json":
        return ci_log.json(json.dumps({"schema": 1, "kernels": to_json(tuple(found))}, indent=1)) + "\n"
    if format not in FORMATS:
        message = f"no format {format!r} for a difference of kernels"
        raise UsageError(message, remedy=f"take one of: {', '.join(FORMATS)}")
    paint = Paint(columns=width, colour=colour and format == "terminal")
    return ci_log.plain("\n".join(line for diff in found for line in [*_diff(diff, paint), ""]))


def _diff(diff: KernelDiff, paint: Paint) -> Iterator[str]:
    yield paint(f"{untrusted.line(diff.first)} -> {untrusted.line(diff.second)}", "strong")
    if not diff.steps:
        yield "  nothing changes but offsets"
    for (place, what, texts, worse), progs in _grouped(diff.steps).items():
        head = untrusted.line(f"{', '.join(progs)}  {place}  {what}".rstrip())
        yield from paint.wrapped(head, "      ", "name", first="  ")
        for text in texts:
            yield from paint.wrapped(untrusted.line(text), "      ", "bad" if worse else "plain", first="    ")
    for kernel in diff.missing:
        text = f"no suggestions: the BTF of {kernel} is not in the cache (corematrix kernels fetch -k {kernel})"
        yield from paint.wrapped(untrusted.line(text), "    ", "trouble", first="  ")
    for text in suspicion.lines(diff.config_suspects, (diff.first, diff.second)):
        yield from paint.wrapped(untrusted.line(text), "    ", "good", first="  ")
    for lead in diff.leads:
        yield from _lead(lead, paint)


_Group = tuple[str, str, tuple[str, ...], bool]


def _grouped(steps: Sequence[Step]) -> dict[_Group, list[str]]:
    """Equal changes of several programs and relocations, said once."""
    groups: dict[_Group, dict[str, None]] = {}
    for step in steps:
        place = f"{step.source.file.rpartition('/')[2]}:{step.source.line}" if step.source else ""
        what = f"{step.field} ({step.kind})" if step.field else ""
        groups.setdefault((place, what, step.texts, step.worse), {})[f"{step.subject}/{step.prog}"] = None
    return {group: list(progs) for group, progs in groups.items()}


def _lead(lead: Lead, paint: Paint) -> Iterator[str]:
    text = untrusted.line(f"suggestion, to be checked: on {lead.lacks}, {lead.suggestion.text}")
    yield from paint.wrapped(text, "    ", "good", first="  ")
    if lead.code is not None:
        yield "    // a suggestion made from the BTF of both kernels; needs bpf_helpers.h and bpf_core_read.h"
        yield from (f"    {untrusted.lines(line)}" for line in lead.code.splitlines())
