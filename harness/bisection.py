"""The first kernel where a program's fate changes, in as few boots as possible. Pure: `bisect` in `harness.commands`
does the booting.

What is compared is what differs between the good and the bad end: the verdict where that differs, else the outcomes
(and values, for existence checks) of the relocations that do. A kernel in between that has neither end's answer counts
as changed: it is no longer as the good one was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.model.result import CellResult, ProgResult
from harness.report.view import keyed

Fate = Mapping[str, str]
VERDICT = "verdict"


def fate(cell: CellResult, prog: str) -> Fate | None:
    """What became of a program on a kernel: `verdict`, and each relocation's outcome by name. None: it was not judged
    (the guest was lost, the kernel could not be had), which is no answer.
    """
    found = next((item for item in cell.progs if item.name == prog), None)
    if found is None or found.verdict.value in ("not_judged", "skipped"):
        return None
    stage = f" at {found.stage}" if found.stage else ""
    return {VERDICT: f"{found.verdict}{stage}", **_outcomes(found)}


def _outcomes(prog: ProgResult) -> dict[str, str]:
    found = {}
    for key, relo in keyed(prog.core_relos).items():
        value = f" = {relo.new_value}" if relo.is_guard else ""
        line = f" (line {relo.source.line})" if relo.source else ""
        name = f"{relo.field} {relo.kind}{line}"
        found[name if name not in found else f"{name} #{key}"] = f"{relo.outcome}{value}"
    return found


def differing(good: Fate, bad: Fate, wanted: str | None = None) -> tuple[str, ...]:
    """The aspects to bisect by: the verdict if it differs, else every relocation that does. `wanted` is part of a
    relocation's name: then only those. Empty when nothing differs.
    """
    names = [name for name in dict.fromkeys([*good, *bad]) if good.get(name) != bad.get(name)]
    if wanted is not None:
        return tuple(name for name in names if wanted in name and name != VERDICT)
    return (VERDICT,) if VERDICT in names else tuple(names)


@dataclass(frozen=True, kw_only=True)
class Found:
    """Between `last_good` and `first_changed` (positions) it changed; `unknown` lie between and could not be judged."""

    last_good: int
    first_changed: int
    unknown: tuple[int, ...]


def search(count: int, changed: Callable[[int], bool | None]) -> Found:
    """Bisect positions 0 (good) to `count` - 1 (changed), neither of which is asked for. `changed` says None for a
    kernel that cannot be judged; its neighbours are asked instead, nearest to the middle first.
    """
    low, high = 0, count - 1
    unknown: set[int] = set()
    while True:
        candidates = [at for at in range(low + 1, high) if at not in unknown]
        if not candidates:
            between = tuple(at for at in sorted(unknown) if low < at < high)
            return Found(last_good=low, first_changed=high, unknown=between)
        at = min(candidates, key=lambda position: abs(2 * position - low - high))
        answer = changed(at)
        if answer is None:
            unknown.add(at)
        elif answer:
            high = at
        else:
            low = at
