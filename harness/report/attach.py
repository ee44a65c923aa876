"""Why programs cannot be attached, or where else they were (`run --attach`). Whether they can is a column of each
report's table, beside the verdicts and apart from them (`view.attach_mark`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from harness.model.result import ProgResult
from harness.report import untrusted
from harness.report.kernels import describe
from harness.report.paint import Paint, pad
from harness.report.view import Mark, Program, View, attach_mark

_SENTENCES = {"attached": "attachable", "refused": "NOT attachable", "not_attempted": "attaching was not tried"}


@dataclass(frozen=True, kw_only=True)
class Reason:
    """Why a program's mark is not simply `yes` on some kernels. Text of a guest: harmful still."""

    prog: str
    mark: Mark
    kernels: str
    text: str


def reasons(view: View) -> Iterator[Reason]:
    """One for each program and kind of answer that has more to say than `yes`; nothing without --attach."""
    for program in view.all_programs():
        for (item, text), kernels in _answers(program).items():
            where = describe(kernels, list(program.judged))
            yield Reason(prog=f"{view.label(program.subject)} / {program.name}", mark=item, kernels=where, text=text)


def lines(view: View, paint: Paint) -> Iterator[str]:
    """The reasons for a terminal; a program's name stands once."""
    found = [(untrusted.line(reason.prog), reason) for reason in reasons(view)]
    width = max((untrusted.width(name) for name, _ in found), default=0)
    above = None
    for name, reason in found:
        word = paint(pad(untrusted.line(reason.mark.word), 7), reason.mark.mood)
        first = f"  {pad('' if name == above else name, width)}  {word}  "
        above = name
        text = f"{untrusted.line(reason.kernels)}: {untrusted.line(reason.text)}"
        yield from paint.wrapped(text, " " * 6, first=first)


def words(prog: ProgResult) -> tuple[str, ...]:
    """What became of one program on one kernel, as a sentence; none without --attach."""
    if prog.attach is None:
        return ()
    status = str(prog.attach.get("status"))
    why = _why(prog)
    return (f"{_SENTENCES.get(status, status)} ({prog.attach.get('how')}){f': {why}' if why else ''}",)


def _why(prog: ProgResult) -> str | None:
    found = prog.attach or {}
    why = found.get("error") or found.get("stand_in")
    return None if why is None else str(why)


def _answers(program: Program) -> dict[tuple[Mark, str], list[str]]:
    found: dict[tuple[Mark, str], list[str]] = {}
    for kernel, prog in program.results.items():
        why = _why(prog)
        if why is not None:
            found.setdefault((attach_mark(prog), why), []).append(kernel)
    return found
