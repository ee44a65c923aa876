"""One HTML file with everything in it: heat map, ledgers, filters; no network, no library.

The page (`page.html`) is fixed; the run goes in as JSON. A matrix of 40 kernels x 200 programs x 20 relocations is
160,000 findings of which most are equal: each different one is stored once and pointed at by number.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from importlib.resources import files
from typing import Any

from harness import ci_log
from harness.judge.explain import why
from harness.model.result import CellResult, ProgResult, Relocation, RunResult
from harness.report import attach, audit_format, functional, loaders, suspicion
from harness.report.audit import TITLES, Topic, audit, guards
from harness.report.diff import diff
from harness.report.kernels import describe
from harness.report.ledger import relation_of
from harness.report.untrusted import lines
from harness.report.view import ATTACH_LEGEND, LEGEND, Program, View, attach_mark, mark


def render(run: RunResult, baseline: RunResult | None = None) -> str:
    """The page as text; with a baseline, what changed since is marked and can be filtered for."""
    page = files("harness.report").joinpath("page.html").read_text(encoding="utf-8")
    # In a script element only `</` and `<!--` could end the data; no guest can write either.
    data = ci_log.json(json.dumps(_Packer(run, baseline).pack(), separators=(",", ":"))).replace("<", "\\u003c")
    return page.replace("__CORE_MATRIX_DATA__", data)


class _Packer:
    """Turns a run into the page's data: lists pointing into tables of distinct things."""

    def __init__(self, run: RunResult, baseline: RunResult | None) -> None:
        self._view = View(run)
        self._tables: dict[str, dict[Hashable, int]] = {name: {} for name in ("relos", "results", "cells")}
        self._changes: dict[tuple[str, str], list[str]] = {}
        self._compared = baseline is not None
        for change in diff(baseline, run).changes if baseline is not None else ():
            place = f"{change.relocation}: " if change.relocation else ""
            self._changes.setdefault((change.cell, change.prog or ""), []).append(
                f"{change.kind}: {place}{change.text}"
            )

    def pack(self) -> dict[str, Any]:
        """Everything the page shows."""
        view, run = self._view, self._view.run
        rows = [self._row(view.label(subject), program) for subject in view.subjects
                for program in view.programs(subject) or [Program(subject=subject, name="")]]  # fmt: skip
        kernels = {cell.kernel.id: cell.kernel for cell in run.cells}
        return {
            "title": f"corematrix {run.tool.get('version', '')}: {run.started}",
            "counts": {str(status): count for status, count in run.count().items() if count},
            "seconds": run.seconds,
            "kernels": [{"id": _(k.id), "release": _(k.release or ""), "arch": k.arch} for k in kernels.values()],
            "rows": rows,
            "relos": _table(self._tables["relos"]),
            "results": _table(self._tables["results"]),
            "cells": _table(self._tables["cells"]),
            "legend": LEGEND,
            "attached": view.attached,
            "attach_legend": ATTACH_LEGEND,
            "compared": self._compared,
            "notes": [_(note) for note in run.notes],
            "guards": [[_(item.subject), _(audit_format.said(item, view))] for item in guards(view)],
            "audit": self._audit(),
        }

    def _audit(self) -> list[list[Any]]:
        """[title, mood, remarks] for each topic; a remark knows the row and the kernel whose ledger shows it."""
        view = self._view
        rows = [(view.label(subject), program.name) for subject in view.subjects
                for program in view.programs(subject) or [Program(subject=subject, name="")]]  # fmt: skip
        places = {row: number for number, row in enumerate(rows)}
        columns = {kernel: number for number, kernel in enumerate(view.kernels)}
        topics: dict[Topic, list[list[Any]]] = {}
        for remark in audit(view.run):
            row = places.get((remark.subject, remark.prog), -1)
            column = columns[remark.kernels[0]] if row >= 0 and remark.kernels else -1
            topics.setdefault(remark.topic, []).append([
                _(f"{remark.subject}/{remark.prog}"), _(audit_format.place_of(remark)), _(remark.field), remark.kind,
                _(describe(remark.kernels, remark.judged)), _(remark.text), row, column,
            ])  # fmt: skip
        return [[TITLES[topic], audit_format.MOODS.get(topic, "quiet"), remarks] for topic, remarks in topics.items()]

    def _row(self, label: str, program: Program) -> dict[str, Any]:
        fields: list[Any] = []
        for kernel in self._view.kernels:
            cell = self._view.cells.get((program.subject, kernel))
            fields.append(None if cell is None else self._field(cell, program, kernel))
        heads = [[_(key.field), key.kind, _(key.function), _source(next(iter(by_kernel.values())))]
                 for key, by_kernel in program.relocations.items()]  # fmt: skip
        section = next((prog.section for prog in program.results.values()), "")
        names = {"object": _(label), "program": _(program.name), "section": _(section)}
        return {**names, "fields": fields, "relos": heads}

    def _field(self, cell: CellResult, program: Program, kernel: str) -> list[Any]:
        """[word, mood, cell, result or -1, a relocation record per head or -1, changes, attach word, attach mood]."""
        prog = program.results.get(kernel)
        shown, attached = mark(cell, prog), attach_mark(prog)
        said = program.suspicions
        relos = [-1 if kernel not in by_kernel
                 else self._intern("relos", _record(by_kernel[kernel], suspicion.of_field(said, key.field, {kernel})))
                 for key, by_kernel in program.relocations.items()]  # fmt: skip
        suspects = suspicion.of_field(said, "", {kernel})
        result = -1 if prog is None else self._intern("results", _result(prog, suspects))
        changes = self._changes.get((cell.id, program.name), []) + self._changes.get((cell.id, ""), [])
        return [
            shown.word,
            shown.mood,
            self._intern("cells", _cell(cell)),
            result,
            relos,
            [_(text) for text in changes],
            *((_(attached.word), attached.mood) if self._view.attached else ()),
        ]

    def _intern(self, table: str, value: Hashable) -> int:
        return self._tables[table].setdefault(value, len(self._tables[table]))


