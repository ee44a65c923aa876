"""Where programs can be attached (`run --attach`): a column of its own, apart from the verdicts."""

from __future__ import annotations

from collections.abc import Iterator

from harness.model.result import ProgResult
from harness.report import untrusted
from harness.report.kernels import describe
from harness.report.paint import Paint, pad
from harness.report.view import Program, View

_WORDS = {
    "attached": ("attachable", "good"), "refused": ("NOT attachable", "bad"), "not_attempted": ("not tried", "quiet"),
}  # fmt: skip


def lines(view: View, paint: Paint) -> Iterator[str]:
    """A line for each program and kind of answer, the kernels it is from, and why not; nothing without --attach."""
    tried = [program for program in view.all_programs() if any(prog.attach for prog in program.results.values())]
    names = {id(program): untrusted.line(f"{view.label(program.subject)} / {program.name}") for program in tried}
    width = max((untrusted.width(name) for name in names.values()), default=0)
    for program in tried:
        name = names[id(program)]
        for (status, error), kernels in _answers(program).items():
            words, mood = _WORDS.get(status, (status, "trouble"))
            where = describe(kernels, list(program.judged))
            text = f"{untrusted.line(where)}{': ' + untrusted.line(error) if error else ''}"
            first = f"  {pad(name, width)}  {paint(pad(untrusted.line(words), 14), mood)}  "
            yield from paint.wrapped(text, " " * 6, first=first)
            name = ""


def words(prog: ProgResult) -> tuple[str, ...]:
    """The same of one program on one kernel, as a sentence; none without --attach."""
    if prog.attach is None:
        return ()
    said, _ = _WORDS.get(str(prog.attach.get("status")), (str(prog.attach.get("status")), ""))
    why = prog.attach.get("error") or prog.attach.get("stand_in")
    return (f"{said} ({prog.attach.get('how')}){f': {why}' if why else ''}",)


def _answers(program: Program) -> dict[tuple[str, str | None], list[str]]:
    found: dict[tuple[str, str | None], list[str]] = {}
    for kernel, prog in program.results.items():
        if prog.attach is not None:
            why = prog.attach.get("error") or prog.attach.get("stand_in")
            found.setdefault((str(prog.attach.get("status")), why), []).append(kernel)
    return found
