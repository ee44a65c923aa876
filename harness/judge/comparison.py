"""One object under both loaders on one kernel (`run --loader both`): what our loader's cell says of it. Pure.

The two are compared only where both judged the object whole. A cell without a comparison says why, in its
`comparison`, as does the run in its notes: silence would read as agreement.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.judge import shape
from harness.judge.agreement import disagreements
from harness.judge.classify import FACTS_VERSION
from harness.model.result import CellResult
from harness.model.verdict import CellStatus

LOADERS_DISAGREE = "loaders_disagree"


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a guest said of an object under one loader: `facts`, or in `lost` why there are none; `crashed` are the
    programs that kill the kernel even when they are alone.
    """

    facts: Mapping[str, Any] | None
    lost: str | None = None
    crashed: tuple[str, ...] = field(default=())

    def why_not(self) -> str | None:
        """Why there is nothing here to compare; None when there is."""
        if self.facts is None:
            return self.lost or "no answer"
        if self.facts.get("facts") != FACTS_VERSION:
            return f"facts of version {self.facts.get('facts')!r}"
        problem = shape.problem(self.facts)
        if problem is not None:
            return f"malformed facts: {problem}"
        if self.crashed:
            return f"the kernel crashed at {', '.join(self.crashed)}"
        return _no_memory(self.facts.get("object_error"))


def _no_memory(error: Mapping[str, Any] | None) -> str | None:
    """A guest too small for an object's maps says nothing about its loader: which of the two is refused is chance."""
    if error is None or error.get("errno") != errno.ENOMEM:
        return None
    return f"the guest has too little memory for it ({error.get('message')}): give the kernel more memory_mb"


def compared(result: CellResult, python: Heard, libbpf: Heard) -> CellResult:
    """Our loader's cell with its `comparison` and `disagreements`; one of these makes it an `error` whatever else it
    was, since then nobody knows whose verdict is right.
    """
    reasons = [f"{name}: {why}" for name, said in (("libbpf", libbpf), ("python", python)) if (why := said.why_not())]
    if reasons or python.facts is None or libbpf.facts is None:
        return replace(result, comparison=_comparison(libbpf, "; ".join(reasons)))
    rows = tuple(disagreements(python.facts, libbpf.facts))
    result = replace(result, comparison=_comparison(libbpf, None), disagreements=rows)
    return replace(result, status=CellStatus.ERROR, reason=LOADERS_DISAGREE) if rows else result


def _comparison(libbpf: Heard, reason: str | None) -> dict[str, Any]:
    return {"loader_version": (libbpf.facts or {}).get("loader_version"), "reason": reason}


def notes(cells: Iterable[CellResult]) -> tuple[str, ...]:
    """What a run says of its comparisons: how many there were and how they came out, and every one that was not
    made. Nothing when none was asked for.
    """
    pairs = [(cell, cell.comparison) for cell in cells if cell.comparison is not None]
    made = [cell for cell, how in pairs if how.get("reason") is None]
    judges = ", ".join(sorted({str(how.get("loader_version")) for _, how in pairs if how.get("reason") is None}))
    rows = sum(len(cell.disagreements) for cell in made)
    apart = sum(bool(cell.disagreements) for cell in made)
    verdict = f"{rows} disagreements in {apart} of them" if rows else "no disagreement"
    summary = (f"python and {judges} compared in {len(made)} cells: {verdict}",) if made else ()
    unmade = ((cell.id, how["reason"]) for cell, how in pairs if how.get("reason") is not None)
    missing = (f"{identity}: loaders not compared: {reason}" for identity, reason in unmade)
    return (*summary, *missing)
