"""One object's facts from a guest, judged as a run judges them, and its relocations' liveness foretold: what the kernel
showed against what `harness/predict` says.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

from harness.guest import btf as guest_btf
from harness.judge import classify
from harness.model.cell import CellId
from harness.model.expectation import NONE
from harness.model.result import CellResult, KernelResult, ObjectResult
from harness.model.verdict import CellStatus
from harness.predict.compare import compare
from harness.predict.kernels import model_from
from harness.predict.models import Model


def model_of(btf: Path) -> Model:
    """The verifier's rules, told by the kernel's BTF."""
    return model_from(guest_btf.load(str(btf)))


def held_against(facts: Mapping[str, Any], data: bytes, name: str, model: Model) -> dict[str, Any]:
    """The fields of `Compared` that say it: how many relocations of programs have which liveness, how many of them
    were foretold, wrongly foretold (rows), and why not all. `name` is the request's.
    """
    begun = CellResult.begin(
        CellId(kernel="any", object=name),
        KernelResult(id="any", arch="x86_64"),
        ObjectResult(name=name, path=name, sha256=hashlib.sha256(data).hexdigest()),
    )
    result = classify(facts, begun, NONE, today=date(2026, 1, 1))  # no rules: the day decides nothing
    unopened = (facts["object_error"] or {}).get("stage") == "open"  # nothing to foretell
    told = compare(result, facts, data, model)
    liveness = Counter(str(relo.liveness) for prog in result.progs for relo in prog.core_relos)
    return {
        "liveness": dict(liveness), "foretold": told["compared"], "foretold_wrongly": told["disagreements"],
        "not_foretold": None if unopened else result.reason if result.status is CellStatus.ERROR else told["reason"],
    }  # fmt: skip
