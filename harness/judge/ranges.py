"""Sets of instruction indexes, as docs/facts.md spells them: a list of half-open `[start, end)` pairs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence


class Insns:
    """A set of instruction indexes, asked only whether it holds one."""

    def __init__(self, ranges: Sequence[Sequence[int]]) -> None:
        self._ranges = sorted((start, end) for start, end in ranges)
        self._starts = [start for start, _ in self._ranges]

    def __contains__(self, insn: object) -> bool:
        if not isinstance(insn, int):
            return False
        at = bisect_right(self._starts, insn) - 1
        return at >= 0 and insn < self._ranges[at][1]

    @classmethod
    def of(cls, ranges: Sequence[Sequence[int]] | None) -> Insns | None:
        """None stays None: no such evidence, which is not the same as the empty set."""
        return None if ranges is None else cls(ranges)
