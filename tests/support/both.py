"""The pool's services with both loaders compared, and guests that answer what was recorded from one kernel."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

DATA = Path(__file__).parents[1] / "data" / "both"


def recorded(loader: str) -> dict[str, Any]:
    """What this loader answered of task_state on the kernel it was recorded on (tests/data/both/README.md)."""
    facts: dict[str, Any] = json.loads((DATA / f"{loader}.json").read_text())
    return facts


def altered(facts: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """A copy of the facts with one change made to it."""
    other = copy.deepcopy(facts)
    change(other)
    return other


def other_byte(facts: dict[str, Any]) -> None:
    """One byte of one patched instruction, as if one loader had written another offset."""
    line = next(line for line in facts["core_relos"] if line["outcome"] == "resolved" and line["kind"] == "byte_off")
    last = int(line["after"][-2:], 16) ^ 1
    line["after"] = f"{line['after'][:-2]}{last:02x}"
