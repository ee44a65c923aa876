"""How long a cell takes, in seconds: from earlier runs where there were some, from a table where not.

Only proportions matter: costs decide which cells go together (`executor.shard`) and which go first, never a verdict.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

from harness.model.cell import Cell
from harness.model.kernel import KernelSpec
from harness.model.result import CellResult
from harness.store import Store

_KIND = "costs"
# A guest under emulation, cold (docs/facts.md of the measuring machine: 3-8 s x86_64, 5-13 s arm64), and an object of
# a few programs in it.
_BOOT_SECONDS = {"x86_64": 5.0, "arm64": 9.0}
_OTHER_BOOT_SECONDS = 10.0
_LOAD_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """`boots`: kernel id -> seconds of a boot; `loads`: kernel id -> what a cell is apart from its kernel -> seconds.

    Without any of them the table of defaults speaks.
    """

    boots: Mapping[str, float] = field(default_factory=dict)
    loads: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @classmethod
    def measured(cls, cells: Iterable[CellResult]) -> Costs:
        """What these results say. A cell that was not judged says nothing."""
        boots: dict[str, list[float]] = {}
        loads: dict[str, dict[str, float]] = {}
        for cell in cells:
            seconds = cell.seconds if cell.progs else {}
            if seconds.get("boot", 0) > 0:
                boots.setdefault(cell.kernel.id, []).append(seconds["boot"])
            if seconds.get("load", 0) > 0:
                loads.setdefault(cell.kernel.id, {})[_rest(cell.id)] = seconds["load"]
        return cls(boots={kernel: median(found) for kernel, found in boots.items()}, loads=loads)

    @classmethod
    def stored(cls, store: Store, kernels: Iterable[str]) -> Costs:
        """What runs on this cache measured for these kernels. Damaged entries count as none."""
        found = {kernel: _checked(store.entry(_KIND, kernel)) for kernel in kernels}
        boots = {kernel: entry["boot"] for kernel, entry in found.items() if entry["boot"]}
        return cls(boots=boots, loads={kernel: entry["cells"] for kernel, entry in found.items() if entry["cells"]})

    def store(self, store: Store) -> None:
        """Add them to what the cache knows, in place of older figures. CacheError."""
        for kernel in sorted({*self.boots, *self.loads}):
            with store.lock(f"costs {kernel}"):
                known = _checked(store.entry(_KIND, kernel))
                boot = self.boots.get(kernel, known["boot"])
                cells = {**known["cells"], **self.loads.get(kernel, {})}
                store.put_entry(_KIND, kernel, {"boot": boot, "cells": cells})

    def boot(self, kernel: KernelSpec) -> float:
        """A boot of this kernel."""
        usual = _BOOT_SECONDS.get(kernel.arch.name, _OTHER_BOOT_SECONDS)
        return self.boots.get(kernel.id) or usual

    def load(self, cell: Cell) -> float:
        """This cell in a guest that runs: as measured, else what its object took on other kernels, else the default."""
        rest = _rest(str(cell.id))
        own = self.loads.get(cell.kernel.id, {}).get(rest)
        if own:
            return own
        elsewhere = [found[rest] for found in self.loads.values() if rest in found]
        return fmean(elsewhere) if elsewhere else _LOAD_SECONDS


def _rest(identity: str) -> str:
    return identity.partition("/")[2]


def _checked(entry: Mapping[str, Any] | None) -> dict[str, Any]:
    entry = entry or {}
    boot, cells = entry.get("boot"), entry.get("cells")
    return {
        "boot": float(boot) if isinstance(boot, (int, float)) and boot > 0 else None,
        "cells": {
            str(rest): float(seconds)
            for rest, seconds in (cells.items() if isinstance(cells, dict) else ())
            if isinstance(seconds, (int, float)) and seconds > 0
        },
    }