def _table(table: dict[Hashable, int]) -> list[Hashable]:
    return list(table)


def _(text: str) -> str:
    """Text of a guest: shown by the page as text only, and without controls even so."""
    return lines(text)


def _source(relo: Relocation) -> list[Any] | None:
    return None if relo.source is None else [_(relo.source.file), relo.source.line, _(relo.source.text)]


def _record(relo: Relocation, suspects: tuple[str, ...]) -> tuple[Any, ...]:
    """What became of a relocation on a kernel. Values as text: 64 bits do not fit a JavaScript number."""
    value = "" if relo.new_value is None else str(relo.new_value)
    words = (why(relo), relation_of(relo), relo.target_spec, "; ".join(suspects))
    state = (str(relo.outcome), str(relo.liveness), str(relo.evidence or ""))
    return (
        *state,
        str(relo.orig_value),
        value,
        relo.before or "",
        relo.after or "",
        *(_(word or "") for word in words),
    )


def _result(prog: ProgResult, suspects: tuple[str, ...]) -> tuple[Any, ...]:
    log = prog.verifier.log_excerpt if prog.verifier else None
    path = prog.verifier.log if prog.verifier else None
    stats = prog.verifier
    figures = (
        (stats.processed_insns, "{} instructions"), (stats.total_states, "{} states"), (stats.stack_depth, "stack {}"),
    ) if stats else ()  # fmt: skip
    cost = ", ".join(text.format(figure) for figure, text in figures if figure is not None)
    stage = f" at {prog.stage}" if prog.stage else ""
    said = tuple(_(text) for text in (*prog.unmet, *prog.explanation, *suspects, *attach.words(prog), *prog.notes))
    return (f"{prog.verdict}{stage}", _(prog.error or ""), said, _(log or ""), _(path or ""), cost,
            _(prog.expected.reason or "") if prog.expected.rule else "")  # fmt: skip


def _cell(cell: CellResult) -> tuple[Any, ...]:
    about = ", ".join(str(part) for part in (cell.accelerator, cell.start, cell.loader_version) if part)
    said = tuple(_(text) for text in (cell.reason or "", cell.rerun, cell.console_tail or "", about))
    disagreements = tuple(_(text) for text in loaders.lines(cell))
    return (_(cell.id), str(cell.status), *said, disagreements, tuple(_(text) for text in functional.words(cell)))
