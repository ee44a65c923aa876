"""Kernel releases as people count them, and many of them said as ranges. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key: numbers by value, everything else as text (`4.9` before `4.18`)."""
    return tuple(
        (1, int(word), "") if word.isdigit() else (0, 0, word) for word in re.findall(r"\d+|[^\d.\-_+~]+", text)
    )


def runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """Where the flags are set, as half-open ranges of their positions."""
    found, at = [], 0
    for flag, group in groupby(flags):
        length = len(list(group))
        if flag:
            found.append((at, at + length))
        at += length
    return found


def range_text(start: int, end: int, releases: Sequence[str]) -> str:
    """A half-open range of releases that stand in order: `all 12`, `before 5.5.0-3 (4)`, `from 5.5.0-3 (8)`,
    `4.18.0-80 to 4.18.0-147 (3)`, `4.18.0-80`.
    """
    if start == 0 and end == len(releases):
        return releases[0] if end == 1 else f"all {end}"
    if end - start == 1:
        return releases[start]
    if start == 0:
        return f"before {releases[end]} ({end})"
    if end == len(releases):
        return f"from {releases[start]} ({end - start})"
    return f"{releases[start]} to {releases[end - 1]} ({end - start})"
