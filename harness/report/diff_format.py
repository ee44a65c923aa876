"""The difference of two runs as text or JSON: regressions first, equal changes of several kernels put together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from harness import ci_log
from harness.errors import UsageError
from harness.model.plain_json import to_json
from harness.report import untrusted
from harness.report.diff import Change, Diff, Kind
from harness.report.kernels import describe
from harness.report.paint import Paint

_TITLES = {
    Kind.REGRESSION: ("Regressions", "bad"),
    Kind.TROUBLE: ("Trouble: neither better nor worse, and no pass", "trouble"),
    Kind.IMPROVEMENT: ("Improvements", "good"),
    Kind.CHANGE: ("Other changes", "quiet"),
}
FORMATS = ("terminal", "text", "json")


def render(format: str, found: Diff, *, width: int = 100, colour: bool = False) -> str:
    """The difference in one of FORMATS; UsageError for any other."""
    if format == "json":
        data = {"schema": 1, "regressed": found.regressed, "changes": to_json(found.changes)}
        return ci_log.json(json.dumps(data, indent=1)) + "\n"
    if format not in FORMATS:
        message = f"no format {format!r} for a difference"
        raise UsageError(message, remedy=f"take one of: {', '.join(FORMATS)}")
    paint = Paint(columns=width, colour=colour and format == "terminal")
    return ci_log.plain("\n".join(_lines(found, paint)) + "\n")


def _lines(found: Diff, paint: Paint) -> Iterator[str]:
    if not found.changes:
        yield "no difference"
    for kind, (title, mood) in _TITLES.items():
        changes = found.of(kind)
        if not changes:
            continue
        yield paint(f"{title} ({len(changes)})", mood)
        for (where, relocation, text), cells in _grouped(changes).items():
            kernels = describe({_kernel(cell) for cell in cells}, found.kernels)
            yield f"  {paint(untrusted.line(where), 'strong')}  {untrusted.line(kernels)}"
            if relocation:
                yield from paint.wrapped(untrusted.line(relocation), "      ", "name", first="    ")
            yield from paint.wrapped(untrusted.line(text), "      ", first="    ")
        yield ""


def _grouped(changes: Sequence[Change]) -> dict[tuple[str, str, str], list[str]]:
    """(object and program, relocation, text) -> cells."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for change in changes:
        subject = change.cell.partition("/")[2]
        where = f"{subject} / {change.prog}" if change.prog else subject
        groups.setdefault((where, change.relocation or "", change.text), []).append(change.cell)
    return groups


def _kernel(cell: str) -> str:
    return cell.partition("/")[0]
