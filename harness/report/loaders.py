"""What two loaders do not agree on (`run --loader both`): a line for each row of a cell's `disagreements`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.model.result import CellResult

# An instruction, a spec or a list of instructions is shorter; an error's text may not be.
_LONGEST = 300


def place(row: Mapping[str, Any]) -> str:
    """`insns trace, insn 4`: what the row is about."""
    return f"{row.get('what', '')} {row.get('where', '')}".strip() + f", {row.get('field', '')}"


def said(row: Mapping[str, Any]) -> str:
    """`python says 8, libbpf says 12`."""
    return ", ".join(f"{loader} says {_short(row.get(loader))}" for loader in ("python", "libbpf"))


def lines(cell: CellResult) -> list[str]:
    """Every disagreement of a cell, none left out."""
    return [f"{place(row)}: {said(row)}" for row in cell.disagreements]


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
