"""The kernels x programs table of the terminal report: programs down, kernels across.

Four layouts, the first that takes all kernels side by side: words with room between, short words close together, a
letter a field, letters under upright heads. Only when those are too wide as well is the table broken into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest

from harness.report import untrusted
from harness.report.kernels import common_words
from harness.report.paint import Paint, pad
from harness.report.view import LEGEND, LETTERS, SHORT, Mark, Subject, View, mark

_LABEL_MOST, _LABEL_LEAST = 44, 8


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One program; `label` is dimmed up to `repeated`, what the row above says as well."""

    label: str
    repeated: int
    marks: Sequence[Mark]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How wide the label and each kernel's column are, what stands for each word, whether heads stand upright."""

    label: int
    widths: Sequence[int]
    gap: int = 1
    words: Mapping[str, str] = field(default_factory=dict)
    upright: bool = False

    @property
    def columns(self) -> int:
        return self.label + sum(self.widths) + self.gap * len(self.widths)

    def shown(self, item: Mark) -> str:
        return self.words.get(item.word, item.word)


def render(view: View, paint: Paint) -> list[str]:
    """The table's lines and the legend of the words or letters it used."""
    rows = list(_rows(view))
    heads, shared = common_words([untrusted.line(kernel) for kernel in view.kernels])
    layout = _layout(rows, heads, paint)
    lines: list[str] = []
    for block in _blocks(layout, paint.columns):
        left = pad(untrusted.fit(shared.rstrip("-"), layout.label), layout.label)
        lines += _head([heads[n] for n in block], [layout.widths[n] for n in block], left, layout, paint)
        lines += [_line(row, block, layout, paint) for row in rows]
        lines.append("")
    return lines + _legend(rows, layout, paint)


def _rows(view: View) -> Iterator[_Row]:
    """A program of the object's own name needs no second word; the rows of one object say its name once."""
    for subject in view.subjects:
        label = untrusted.line(view.label(subject))
        programs = view.programs(subject)
        if not programs:
            yield _Row(label=label, repeated=0, marks=[_mark(view, subject, kernel, None) for kernel in view.kernels])
        for number, program in enumerate(programs):
            marks = [_mark(view, subject, kernel, program.results.get(kernel)) for kernel in view.kernels]
            own = len(programs) == 1 and program.name == subject.object.rpartition("/")[2]
            name = label if own else f"{label}/{untrusted.line(program.name)}"
            yield _Row(label=name, repeated=len(label) + 1 if number else 0, marks=marks)


def _mark(view: View, subject: Subject, kernel: str, prog: object) -> Mark:
    return mark(view.cells.get((subject, kernel)), prog)  # type: ignore[arg-type]


def _layout(rows: Sequence[_Row], heads: Sequence[Sequence[str]], paint: Paint) -> _Layout:
    label = max((untrusted.width(row.label) for row in rows), default=0)
    wordy = min(label, max(_LABEL_LEAST, min(_LABEL_MOST, paint.columns // 2)))
    narrow = min(wordy, max(_LABEL_LEAST, paint.columns - 2 * len(heads)))
    stacked = [max(len(word) for word in _stacked(head, heads)) for head in heads]

    def widths(words: Mapping[str, str]) -> list[int]:
        marks = [[words.get(row.marks[number].word, row.marks[number].word) for row in rows]
                 for number in range(len(heads))]  # fmt: skip
        return [max([width, *map(len, column)]) for width, column in zip(stacked, marks, strict=True)]

    layouts = [
        _Layout(label=wordy, widths=widths({}), gap=2),
        _Layout(label=wordy, widths=widths(SHORT), words=SHORT),
        _Layout(label=wordy, widths=widths(LETTERS), words=LETTERS),
        _Layout(label=narrow, widths=[1] * len(heads), words=LETTERS, upright=True),
    ]
    return next((layout for layout in layouts if layout.columns <= paint.columns), layouts[-1])


def _blocks(layout: _Layout, columns: int) -> Iterator[list[int]]:
    """Columns in runs that fit; at least one each."""
    block: list[int] = []
    room = columns - layout.label
    for number, width in enumerate(layout.widths):
        if block and sum(layout.widths[n] + layout.gap for n in block) + layout.gap + width > room:
            yield block
            block = []
        block.append(number)
    if block:
        yield block


def _line(row: _Row, block: Sequence[int], layout: _Layout, paint: Paint) -> str:
    text = pad(untrusted.fit(row.label, layout.label), layout.label)
    label = paint(text[: row.repeated], "quiet") + paint(text[row.repeated :], "strong")
    fields = [_field(row.marks[number], layout.widths[number], layout, paint) for number in block]
    return (label + "".join(" " * layout.gap + field for field in fields)).rstrip()


def _field(item: Mark, width: int, layout: _Layout, paint: Paint) -> str:
    shown = layout.shown(item)
    return paint(shown, item.mood) + " " * (width - len(shown))


def _grouped(heads: Sequence[Sequence[str]]) -> bool:
    """Do all kernels have a last word (the architecture, in Debian's matrix) to be grouped by?"""
    return len(heads) > 1 and all(len(head) > 1 for head in heads)


def _stacked(head: Sequence[str], heads: Sequence[Sequence[str]]) -> Sequence[str]:
    """A kernel's words that stand above its own column."""
    return head[:-1] if _grouped(heads) else head


def _head(
    heads: Sequence[Sequence[str]], widths: Sequence[int], left: str, layout: _Layout, paint: Paint
) -> Iterator[str]:
    """The groups on one line, below it each kernel's words stacked, or upright letter by letter."""
    gap = " " * layout.gap
    prefix = left
    if _grouped(heads):
        yield paint((prefix + gap + gap.join(_spans(heads, widths, layout.gap))).rstrip(), "quiet")
        prefix = " " * len(left)
    columns = [_stacked(head, heads) for head in heads]
    stacks = ["-".join(words) for words in columns] if layout.upright else columns
    for level in zip_longest(*stacks, fillvalue=""):
        words = [pad(word, width) for word, width in zip(level, widths, strict=True)]
        yield paint((prefix + gap + gap.join(words)).rstrip(), "quiet")
        prefix = " " * len(left)


def _spans(heads: Sequence[Sequence[str]], widths: Sequence[int], gap: int) -> Iterator[str]:
    for word, group in groupby(range(len(heads)), key=lambda number: heads[number][-1]):
        own = [widths[number] for number in group]
        room = sum(own) + gap * (len(own) - 1)
        yield untrusted.fit(f"{word} {'─' * (room - len(word) - 1)}" if len(own) > 1 else word, room)


def _legend(rows: Sequence[_Row], layout: _Layout, paint: Paint) -> list[str]:
    used = {mark.word for row in rows for mark in row.marks}
    said = [(layout.words.get(word, word), meaning) for word, meaning in LEGEND.items() if word in used]
    text = " · " if layout.words is not LETTERS else "   "
    shown = text.join(f"{word} {meaning}" for word, meaning in said if word != "ok")
    return [*paint.wrapped(shown, "", "quiet"), ""] if shown else []
