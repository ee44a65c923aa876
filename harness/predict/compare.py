"""Prediction against proof: for each relocation whose liveness a kernel showed, whether it was foretold.

    {"rules": [...], "compared": 12, "disagreements": [{"prog", "index", "field", "kind", "insn", "kernel", "evidence",
     "predicted"}], "reason": null}

goes into a cell's result as `prediction`; `reason` says why nothing was compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from harness.guest.errors import GuestError
from harness.model.result import CellResult, ProgResult
from harness.model.verdict import Liveness
from harness.predict.final import Prediction
from harness.predict.machine import predict
from harness.predict.models import Model
from harness.predict.program import from_facts, known_object

_SHOWN = frozenset({Liveness.LIVE, Liveness.ELIMINATED})


def compare(result: CellResult, facts: Mapping[str, Any], data: bytes, model: Model) -> dict[str, Any]:
    """The cell's `prediction`. `facts` is the guest's answer that `result` was judged from, `data` the object's bytes,
    `model` the verifier of the cell's kernel.
    """
    outcome: dict[str, Any] = {"rules": sorted(model.rules), "compared": 0, "disagreements": [], "reason": None}
    try:
        known = known_object(result, facts, data)
    except GuestError as error:
        return {**outcome, "reason": error.message}
    by_name = {prog["name"]: prog for prog in facts.get("progs") or ()}
    unpredicted = []
    for prog in result.progs:
        if not any(relo.liveness in _SHOWN for relo in prog.core_relos) or prog.name not in by_name:
            continue
        prediction = predict(from_facts(by_name[prog.name], facts.get("externs") or (), known), model)
        if not prediction.complete:
            unpredicted.append(prog.name)
            continue
        compared, rows = _rows(prog, prediction)
        outcome["compared"] += compared
        outcome["disagreements"] += rows
    if unpredicted:
        outcome["reason"] = f"too much to walk: {', '.join(unpredicted)}"
    return outcome


def _rows(prog: ProgResult, prediction: Prediction) -> tuple[int, list[dict[str, Any]]]:
    """How many relocations were compared, and those that were foretold wrongly."""
    shown = [relo for relo in prog.core_relos if relo.liveness in _SHOWN and relo.final_insn is not None]
    rows = []
    for relo in shown:
        assert relo.final_insn is not None
        predicted = Liveness.LIVE if prediction.reaches(relo.final_insn) else Liveness.ELIMINATED
        if predicted is not relo.liveness:
            rows.append(
                {
                    "prog": prog.name, "index": relo.index, "field": relo.field, "kind": relo.kind,
                    "insn": relo.final_insn, "kernel": str(relo.liveness), "evidence": str(relo.evidence),
                    "predicted": str(predicted),
                }
            )  # fmt: skip
    return len(shown), rows


def notes(cells: Iterable[CellResult]) -> tuple[str, ...]:
    """A sentence for each relocation that was foretold wrongly, for a run's notes."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        for row in (cell.prediction or {}).get("disagreements") or ():
            text = (
                f"{cell.object.name}/{row['prog']}: {row['field']} ({row['kind']}) is {row['kernel']} by"
                f" {row['evidence']}, predicted {row['predicted']}"
            )
            found.setdefault(text, []).append(cell.kernel.id)
    return tuple(f"prediction and kernel disagree: {text} (on {', '.join(where)})" for text, where in found.items())
