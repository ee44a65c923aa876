"""The guard audit as text, and the one line for each object that the terminal report has of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness import ci_log
from harness.model.result import RunResult
from harness.report import untrusted
from harness.report.audit import TITLES, Guards, Remark, Topic, audit, guards
from harness.report.kernels import describe
from harness.report.paint import Paint
from harness.report.view import View

MOODS = {Topic.UNGUARDED: "bad", Topic.WRONG_WAY: "bad", Topic.BY_VERSION: "trouble"}
_NAMES_MOST = 3


def render(run: RunResult, *, columns: int = 100, colour: bool = False) -> str:
    """The whole audit, ending in a newline."""
    paint = Paint(columns=columns, colour=colour)
    remarks = audit(run)
    lines = ["Guards", "", *summary(View(run), paint), ""]
    for topic, title in TITLES.items():
        of_topic = [remark for remark in remarks if remark.topic is topic]
        if of_topic:
            lines += [paint(f"{title} ({len(of_topic)})", MOODS.get(topic, "strong"))]
            lines += [line for remark in of_topic for line in _remark(remark, paint)] + [""]
    if not remarks:
        lines.append("nothing to remark")
    return ci_log.plain("\n".join(lines).rstrip("\n") + "\n")


def _remark(remark: Remark, paint: Paint) -> Iterator[str]:
    where = describe(remark.kernels, remark.judged)
    head = f"{remark.subject}/{remark.prog}  {place_of(remark)}  {remark.field} ({remark.kind})"
    yield from paint.wrapped(untrusted.line(head), "      ", "name", first="  ")
    yield from paint.wrapped(untrusted.line(f"{where}: {remark.text}"), "      ", first="    ")


def summary(view: View, paint: Paint) -> list[str]:
    """A line for each object that has guards: how its checks came out over the kernels, and what they kept away."""
    found = guards(view)
    width = max((untrusted.width(untrusted.line(item.subject)) for item in found), default=0)
    lines: list[str] = []
    for item in found:
        name = untrusted.line(item.subject)
        head = f"  {name}{' ' * (width - untrusted.width(name))}  "
        lines += paint.wrapped(untrusted.line(said(item, view)), " " * len(head), "quiet", first=head)
    return lines


def place_of(remark: Remark) -> str:
    """`x.bpf.c:31`."""
    return f"{remark.source.file.rpartition('/')[2]}:{remark.source.line}" if remark.source else "(no source line)"


def said(item: Guards, view: View) -> str:
    """How an object's checks came out, and what was eliminated."""
    parts = []
    if item.both:
        parts.append(f"{len(item.both)} taken both ways ({_names(item.both)})")
    for count, words in ((item.always_1, "always 1"), (item.always_0, "always 0"), (item.unseen, "never looked at")):
        if count:
            parts.append(f"{len(count)} {words}")
    checks = f"checks: {', '.join(parts)}" if parts else "no checks"
    if not item.eliminated:
        return checks
    noun = "relocation" if item.eliminated == 1 else "relocations"
    return f"{checks}; {item.eliminated} poisoned {noun} eliminated on {describe(item.kernels, view.kernels)}"


def _names(names: Sequence[str]) -> str:
    more = f", and {len(names) - _NAMES_MOST} more" if len(names) > _NAMES_MOST else ""
    return ", ".join(names[:_NAMES_MOST]) + more
