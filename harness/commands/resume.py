"""`run --resume DIR`: an interrupted run goes on in its own directory; what was judged there is kept.

A run writes `plan.json` before it does anything else: for every cell the digest of all that its result depends on. A
kept result is one whose file can be read, that was judged, and whose digest is still the same; everything else (never
begun, cut off, lost with its guest, our own trouble, another object or expectation by now) is run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from harness import __version__
from harness.errors import UsageError
from harness.executor import functional
from harness.model.cell import Cell
from harness.model.expectation import NONE, Expectations
from harness.model.lock import Lock
from harness.model.result import CellResult, cell_from_json
from harness.model.verdict import CellStatus
from harness.rundir import PACKAGES, PLAN, RunDirectory, file_name

LATEST = "latest"
# A guest that was lost and trouble of ours say nothing about the object for good.
_JUDGED = (CellStatus.PASSED, CellStatus.FAILED, CellStatus.NOT_APPLICABLE, CellStatus.SKIPPED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`--resume`."""
    parser.add_argument("--resume", metavar="DIR", help="continue the interrupted run in this directory (or "
        "`latest`, the newest below --output); give the rest of the command line as it was")  # fmt: skip


def open_directory(options: argparse.Namespace, started: datetime) -> RunDirectory:
    """The directory of this run: a new one, or the one to go on in. UsageError for one that no run was begun in."""
    if options.resume is None:
        return RunDirectory.create(options.output, started)
    path = _latest(options.output) if options.resume == LATEST else Path(options.resume)
    if not (path / PLAN).is_file():
        message = f"--resume {options.resume}: no {PLAN} in {path}: no run was begun there"
        raise UsageError(message, remedy="name a directory below corematrix-runs/")
    directory = RunDirectory(path)
    directory.sweep()
    return directory


def _latest(parent: Path) -> Path:
    begun = [path.parent for path in parent.glob(f"*/{PLAN}")]
    if not begun:
        message = f"--resume {LATEST}: no run was begun below {parent}"
        raise UsageError(message)
    return max(begun, key=lambda path: (path / PLAN).stat().st_mtime_ns)


def keep(
    directory: RunDirectory,
    cells: Sequence[Cell],
    expectations: Mapping[str, Expectations],
    lock: Lock | None,
    tests: functional.Tests | None = None,
    *,
    compared: bool = False,
) -> dict[str, CellResult]:
    """Results of an earlier run in this directory, by identity, and the plan of this one written down.

    `compared`: none of our loader that was not held against libbpf's. Without an earlier run: nothing.
    InfrastructureError when the plan cannot be written.
    """
    digests = {
        str(cell.id): _digest(
            cell, expectations.get(cell.object.name, NONE), lock,
            [item.digest for item in (tests or {}).get((cell.object.name, cell.kernel.arch.name), ())],
        )
        for cell in cells
    }  # fmt: skip
    earlier = _plan(directory.path / PLAN)
    kept = {}
    for cell in cells:
        identity = str(cell.id)
        if earlier.get(identity) == digests[identity]:
            result = _read(directory.path / "cells" / f"{file_name(identity)}.json")
            lacks = compared and cell.loader == "python" and result is not None and result.comparison is None
            if result is not None and result.id == identity and result.status in _JUDGED and not lacks:
                kept[identity] = result
        elif identity in earlier:
            # Before the new plan is written, which would make it look like this plan's if we are interrupted again.
            (directory.path / "cells" / f"{file_name(identity)}.json").unlink(missing_ok=True)
    directory.write(PLAN, json.dumps({"plan": 1, "cells": digests}, indent=1))
    return kept


def guest_packages(directory: RunDirectory, kept: Mapping[str, CellResult]) -> dict[str, tuple[dict[str, Any], ...]]:
    """What the guests of the kept results were made of, by architecture, as the run that was interrupted wrote it."""
    found = _object(directory.path / PACKAGES)
    arches = {result.kernel.arch for result in kept.values() if result.status is not CellStatus.NOT_APPLICABLE}
    rows = {arch: value for arch, value in found.items() if arch in arches and isinstance(value, list)}
    return {arch: tuple(row for row in value if isinstance(row, dict)) for arch, value in rows.items()}


def note(kept: Mapping[str, CellResult]) -> tuple[str, ...]:
    """What a resumed run says about itself."""
    return (f"resumed: {len(kept)} results are those of the run that was interrupted",) if kept else ()


def _digest(cell: Cell, expectations: Expectations, lock: Lock | None, tests: Sequence[str] = ()) -> str:
    """Of all that a result depends on and that may have changed since: dataclasses print every field they have."""
    kernel = replace(cell.kernel, tags=frozenset())  # a set prints in another order each time
    pins = (lock.kernels.get(cell.kernel.id), lock.guest) if lock is not None else None
    parts = (__version__, str(cell.id), kernel, cell.object.sha256, expectations, pins, cell.not_applicable, tests)
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def _plan(path: Path) -> Mapping[str, object]:
    """Digests by identity; none where there is no plan, or a damaged one."""
    cells = _object(path).get("cells")
    return cells if isinstance(cells, dict) else {}


def _object(path: Path) -> Mapping[str, Any]:
    """A file that holds a JSON object; empty where there is none, or a damaged one."""
    with suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_bytes())
        return found if isinstance(found, dict) else {}
    return {}


def _read(path: Path) -> CellResult | None:
    """A cell's file; None when it is not there or not whole (a machine that lost power)."""
    with suppress(OSError, ValueError, RecursionError, UsageError):
        return cell_from_json(json.loads(path.read_bytes()))
    return None
