"""Colour, in one place: a mood goes in, an SGR sequence or nothing comes out. No hidden state, no look at the
environment.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

from harness.report.untrusted import width

_SGR = {"good": "32", "bad": "1;31", "trouble": "33", "quiet": "2", "strong": "1", "name": "36", "plain": ""}


@dataclass(frozen=True, kw_only=True)
class Paint:
    """How to write on this stream: `colour` or not, and how many `columns` it has."""

    columns: int = 100
    colour: bool = False

    def __call__(self, text: str, mood: str = "plain") -> str:
        """`text` in the mood's colour. The text must be harmless already (see `untrusted`)."""
        code = _SGR[mood]
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and code and text else text

    def wrapped(self, text: str, indent: str, mood: str = "plain", first: str | None = None) -> list[str]:
        """A paragraph broken at the width, every line indented; `first` stands before the first line instead."""
        head = indent if first is None else first
        room = max(self.columns, len(indent) + 20)
        pieces = textwrap.wrap(text, room, initial_indent=" " * width(head), subsequent_indent=indent,
                               break_long_words=False, break_on_hyphens=False)  # fmt: skip
        return [(head if number == 0 else indent) + self(piece.strip(), mood) for number, piece in enumerate(pieces)]


def pad(text: str, columns: int) -> str:
    """`text` filled with blanks to `columns` on screen."""
    return text + " " * max(0, columns - width(text))
