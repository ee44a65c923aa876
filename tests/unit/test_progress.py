from __future__ import annotations

import io
import os
from dataclasses import replace

from harness.model.result import CellResult, KernelResult, ObjectResult
from harness.model.verdict import CellStatus
from harness.progress import LiveProgress, PlainProgress, QuietProgress, progress_for, summary
from tests.support import cells as make


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def result(status: CellStatus = CellStatus.PASSED, reason: str | None = None) -> CellResult:
    begun = CellResult.begin(
        make.cell().id, KernelResult(id="k1", arch="x86_64"), ObjectResult(name="o", path="o", sha256="0" * 64)
    )
    return replace(begun, status=status, reason=reason, seconds={"total": 1.25})


def screen(text: str, width: int = 200) -> list[str]:
    """What a terminal shows after `text`: only the two sequences used here are understood, others stay visible."""
    lines = [""]
    for index, piece in enumerate(text.split("\x1b[")):
        rest = piece
        if index:
            up, separator, after = piece.partition("A")
            if separator and up.isdigit():
                lines = [*lines[: len(lines) - 1 - int(up)], ""]
                rest = after
            elif piece.startswith("J"):
                rest = piece[1:]
            else:
                rest = "?" + piece
        for number, part in enumerate(rest.split("\n")):
            if number:
                lines.append("")
            lines[-1] += part
    assert all(len(line) < width for line in lines)
    return lines


def live(width: int = 80, height: int = 24) -> tuple[LiveProgress, Terminal, Clock]:
    stream, clock = Terminal(), Clock()
    return LiveProgress(stream, 3, lambda: os.terminal_size((width, height)), clock), stream, clock


def test_the_kind_follows_the_stream() -> None:
    assert isinstance(progress_for(io.StringIO(), 1, quiet=False, environ={"TERM": "xterm"}), PlainProgress)
    assert isinstance(progress_for(Terminal(), 1, quiet=False, environ={"TERM": "dumb"}), PlainProgress)
    assert isinstance(progress_for(Terminal(), 1, quiet=False, environ={}), PlainProgress)
    assert isinstance(progress_for(Terminal(), 1, quiet=True, environ={"TERM": "xterm"}), QuietProgress)
    assert isinstance(progress_for(Terminal(), 1, quiet=False, environ={"TERM": "xterm"}), LiveProgress)


def test_plain_lines_count_the_cells() -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, 2)
    progress.on_kernel("k1", "starting a guest")
    progress.on_cell(make.cell(), "verdict handle_exec")
    progress.on_result(result())
    progress.on_result(result(CellStatus.CRASHED, "kernel panic\nmore"))
    assert stream.getvalue().splitlines() == [
        "k1: starting a guest",
        "[1/2] passed         debian-6.1-cloud-amd64/task_state@python (1.2 s)",
        "[2/2] crashed        debian-6.1-cloud-amd64/task_state@python (1.2 s): kernel panic",
    ]


def test_the_live_block_replaces_itself_and_leaves_what_went_wrong() -> None:
    progress, stream, clock = live()
    progress.on_kernel("k1", "starting a guest")
    clock.now = 61.0
    progress.on_result(result(CellStatus.CRASHED, "kernel panic"))
    progress.on_kernel("k2", "downloading")
    clock.now = 62.0
    progress.on_kernel("k2", "starting a guest")
    shown = screen(stream.getvalue())
    assert shown == [
        "crashed        debian-6.1-cloud-amd64/task_state@python (1.2 s): kernel panic",
        "1/3 cells  1 crashed  1:02",
        "  k2  starting a guest",
        "",
    ]
    progress.close()
    assert screen(stream.getvalue())[1:] == [""]


def test_redrawing_is_bounded_in_time() -> None:
    progress, stream, _clock = live()
    for number in range(1000):
        progress.on_kernel("k1", f"event {number}")
    assert len(stream.getvalue()) < 200


def test_a_narrow_and_low_terminal_is_not_overrun() -> None:
    progress, stream, clock = live(width=20, height=5)
    for number in range(10):
        clock.now += 1
        progress.on_kernel(f"debian-{number}-with-a-long-name", "starting a guest")
    assert len(screen(stream.getvalue(), width=20)) <= 4


def test_a_guest_cannot_move_the_cursor() -> None:
    progress, stream, clock = live()
    clock.now = 1.0
    progress.on_cell(make.cell(), "verdict \x1b[2J\x07evil\r")
    stream_plain = io.StringIO()
    PlainProgress(stream_plain, 1).on_result(result(CellStatus.ERROR, "\x1b]0;title\x07"))
    for text in (stream.getvalue(), stream_plain.getvalue()):
        assert "\x1b" not in text
        assert "\x07" not in text
        assert "\r" not in text


def test_summary_shows_the_first_line_of_the_reason() -> None:
    assert summary(result(CellStatus.ERROR, "no QEMU\nremedy")).endswith("(1.2 s): no QEMU")
