"""What is wrong, as a flat list with source places: for formats that annotate lines (SARIF, GitHub, GitLab).

One finding for each broken promise, equal ones over kernels put together: a line marked eleven times is a line
nobody reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from harness.judge.explain import why
from harness.model.result import ProgResult, Relocation, RunResult, Source
from harness.model.verdict import CellStatus, Liveness, Outcome
from harness.report import loaders
from harness.report.kernels import describe
from harness.report.ledger import without_ids
from harness.report.view import TROUBLE, Program, View


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A kind of finding, as SARIF knows them."""

    id: str
    level: str
    text: str


RULES = {
    rule.id: rule
    for rule in (
        Rule(
            id="live-poison",
            level="error",
            text="A relocation has no target in some kernel, and the verifier reaches it",
        ),
        Rule(id="relocation-error", level="error", text="A relocation makes libbpf give up on the whole object"),
        Rule(id="broken-expectation", level="error", text="A program or relocation is not as expected"),
        Rule(id="known-poison", level="note", text="A relocation reaches poison where a rejection is expected"),
        Rule(id="unproven", level="warning", text="Whether a poisoned relocation is reached could not be shown"),
        Rule(id="loaders-disagree", level="error", text="Our loader and libbpf do not agree on an object"),
        Rule(id="trouble", level="warning", text="A cell could not be judged"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to say. `source` is the line of the C source (None when there is none), `path` the object it was
    compiled to.
    """

    rule: Rule
    text: str
    subject: str
    path: str
    source: Source | None = None


# An object's path and the name its BTF has for a source file -> the name the annotated tree has for it.
SourcePath = Callable[[str, str], str]


def as_compiled(_object: str, file: str) -> str:
    """The name that the compiler was given."""
    return file


def collect(run: RunResult, source_path: SourcePath = as_compiled) -> list[Finding]:
    """The run's findings: programs in the run's order, trouble last."""
    return [
        finding if finding.source is None
        else replace(finding, source=replace(finding.source, file=source_path(finding.path, finding.source.file)))
        for finding in _collect(run)
    ]  # fmt: skip


def _collect(run: RunResult) -> list[Finding]:
    view = View(run)
    found = [finding for program in view.all_programs() for finding in _of_program(view, program)]
    for cell in run.cells:
        for row in loaders.lines(cell):
            text = f"{cell.id}: {row}"
            found.append(Finding(rule=RULES["loaders-disagree"], text=text, subject=text, path=cell.object.path))
        if cell.disagreements:
            continue
        if cell.status in TROUBLE or (cell.status is CellStatus.FAILED and all(prog.met for prog in cell.progs)):
            rule = RULES["trouble" if cell.status in TROUBLE else "broken-expectation"]
            text = f"{cell.status}: {cell.reason or 'no reason recorded'}"
            found.append(Finding(rule=rule, text=f"{cell.id}: {text}", subject=cell.id, path=cell.object.path))
    return found


def _of_program(view: View, program: Program) -> Iterator[Finding]:
    groups: dict[tuple[str, str, Source | None], list[str]] = {}
    for kernel, prog in program.judged.items():
        for key in _said(prog):
            groups.setdefault(key, []).append(kernel)
    subject = f"{view.label(program.subject)}/{program.name}"
    path = next(iter(program.cells.values())).object.path
    for (rule, text, source), kernels in groups.items():
        where = describe(set(kernels), list(program.judged))
        yield Finding(
            rule=RULES[rule], text=f"{subject}: {text} (on {where})", subject=subject, path=path, source=source
        )


def _said(prog: ProgResult) -> Iterator[tuple[str, str, Source | None]]:
    """(rule, text, source), without what differs from kernel to kernel."""
    blamed = False
    for relo in prog.core_relos:
        rule = _rule(relo, prog)
        if rule is not None:
            blamed = blamed or relo.is_broken
            because = why(relo)
            text = f"{relo.field} ({relo.kind}) is {relo.outcome}, {relo.liveness}"
            reasons = without_ids((because,)) if because else ("no reason recorded",)
            yield rule, f"{text}: {reasons[0]}", relo.source
    if prog.unmet and not blamed:
        first = next((relo.source for relo in prog.core_relos if relo.source), None)
        for text in prog.unmet:
            yield "broken-expectation", text, first


def _rule(relo: Relocation, prog: ProgResult) -> str | None:
    if relo.outcome is Outcome.ERROR:
        return "relocation-error" if not prog.met else None
    if relo.is_broken:
        return "known-poison" if prog.met else "live-poison"
    if relo.outcome is Outcome.POISONED and relo.liveness is Liveness.UNKNOWN:
        return "unproven"
    return None
