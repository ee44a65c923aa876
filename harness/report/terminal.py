"""The report for people at a terminal: the table, then whatever is not clean, then the guards that did their work.

Terse, grouped over kernels, and nothing in it that is not in the JSON. Everything that came from a guest or an
object passes through `untrusted`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness import ci_log
from harness.model.result import CellResult, RunResult
from harness.model.verdict import CellStatus, Liveness, Outcome
from harness.report import attach, audit_format, cover, functional, ledger, loaders, suspicion, table, untrusted
from harness.report.kernels import describe
from harness.report.paint import Paint, pad
from harness.report.view import TROUBLE, Program, View

_STATUS_MOOD = {
    CellStatus.PASSED: "good", CellStatus.FAILED: "bad", CellStatus.SKIPPED: "quiet",
    CellStatus.NOT_APPLICABLE: "quiet", CellStatus.TIMEOUT: "trouble", CellStatus.CRASHED: "trouble",
    CellStatus.ERROR: "trouble",
}  # fmt: skip
_CONSOLE_LINES = 15
_RERUNS = 5
_FIELD_MOST = 46


def render(run: RunResult, *, columns: int = 100, colour: bool = False, verbose: bool = False) -> str:
    """The whole report, ending in a newline. `verbose`: the ledger of programs that are as expected, too."""
    view, paint = View(run), Paint(columns=columns, colour=colour)
    broken = [program for program in view.all_programs() if program.is_broken]
    expected = [program for program in view.all_programs() if program.needs_words and not program.is_broken]
    lines = [*_summary(run, paint), "", *table.render(view, paint)]
    attachable = list(attach.lines(view, paint))
    lines += _section("Attaching", [attachable] if attachable else [], paint)
    tested = list(functional.lines(view, paint))
    lines += _section("Functional tests", [tested] if tested else [], paint)
    lines += _section("Broken", [_program(view, program, paint) for program in broken], paint)
    lines += [*_refused_objects(view, paint), *_trouble(view, paint)]
    lines += _section("As expected", [_program(view, p, paint, brief=not verbose) for p in expected], paint)
    covered = list(cover.terminal(run.cover, paint, verbose=verbose)) if run.cover else []
    lines += _section("Covered, not booted", [covered] if covered else [], paint)
    lines += _guards(view, paint, verbose=verbose)
    lines += [*_suspects(view, paint), *_notes(run, paint), *_reruns(run, paint)]
    while lines and not lines[-1]:
        lines.pop()
    return ci_log.plain("\n".join(lines) + "\n")


def _section(title: str, blocks: Sequence[Sequence[str]], paint: Paint) -> Iterator[str]:
    if blocks:
        yield from (_rule(title, paint), "")
        for block in blocks:
            yield from (*block, "")


def _guards(view: View, paint: Paint, *, verbose: bool) -> Iterator[str]:
    """What the checks did: a line for each object, or (verbose) the ledger of each program."""
    guarded = [program for program in view.all_programs() if program.has_guards and not program.needs_words]
    if verbose:
        yield from _section("Guards", [_program(view, program, paint) for program in guarded], paint)
        return
    lines = audit_format.summary(view, paint)
    if lines:
        yield from (_rule("Guards (each in full: --verbose, or --format audit)", paint), "", *lines, "")


def _summary(run: RunResult, paint: Paint) -> list[str]:
    kernels = len({cell.kernel.id for cell in run.cells})
    objects = len({cell.object.name for cell in run.cells})
    counts = [(f"{count} {status.replace('_', ' ')}", status) for status, count in run.count().items() if count]
    name = untrusted.line(f"{run.tool.get('name', 'corematrix')} {run.tool.get('version', '')}".strip())
    matrix = f"{_plural(kernels, 'kernel')} × {_plural(objects, 'object')}"
    head = f"  {matrix}, {_plural(len(run.cells), 'cell')} in {run.seconds:.1f} s:"
    said = ", ".join(paint(text, _STATUS_MOOD[status]) for text, status in counts) or "nothing was judged"
    width = len(head) + untrusted.width(name) + len(", ".join(text for text, _ in counts)) + 1
    first = paint(name, "strong") + head
    return [f"{first} {said}"] if width <= paint.columns else [first, f"  {said}"]


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _rule(title: str, paint: Paint) -> str:
    return paint(f"── {title} {'─' * max(0, paint.columns - len(title) - 4)}", "quiet")


def _program(view: View, program: Program, paint: Paint, *, brief: bool = False) -> list[str]:
    kernels = list(program.judged)
    section = next((prog.section for prog in program.results.values()), "")
    name = untrusted.line(f"{view.label(program.subject)} / {program.name}")
    lines = [f"{paint(name, 'strong')}  {paint(untrusted.line(section), 'quiet')}".rstrip()]
    told: set[str] = set()
    for outcome in ledger.outcomes(program) if program.needs_words else ():
        lines += _outcome(outcome, kernels, told, paint, brief=brief)
    return lines + list(_relocations(program, kernels, paint, brief=brief))


def _outcome(
    outcome: ledger.Outcomes, kernels: Sequence[str], told: set[str], paint: Paint, *, brief: bool
) -> list[str]:
    """One verdict and its kernels; what has been `told` of the program already is not said again."""
    where = untrusted.line(describe(outcome.kernels, kernels))
    lines = [f"  {paint(untrusted.line(outcome.text), outcome.mood)} on {where}"]
    for text in outcome.unmet:
        lines += paint.wrapped(untrusted.line(text), "      ", "bad", first="    ✗ ")
    if outcome.expected and not outcome.unmet:
        lines += paint.wrapped(untrusted.line(outcome.expected), "      ", "quiet", first="    ✓ ")
    for text in (text for text in outcome.words if text not in told):
        told.add(text)
        lines += paint.wrapped(untrusted.line(text), "      ", first="    → ")
    for text in () if brief else (outcome.excerpt or "").splitlines():
        lines.append("    │ " + paint(untrusted.fit(untrusted.line(text), paint.columns - 6), "quiet"))
    return lines


def _relocations(program: Program, kernels: Sequence[str], paint: Paint, *, brief: bool) -> Iterator[str]:
    """Each relocation under its source line; `brief`: only those that broke the program, which are named always."""
    entries = [entry for entry in ledger.entries(program) if entry.broken or not brief]
    shown = [entry for entry in entries if not entry.dull]
    column = min(max((len(f"{e.field}  {e.kind}") for e in shown), default=0), _FIELD_MOST)
    above = None
    for entry in shown:
        here = entry.source and (entry.source.file, entry.source.line)
        if here != above or here is None:
            yield _source_line(entry, program, paint)
        above = here
        yield from _findings(entry, kernels, column, paint)
    yield from _dull([entry for entry in entries if entry.dull], bool(shown), paint)


def _source_line(entry: ledger.Entry, program: Program, paint: Paint) -> str:
    function = "" if entry.function == program.name else f" in {untrusted.line(entry.function)}"
    if entry.source is None:
        return paint(f"  (no source line){function}", "quiet")
    place = f"{untrusted.line(entry.source.file.rpartition('/')[2])}:{entry.source.line}{function}"
    room = max(20, paint.columns - untrusted.width(place) - 4)
    return f"  {paint(place, 'quiet')}  {untrusted.fit(untrusted.line(entry.source.text), room)}"


def _findings(entry: ledger.Entry, kernels: Sequence[str], column: int, paint: Paint) -> Iterator[str]:
    what = f"{untrusted.line(entry.field)}  {untrusted.line(entry.kind)}"
    left = f"      {paint(what, 'name')}{' ' * (column - untrusted.width(what))}"
    states = max(len(finding.state) for finding in entry.findings)
    relations = {finding.relation for finding in entry.findings}
    for finding in entry.findings:
        where = untrusted.line(describe(finding.kernels, kernels))
        yield f"{left}  {paint(pad(finding.state, states), finding.mood)}  {where}"
        left = " " * (6 + column)
        for text in (finding.relation if len(relations) > 1 else None, finding.why):
            if text:
                yield from paint.wrapped(untrusted.line(text), " " * 10, "quiet")
        for text in finding.suspects:
            yield from paint.wrapped(untrusted.line(text), " " * 10, "name")
    for text in relations if len(relations) == 1 else ():
        if text:
            yield from paint.wrapped(untrusted.line(text), " " * 10, "quiet")


def _dull(entries: Sequence[ledger.Entry], after_others: bool, paint: Paint) -> Iterator[str]:
    if entries:
        states: dict[str, int] = {}
        for entry in entries:
            states[entry.findings[0].state] = states.get(entry.findings[0].state, 0) + 1
        said = ", ".join(f"{count} {state}" for state, count in states.items())
        yield paint(f"  {'and ' if after_others else ''}{said}, wherever judged", "quiet")


def _refused_objects(view: View, paint: Paint) -> Iterator[str]:
    """Objects that never came to programs, and promises no program could keep."""
    for cell in view.run.cells:
        told = {f"{prog.name}: {text}" for prog in cell.progs for text in prog.unmet}
        rest = [part for part in (cell.reason or "").split("; ") if part not in told]
        if cell.status is CellStatus.FAILED and rest:
            yield paint(untrusted.line(cell.id), "strong")
            yield from paint.wrapped(untrusted.line("; ".join(rest)), "      ", "bad", first="    ✗ ")
            yield ""


def _trouble(view: View, paint: Paint) -> Iterator[str]:
    cells = [cell for cell in view.run.cells if cell.status in TROUBLE]
    if not cells:
        return
    yield _rule("Trouble: not a judgement about the object", paint)
    yield ""
    for cell in cells:
        attempts = f" ({cell.attempts} attempts)" if cell.attempts > 1 else ""
        yield f"{paint(untrusted.line(cell.id), 'strong')}  {paint(str(cell.status), 'trouble')}{attempts}"
        yield from paint.wrapped(untrusted.line(cell.reason or "no reason recorded"), "    ")
        for text in loaders.lines(cell):
            yield from paint.wrapped(untrusted.line(text), "      ", "bad", first="    ≠ ")
        for text in untrusted.lines(cell.console_tail or "").splitlines()[-_CONSOLE_LINES:]:
            yield "    │ " + paint(untrusted.fit(untrusted.line(text), paint.columns - 6), "quiet")
        yield f"    rerun: {untrusted.line(cell.rerun)}"
        yield ""


def _suspects(view: View, paint: Paint) -> Iterator[str]:
    """Config switches that may be behind what some kernels lack."""
    found = list(suspicion.lines(view.run.config_suspects, view.kernels))
    if found:
        yield _rule("Config suspects: switches that differ between who has it and who lacks it", paint)
        yield ""
        for text in found:
            yield from paint.wrapped(untrusted.line(text), "    ", first="  • ")
        yield ""


def _notes(run: RunResult, paint: Paint) -> Iterator[str]:
    """What a reader must know besides: each note once, with the cells it holds for."""
    notes: dict[str, list[str]] = {note: [] for note in run.notes}
    for cell in run.cells:
        for note in _cell_notes(cell):
            notes.setdefault(note, []).append(cell.kernel.id)
    if notes:
        kernels = list(dict.fromkeys(cell.kernel.id for cell in run.cells))
        yield _rule("Notes", paint)
        yield ""
        for note, where in notes.items():
            on = f" (on {describe(set(where), kernels)})" if where else ""
            yield from paint.wrapped(untrusted.line(note + on), "    ", first="  • ")
        yield ""


def _cell_notes(cell: CellResult) -> Iterator[str]:
    if cell.substituted:
        yield f"{cell.kernel.id}: {cell.substituted}"
    yield from (f"{cell.object.name}: {note}" for note in cell.notes)
    if cell.attempts > 1 and cell.status not in TROUBLE:
        yield f"{cell.id}: judged at attempt {cell.attempts}; a guest was lost before"
    for prog in cell.progs:
        yield from (f"{cell.object.name}/{prog.name}: {note}" for note in prog.notes)
    poison = [relo for prog in cell.progs for relo in prog.core_relos
              if relo.outcome is Outcome.POISONED and relo.liveness is Liveness.UNKNOWN]  # fmt: skip
    if poison:
        yield f"{cell.object.name}: {len(poison)} poisoned relocations whose liveness could not be shown"


def _reruns(run: RunResult, paint: Paint) -> Iterator[str]:
    failed = [cell for cell in run.cells if cell.status is CellStatus.FAILED]
    if failed:
        yield paint(f"{_plural(len(failed), 'cell')} failed. To run one again:", "bad")
        yield from (f"  {untrusted.line(cell.rerun)}" for cell in failed[:_RERUNS])
        if len(failed) > _RERUNS:
            yield paint(f"  … and {len(failed) - _RERUNS} more, each named in the JSON", "quiet")
