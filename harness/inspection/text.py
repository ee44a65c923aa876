"""Inspections as text for people, and as the lines of docs/contract.md. Names come out of an object: controls are
spelled out.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from harness import printable
from harness.inspection import Inspection


def render_jsonl(inspections: Iterable[Inspection], out: TextIO) -> None:
    """The lines of docs/contract.md. Of several BTFs one after another, each closed by its result line."""
    for inspection in inspections:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in inspection.lines())


def render_text(inspections: Sequence[Inspection], out: TextIO) -> None:
    """For people: by program and source line; of several BTFs a table, and details only of what is not the same in
    all.
    """
    text = io.StringIO()
    if len(inspections) == 1:
        _render_one(inspections[0], text)
    else:
        _render_table(inspections, text)
    out.write(printable.lines(text.getvalue()))


def _render_one(inspection: Inspection, out: TextIO) -> None:
    out.write(f"{inspection.object} against {inspection.btf} ({inspection.btf_types - 1} types)\n")
    out.writelines(f"note: {note}\n" for note in inspection.notes)
    out.writelines(f"extern {_extern_text(extern)}\n" for extern in inspection.externs)
    prog, source = None, None
    for relo in inspection.relos:
        if relo["prog"] != prog:
            prog, source = relo["prog"], None
            out.write(f"\n{prog}  ({relo['section']})\n")
        if relo["source"] != source and relo["source"] is not None:
            source = relo["source"]
            out.write(f"  {source['file']}:{source['line']}  {source['text']}\n")
        out.write(f"    insn {relo['insn']:<4} {relo['kind']:<14} {field_text(relo)}  {_decision_text(relo)}\n")
    out.write(f"\n{_summary(inspection)}\n")


def _extern_text(extern: Mapping[str, Any]) -> str:
    value = "" if extern["value"] is None else f" = {extern['value']}"
    weak = ", weak" if extern["weak"] else ""
    reason = f": {extern['reason']}" if extern["reason"] else ""
    return f"{extern['name']}{value} ({extern['type']}{weak}) {extern['outcome']}{reason}"


def field_text(relo: Mapping[str, Any]) -> str:
    """`struct task_struct.pid` from a spec's text, `?` when it could not be parsed."""
    spec = relo["local_spec"]
    if spec is None:
        return "?"
    return str(spec.split("] ", 1)[1].split(" (", 1)[0])


def _decision_text(relo: Mapping[str, Any]) -> str:
    reason = f"  ({relo['reason']})" if relo["reason"] else ""
    if relo["outcome"] == "resolved":
        return f"{relo['orig_value']} -> {relo['new_value']}{reason}"
    return f"{relo['outcome'].upper()}{reason}"


def _summary(inspection: Inspection) -> str:
    counts = dict.fromkeys(("resolved", "poisoned", "error"), 0)
    for relo in inspection.relos:
        counts[relo["outcome"]] += 1
    total = len(inspection.relos)
    text = (
        f"{total} relocation{'' if total == 1 else 's'}: {counts['resolved']} resolved, {counts['poisoned']} poisoned"
    )
    if inspection.skipped:
        text += f"; {inspection.skipped} skipped (programs that are not loaded, or were linked away)"
    if inspection.error is not None:
        text += f"\nlibbpf would give up on this object: {inspection.error}"
    return text


def _render_table(inspections: Sequence[Inspection], out: TextIO) -> None:
    out.write(f"{inspections[0].object}\n")
    out.writelines(
        f"  [{number}] {inspection.btf} ({inspection.btf_types - 1} types)\n"
        for number, inspection in enumerate(inspections, 1)
    )
    out.writelines(f"note: {note}\n" for note in inspections[0].notes)
    rows = _rows(inspections)
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(3 + len(inspections))]
    out.write("\n")
    out.writelines(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
    for number, inspection in enumerate(inspections, 1):
        out.write(f"\n[{number}] {_summary(inspection)}\n")
        for relo in inspection.relos:
            if relo["outcome"] != "resolved":
                out.write(
                    f"  {relo['prog']} insn {relo['insn']} {relo['kind']} {field_text(relo)}  {_decision_text(relo)}\n"
                )


def _rows(inspections: Sequence[Inspection]) -> list[list[str]]:
    """A head line, then one line for each relocation: program, kind, field, and what it became in each BTF."""
    longest = max(inspections, key=lambda inspection: len(inspection.relos))
    rows = [["program", "kind", "field", *(f"[{number}]" for number in range(1, len(inspections) + 1))]]
    for index, relo in enumerate(longest.relos):
        cells = [
            _cell(inspection.relos[index] if index < len(inspection.relos) else None) for inspection in inspections
        ]
        rows.append([f"{relo['prog']}+{relo['insn']}", relo["kind"], field_text(relo), *cells])
    return rows


def _cell(relo: Mapping[str, Any] | None) -> str:
    if relo is None:
        return "-"
    return str(relo["new_value"]) if relo["outcome"] == "resolved" else str(relo["outcome"])
