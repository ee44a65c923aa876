"""What options of several verbs take."""

from __future__ import annotations

from argparse import ArgumentTypeError


def positive(text: str) -> int:
    """For argparse: a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        message = f"a whole number above 0 is expected, not {text!r}"
        raise ArgumentTypeError(message)
    return int(text)
