"""Facts written by hand, in docs/facts.md's shape: small programs whose right answer can be seen by looking."""

from __future__ import annotations

import base64
import datetime
import struct
from typing import Any

from harness.judge import classify
from harness.model.cell import CellId
from harness.model.expectation import NONE, Expectations, expectations_from
from harness.model.result import CellResult, KernelResult, ObjectResult, ProgResult, Relocation, RunResult
from harness.model.verdict import Start

TODAY = datetime.date(2026, 7, 1)
POISON_CALL = (0x85, 0, 0, 195896080)


def insns(*code: tuple[int, int, int, int]) -> str:
    """Instructions (code, src_reg, off, imm) as facts carry them."""
    raw = b"".join(struct.pack("<BBhi", op, src << 4, off, imm) for op, src, off, imm in code)
    return base64.b64encode(raw).decode()


def relo(
    index: int,
    field: str = "task_struct.state",
    kind: str = "byte_off",
    *,
    line: int | None = None,
    text: str = "",
    function: str = "prog",
    **more: Any,
) -> dict[str, Any]:
    """One line of core_relos: resolved to 8 unless told otherwise."""
    what = "enum" if "::" in field else "struct"
    path = "" if kind.startswith(("type", "enumval")) else " (0:1 @ offset 4)"
    return {
        "type": "core_relo", "index": index, "prog": function, "section": "raw_tp/x", "insn": 0, "kind": kind,
        "local_spec": f"<{kind}> [{5 + index}] {what} {field}{path}", "target_spec": None, "outcome": "resolved",
        "orig_value": 4, "new_value": 8, "before": "b701000004000000", "after": "b701000008000000", "reason": None,
        "local": None, "target": None, "candidates": [],
        "source": {"file": "x.bpf.c", "line": line or 10 + index, "text": text or f"use({field});"},
        **more,
    }  # fmt: skip


def poisoned(index: int, field: str = "task_struct.state", **more: Any) -> dict[str, Any]:
    """A relocation that found no target."""
    rest = {"new_value": None, "outcome": "poisoned", "reason": "no matching target", **more}
    return relo(index, field, **rest)


def guard(index: int, field: str, value: int, **more: Any) -> dict[str, Any]:
    """A field_exists check that came out as `value`."""
    return relo(index, field, "field_exists", new_value=value, orig_value=1, **more)


def prog(
    name: str = "prog", *, loaded: bool = True, relos: list[tuple[int, int]] | None = None, **more: Any
) -> dict[str, Any]:
    """One of `progs`; `relos` are (relocation, final instruction)."""
    return {
        "name": name, "section": "raw_tp/x", "prog_type": "raw_tracepoint", "expected_attach_type": None,
        "attach_target": None, "autoload": True, "sleepable": False, "loaded": loaded, "alone": False,
        "stage": None if loaded else "verifier", "errno": None if loaded else 13, "error": None, "adaptations": [],
        "verifier": None, "log": "", "log_truncated": False, "insns": "", "refs": [], "attach": None, "evidence": None,
        "funcs": [{"name": name, "start": 0, "insns": 32, "global": True}],
        "relos": [{"relo": number, "insn": insn} for number, insn in relos or []],
        **more,
    }  # fmt: skip


def evidence(
    survived: list[list[int]] | None = None, visited: list[list[int]] | None = None, **more: Any
) -> dict[str, Any]:
    """A program's evidence; `survived` None: the evidence load was not taken."""
    line_info = {"loaded": survived is not None or None, "errno": None, "survived": survived, "reason": None}
    return {"verdict_log_visited": visited, "line_info": line_info, "analysis": [], "flips": [], **more}


def facts(progs: list[dict[str, Any]], core_relos: list[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    """A whole answer."""
    return {
        "type": "facts", "facts": 1, "loader": "python", "loader_version": "corematrix 0.1.0", "rules": "1.7.0",
        "guest": {"release": "6.1.0", "machine": "x86_64", "features": {"btf_load": True}},
        "object": {"has_btf": True, "license": "GPL"}, "object_error": None, "externs": [],
        "core_relos": core_relos or [], "skipped_core_relos": 0, "maps": [], "progs": progs, "seconds": {},
        **more,
    }  # fmt: skip


def begun(
    kernel: str = "debian-6.1-cloud-amd64", object_: str = "x", *, arch: str = "x86_64", **more: Any
) -> CellResult:
    """A cell nothing is known of."""
    cell = CellId(kernel=kernel, object=object_, settings=more.pop("settings", ()), loader=more.pop("loader", "python"))
    kernel_result = KernelResult(id=kernel, arch=arch, release="6.1.0-50-cloud-amd64", variant="cloud")
    return CellResult.begin(cell, kernel_result, ObjectResult(name=object_, path=f"{object_}.bpf.o", sha256="00" * 32),
                            accelerator="tcg", cpus=2, start=Start.COLD, seconds={"total": 1.0}, **more)  # fmt: skip


def judged(
    answer: dict[str, Any], rules: dict[str, Any] | None = None, *, cell: CellResult | None = None, **more: Any
) -> CellResult:
    """The answer classified, on a plain cell unless given, under an expectations mapping unless None."""
    promises: Expectations = expectations_from(rules, "x.yaml") if rules is not None else NONE
    return classify(answer, cell or begun(), promises, today=TODAY, **more)


def only_prog(cell: CellResult) -> ProgResult:
    """The one program of a cell."""
    (found,) = cell.progs
    return found


def relocation(cell: CellResult, index: int) -> Relocation:
    """A relocation of the cell's only program, by record order."""
    return next(item for item in only_prog(cell).core_relos if item.index == index)


def run_of(*cells: CellResult, **more: Any) -> RunResult:
    """A run of these cells."""
    return RunResult(tool={"name": "corematrix", "version": "0.1.0"}, host={"machine": "x86_64"},
                     started="2026-07-01T12:00:00Z", seconds=12.5, cells=cells, **more)  # fmt: skip
