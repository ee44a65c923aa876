"""A worker whose guests are made of sleep: `dask worker --preload tests.bench.stub_worker` (see simulate_scale.py)."""

from __future__ import annotations

import os
import random
import time
from typing import Any

from harness.executor import cluster_worker
from harness.executor.cluster_worker import Judged
from harness.model.cell import Cell
from harness.model.result import CellResult, KernelResult, ObjectResult
from harness.model.verdict import CellStatus
from tests.support.facts import begun, facts, judged, poisoned, prog, relo

_SECONDS = float(os.environ.get("STUB_SECONDS", "0"))
_LOSS = float(os.environ.get("STUB_LOSS", "0"))
_RELOS = [relo(number) if number % 3 else poisoned(number) for number in range(20)]
# What an object of three programs, twenty relocations each, comes to.
_SAMPLE = judged(facts([prog(f"p{n}", relos=[(i, i) for i in range(20)]) for n in range(3)], _RELOS), cell=begun())


def judge_cell(_run: str, cell: Cell) -> Judged:
    """A result after a while; now and then the whole worker is lost instead."""
    if random.random() < _LOSS:
        os._exit(1)
    if _SECONDS:
        time.sleep(random.expovariate(1 / _SECONDS))
    return Judged(result=_result(cell), files={}, packages=())


def _result(cell: Cell) -> CellResult:
    kernel = KernelResult(id=cell.kernel.id, arch=cell.kernel.arch.name)
    own = ObjectResult(name=cell.object.name, path=str(cell.object.path), sha256=cell.object.sha256)
    provenance: dict[str, Any] = {"progs": _SAMPLE.progs, "status": CellStatus.PASSED}
    return CellResult.begin(cell.id, kernel, own, **provenance)


cluster_worker.judge_cell = judge_cell  # type: ignore[assignment]
