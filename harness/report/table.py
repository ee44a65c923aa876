"""The kernels x programs table of the terminal report: programs down, kernels across.

A run that attached programs has a second column for each kernel, apart from the verdict (`run --attach`). Four
layouts, the first that takes all kernels side by side: words with room between, short words close together, a letter a
field, letters under upright heads. Only when those are too wide as well is the table broken into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, zip_longest

from harness.model.result import ProgResult
from harness.report import untrusted
from harness.report.kernels import common_words
from harness.report.paint import Paint, pad
from harness.report.view import (
    ATTACH_LEGEND,
    ATTACH_LETTERS,
    ATTACH_SHORT,
    LEGEND,
    LETTERS,
    SHORT,
    Mark,
    Subject,
    View,
    attach_mark,
    mark,
)

_LABEL_MOST, _LABEL_LEAST = 44, 8
_LETTERS = {**LETTERS, **ATTACH_LETTERS}


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One program; `label` is dimmed up to `repeated`, what the row above says as well."""

    label: str
    repeated: int
    marks: Sequence[Mark]


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How wide the label and each column are, what stands for each word, whether heads stand upright. `per_kernel`
    columns belong together; `parts` is what is said of each where they are more than one.
    """

    label: int
    widths: Sequence[int]
    per_kernel: int
    parts: Sequence[str]
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
    layout = _layout(rows, heads, paint, per_kernel=2 if view.attached else 1)
    lines: list[str] = []
    for block in _blocks(layout, paint.columns):
        left = pad(untrusted.fit(shared.rstrip("-"), layout.label), layout.label)
        lines += _head(heads, block, left, layout, paint)
        lines += [_line(row, block, layout, paint) for row in rows]
        lines.append("")
    return lines + _legend(rows, layout, paint)


def _rows(view: View) -> Iterator[_Row]:
    """A program of the object's own name needs no second word; the rows of one object say its name once."""
    for subject in view.subjects:
        label = untrusted.line(view.label(subject))
        programs = view.programs(subject)
        if not programs:
            yield _Row(label=label, repeated=0, marks=_marks(view, subject, {}))
        for number, program in enumerate(programs):
            own = len(programs) == 1 and program.name == subject.object.rpartition("/")[2]
            name = label if own else f"{label}/{untrusted.line(program.name)}"
            marks = _marks(view, subject, program.results)
            yield _Row(label=name, repeated=len(label) + 1 if number else 0, marks=marks)


def _marks(view: View, subject: Subject, results: Mapping[str, ProgResult]) -> list[Mark]:
    """Each kernel's verdict and, in a run that attached, what came of that."""
    found = []
    for kernel in view.kernels:
        prog = results.get(kernel)
        found.append(mark(view.cells.get((subject, kernel)), prog))
        found += [attach_mark(prog)] if view.attached else []
    return found


def _layout(rows: Sequence[_Row], heads: Sequence[Sequence[str]], paint: Paint, *, per_kernel: int) -> _Layout:
    label = max((untrusted.width(row.label) for row in rows), default=0)
    count = per_kernel * len(heads)
    wordy = min(label, max(_LABEL_LEAST, min(_LABEL_MOST, paint.columns // 2)))
    narrow = min(wordy, max(_LABEL_LEAST, paint.columns - 2 * count))

    def fitted(words: Mapping[str, str], parts: Sequence[str], gap: int) -> _Layout:
        stacks = [_stack(heads, number, per_kernel, parts) for number in range(count)]
        widths = [max([*map(len, stack), *(len(words.get(row.marks[n].word, row.marks[n].word)) for row in rows)])
                  for n, stack in enumerate(stacks)]  # fmt: skip
        return _Layout(label=wordy, widths=widths, words=words, gap=gap, per_kernel=per_kernel, parts=parts)

    layouts = [
        fitted({}, ("loads", "attach"), 2),
        fitted({**SHORT, **ATTACH_SHORT}, ("load", "att"), 1),
        fitted(_LETTERS, ("l", "a"), 1),
        _Layout(label=narrow, widths=[1] * count, words=_LETTERS, upright=True, per_kernel=per_kernel,
                parts=("", "a")),
    ]  # fmt: skip
    return next((layout for layout in layouts if layout.columns <= paint.columns), layouts[-1])


def _stack(heads: Sequence[Sequence[str]], number: int, per_kernel: int, parts: Sequence[str]) -> list[str]:
    """The words above a column, from the top: its kernel's and, where a kernel has two columns, which one it is."""
    kernel, part = divmod(number, per_kernel)
    words = list(_stacked(heads[kernel], heads))
    if per_kernel == 1:
        return words
    deep = max(len(_stacked(head, heads)) for head in heads)
    return [*([] if part else words), *[""] * (deep if part else deep - len(words)), parts[part]]


def _blocks(layout: _Layout, columns: int) -> Iterator[list[int]]:
    """Columns in runs that fit, a kernel's together; at least one kernel each."""
    block: list[int] = []
    room = columns - layout.label
    for first in range(0, len(layout.widths), layout.per_kernel):
        more = list(range(first, first + layout.per_kernel))
        if block and sum(layout.widths[n] + layout.gap for n in [*block, *more]) > room:
            yield block
            block = []
        block += more
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
    heads: Sequence[Sequence[str]], block: Sequence[int], left: str, layout: _Layout, paint: Paint
) -> Iterator[str]:
    """The groups on one line, below it each kernel's words stacked, or upright letter by letter."""
    gap = " " * layout.gap
    widths = [layout.widths[number] for number in block]
    prefix = left
    if _grouped(heads):
        groups = [heads[number // layout.per_kernel][-1] for number in block]
        yield paint((prefix + gap + gap.join(_spans(groups, widths, layout.gap))).rstrip(), "quiet")
        prefix = " " * len(left)
    columns = [_stack(heads, number, layout.per_kernel, layout.parts) for number in block]
    stacks = ["-".join(word for word in words if word) for words in columns] if layout.upright else columns
    for level in zip_longest(*stacks, fillvalue=""):
        words = [pad(word, width) for word, width in zip(level, widths, strict=True)]
        yield paint((prefix + gap + gap.join(words)).rstrip(), "quiet")
        prefix = " " * len(left)


def _spans(groups: Sequence[str], widths: Sequence[int], gap: int) -> Iterator[str]:
    for word, group in groupby(range(len(groups)), key=lambda number: groups[number]):
        own = [widths[number] for number in group]
        room = sum(own) + gap * (len(own) - 1)
        yield untrusted.fit(f"{word} {'─' * (room - len(word) - 1)}" if len(own) > 1 else word, room)


def _legend(rows: Sequence[_Row], layout: _Layout, paint: Paint) -> list[str]:
    texts = [_said(LEGEND, rows, 0, layout)]
    if layout.per_kernel > 1:
        texts.append(f"attach: {_said(ATTACH_LEGEND, rows, 1, layout)}")
    lines = [line for text in texts for line in paint.wrapped(text, "", "quiet") if text]
    return [*lines, ""] if lines else []


def _said(legend: Mapping[str, str], rows: Sequence[_Row], part: int, layout: _Layout) -> str:
    """What the words in each kernel's first or second column mean; `ok` needs no words."""
    used = {item.word for row in rows for item in row.marks[part :: layout.per_kernel]}
    shown = [(layout.words.get(word, word), means) for word, means in legend.items() if word in used]
    between = "   " if layout.words is _LETTERS else " · "
    return between.join(f"{word} {means}" for word, means in shown if word != "ok")
