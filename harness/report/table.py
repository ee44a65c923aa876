"""The kernels x programs table of the terminal report: programs down, kernels across, objects as groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.report import untrusted
from harness.report.kernels import common_words
from harness.report.paint import Paint, pad
from harness.report.view import LEGEND, Mark, Subject, View, mark

_GAP = 2
_LABEL_MOST = 34


def render(view: View, paint: Paint) -> list[str]:
    """The table's lines, in blocks of as many kernels as fit the width, and the legend of the words it used."""
    rows = list(_rows(view))
    heads, shared = common_words([untrusted.line(kernel) for kernel in view.kernels])
    object_width = _label_width([label for label, _, _ in rows])
    program_width = _label_width([program for _, program, _ in rows])
    widths = [max([len(word) for word in head] + [_widest(rows, number)]) for number, head in enumerate(heads)]
    lines: list[str] = []
    for block in _blocks(widths, paint.columns - object_width - program_width - 2 * _GAP):
        left = pad(untrusted.fit(shared.rstrip("-"), object_width), object_width + program_width + 2 * _GAP)
        lines += _head([heads[n] for n in block], [widths[n] for n in block], left, paint)
        for label, program, marks in rows:
            fields = [_field(marks[n], widths[n], paint) for n in block]
            name = paint(pad(untrusted.fit(label, object_width), object_width + _GAP), "strong")
            what = pad(untrusted.fit(program, program_width), program_width + _GAP)
            lines.append((name + what + (" " * _GAP).join(fields)).rstrip())
        lines.append("")
    return lines + _legend(rows, paint)


def _field(mark: Mark, width: int, paint: Paint) -> str:
    word = mark.word or "·"
    return paint(word, mark.mood) + " " * (width - len(word))


def _rows(view: View) -> Iterator[tuple[str, str, list[Mark]]]:
    """(object or nothing when it is the one above, program, a mark for each kernel)."""
    for subject in view.subjects:
        label = untrusted.line(view.label(subject))
        programs = view.programs(subject)
        if not programs:
            yield label, "", [mark(view.cells.get((subject, kernel)), None) for kernel in view.kernels]
        for program in programs:
            marks = [_mark(view, subject, kernel, program.results.get(kernel)) for kernel in view.kernels]
            yield label, untrusted.line(program.name), marks
            label = ""


def _mark(view: View, subject: Subject, kernel: str, prog: object) -> Mark:
    cell = view.cells.get((subject, kernel))
    return mark(cell, prog)  # type: ignore[arg-type]


def _widest(rows: Sequence[tuple[str, str, list[Mark]]], number: int) -> int:
    return max((len(marks[number].word) for _, _, marks in rows), default=0)


def _label_width(labels: Sequence[str]) -> int:
    return min(max((untrusted.width(label) for label in labels), default=0), _LABEL_MOST)


def _blocks(widths: Sequence[int], room: int) -> Iterator[list[int]]:
    """Columns in runs that fit `room`; at least one each."""
    block: list[int] = []
    for number, width in enumerate(widths):
        if block and sum(widths[n] + _GAP for n in block) + width > room:
            yield block
            block = []
        block.append(number)
    if block:
        yield block


def _head(heads: Sequence[Sequence[str]], widths: Sequence[int], left: str, paint: Paint) -> list[str]:
    """A kernel's words stacked, one line each, so that long identities make narrow columns."""
    height = max((len(head) for head in heads), default=0)
    lines = []
    for level in range(height):
        words = [
            pad(head[level] if level < len(head) else "", width) for head, width in zip(heads, widths, strict=True)
        ]
        prefix = left if level == 0 else " " * len(left)
        lines.append(paint((prefix + (" " * _GAP).join(words)).rstrip(), "quiet"))
    return lines


def _legend(rows: Sequence[tuple[str, str, list[Mark]]], paint: Paint) -> list[str]:
    used = dict.fromkeys(mark.word for _, _, marks in rows for mark in marks if mark.word)
    words = [f"{word} {meaning}" for word, meaning in LEGEND.items() if word in used and word != "ok"]
    return [*paint.wrapped(" · ".join(words), "", "quiet"), ""] if words else []
