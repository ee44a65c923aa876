"""Who is judged before whom when two loaders are compared: libbpf first, since our loader then follows its rules.

Answers of libbpf are kept until the cell they are compared with takes them. A cell that finds none (the other was
judged elsewhere: another shard, another worker, an interrupted run) has its guest asked for libbpf's answer first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from itertools import groupby

from harness.executor.attempts import Answer
from harness.judge.comparison import Heard, compared
from harness.model.cell import Cell, CellId
from harness.model.result import CellResult

# Answers nobody came for go, the oldest first: on a cluster, the other cell may be another worker's.
_MOST_KEPT = 64


class Pairs:
    """The answers of libbpf that wait for our own loader's; for many threads."""

    def __init__(self) -> None:
        self._heard: OrderedDict[CellId, Heard] = OrderedDict()
        self._lock = threading.Lock()

    def first(self, cell: Cell) -> Cell | None:
        """The cell that must be asked for before this one: libbpf's, when its answer is not here."""
        if cell.loader != "python":
            return None
        other = replace(cell, loader="libbpf")
        with self._lock:
            return None if other.id in self._heard else other

    def keep(self, cell: Cell, answer: Answer) -> None:
        """Remember what came of a cell; our own loader's are not waited for."""
        if cell.loader != "libbpf":
            return
        with self._lock:
            self._heard[cell.id] = _heard(answer)
            while len(self._heard) > _MOST_KEPT:
                self._heard.popitem(last=False)

    def rules(self, cell: Cell) -> str | None:
        """The version of libbpf whose rules this cell follows; None: its loader's own."""
        if cell.loader != "python":
            return None
        with self._lock:
            heard = self._heard.get(replace(cell, loader="libbpf").id)
        rules = (heard.facts or {}).get("rules") if heard is not None else None
        return rules if isinstance(rules, str) else None

    def compared(self, cell: Cell, result: CellResult, answer: Answer) -> CellResult:
        """The result with what the comparison said; unchanged for libbpf's own cell."""
        if cell.loader != "python":
            return result
        with self._lock:
            libbpf = self._heard.pop(replace(cell, loader="libbpf").id, None)
        return compared(result, _heard(answer), libbpf or Heard(facts=None, lost="its answer is no longer known"))


def _heard(answer: Answer) -> Heard:
    lost = f"its guest was lost ({answer.lost.status}): {answer.lost.message}" if answer.lost is not None else None
    return Heard(facts=answer.facts, lost=lost, crashed=tuple(answer.crashed_progs))


def together(cells: Iterable[Cell]) -> list[tuple[Cell, ...]]:
    """Neighbours that differ in nothing but their loader, to be judged one after the other by one guest."""
    return [tuple(group) for _, group in groupby(cells, key=lambda cell: replace(cell.id, loader=""))]
