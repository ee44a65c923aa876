"""Markdown sized for a GitHub step summary: what failed first, then the table, details folded.

GitHub takes at most 1 MiB for one step and drops the whole summary beyond; `LIMIT` keeps well below, and what was
left out is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from harness import ci_log
from harness.model.result import CellResult, RunResult
from harness.model.verdict import CellStatus
from harness.report import attach, cover, ledger, loaders, suspicion
from harness.report.audit import TITLES, audit
from harness.report.kernels import common_words, describe
from harness.report.untrusted import code, line, markdown, markup
from harness.report.view import ATTACH_LEGEND, LEGEND, TROUBLE, Mark, Program, View, attach_mark, mark

LIMIT = 900_000
_MOODS = {"good": "", "bad": "🔴 ", "trouble": "🟠 ", "quiet": ""}
_CONSOLE_LINES = 15


def render(run: RunResult) -> str:
    """The run as GitHub Markdown, at most `LIMIT` bytes."""
    view = View(run)
    parts = [_head(run), _table(view), *_attaching(view)]
    parts += [_program(view, program) for program in view.all_programs() if program.needs_words]
    parts += [_refused(cell) for cell in run.cells if cell.status is CellStatus.FAILED and not cell.progs]
    parts += [_trouble(cell) for cell in run.cells if cell.status in TROUBLE]
    parts += [_program(view, p) for p in view.all_programs() if p.has_guards and not p.needs_words]
    parts += [cover.markdown_section(run.cover)] if run.cover else []
    parts += _audit(run)
    suspects = [f"- {markdown(text)}" for text in suspicion.lines(run.config_suspects, view.kernels)]
    if suspects:
        parts.append("**Config suspects**\n\n" + "\n".join(suspects))
    if run.notes:
        parts.append("**Notes**\n\n" + "\n".join(f"- {markdown(note)}" for note in run.notes))
    # A backslash would be read as text inside of <pre>; a reference means the character everywhere but in code fences.
    return ci_log.xml(_within_limit(parts))


def _audit(run: RunResult) -> list[str]:
    """What the guard audit remarks, folded, gravest first."""
    remarks = audit(run)
    if not remarks:
        return []
    lines = [f"<details><summary>Guard audit: {len(remarks)} remarks</summary>", ""]
    for topic, title in TITLES.items():
        of_topic = [remark for remark in remarks if remark.topic is topic]
        lines += [f"- **{title}**"] if of_topic else []
        for remark in of_topic:
            place = f"{remark.source.file.rpartition('/')[2]}:{remark.source.line}" if remark.source else ""
            where = markdown(f"{remark.subject}/{remark.prog} {place}".rstrip())
            on = markdown(describe(remark.kernels, remark.judged))
            lines.append(f"  - {where} {code(remark.field)} {remark.kind} on {on}: {markdown(remark.text)}")
    return ["\n".join([*lines, "", "</details>"])]


def _within_limit(parts: list[str]) -> str:
    """As many whole parts as fit, the first ones first."""
    room = LIMIT
    for number, part in enumerate(parts):
        room -= len(part.encode()) + 2
        if room < 0:
            left_out = f"_{len(parts) - number} more sections left out: see the run's JSON._"
            return "\n\n".join([*parts[:number], left_out]) + "\n"
    return "\n\n".join(parts) + "\n"


def _head(run: RunResult) -> str:
    counts = ", ".join(f"**{count}** {status.replace('_', ' ')}" for status, count in run.count().items() if count)
    bad = any(cell.status in TROUBLE or cell.status is CellStatus.FAILED for cell in run.cells)
    light = "🔴" if bad or not run.cells else "🟢"
    return f"## {light} corematrix: {counts or 'nothing was judged'}\n\n{_provenance(run)}"


def _provenance(run: RunResult) -> str:
    kernels = len({cell.kernel.id for cell in run.cells})
    objects = len({cell.object.name for cell in run.cells})
    return f"{kernels} kernels × {objects} objects, {run.seconds:.1f} s, {markdown(str(run.tool.get('version', '')))}"


def _table(view: View) -> str:
    heads, shared = common_words(view.kernels)
    beside = [" attach "] if view.attached else []  # a column of its own for each kernel, apart from the verdict
    columns = [text for head in heads for text in (f" {'<br>'.join(markdown(word) for word in head)} ", *beside)]
    first = markdown(shared.rstrip("-")) or "object"
    lines = [f"| {first} | program |{'|'.join(columns)}|", "|---|---|" + "---|" * len(columns)]
    used: set[str] = set()
    attached: set[str] = set()
    for subject in view.subjects:
        label = markdown(view.label(subject))
        rows = [(program.name, program.results) for program in view.programs(subject)] or [("", {})]
        for name, results in rows:
            fields = []
            for kernel in view.kernels:
                prog = results.get(kernel)
                item, other = mark(view.cells.get((subject, kernel)), prog), attach_mark(prog)
                fields += [_field(item), *([_field(other)] if view.attached else [])]
                used.add(item.word)
                attached.add(other.word)
            lines.append(f"| {label} | {markdown(name)} | " + " | ".join(fields) + " |")
            label = ""
    legends = (_legend(LEGEND, used - {"ok"}), _legend(ATTACH_LEGEND, attached, "attach: "))
    return "\n\n".join(["\n".join(lines), *(text for text in legends if text)])


def _legend(legend: Mapping[str, str], used: set[str], first: str = "") -> str:
    text = " · ".join(f"`{word}` {means}" for word, means in legend.items() if word in used)
    return f"{first}{text}" if text else ""


def _attaching(view: View) -> list[str]:
    """Why programs cannot be attached, folded."""
    found = list(attach.reasons(view))
    if not found:
        return []
    lines = [f"- {markdown(item.prog)}: {_field(item.mark)} on {markdown(item.kernels)}: {markdown(item.text)}"
             for item in found]  # fmt: skip
    head = f"<details><summary>Attaching: {len(found)} remarks</summary>"
    return ["\n".join([head, "", *lines, "", "</details>"])]


def _field(item: Mark) -> str:
    return f"{_MOODS[item.mood]}{item.word}" if item.word else "·"


def _program(view: View, program: Program) -> str:
    kernels = list(program.judged)
    bad = any(not prog.met for prog in program.judged.values())
    name = f"<code>{markup(line(view.label(program.subject)))}</code> / <code>{markup(line(program.name))}</code>"
    lines = [f"<details{' open' if bad else ''}><summary>{'🔴 ' if bad else ''}{name}</summary>", ""]
    if program.needs_words:
        lines += list(_outcomes(program, kernels))
    entries = [entry for entry in ledger.entries(program) if not entry.dull]
    if entries:
        lines += ["", "| source | relocation | what became of it | kernels | why |", "|---|---|---|---|---|"]
    for entry in entries:
        lines += list(_entry(entry, kernels))
    return "\n".join([*lines, "", "</details>"])


def _outcomes(program: Program, kernels: list[str]) -> Iterator[str]:
    for outcome in ledger.outcomes(program):
        yield f"- **{markdown(outcome.text)}** on {markdown(describe(outcome.kernels, kernels))}"
        yield from (f"  - ❌ {markdown(text)}" for text in outcome.unmet)
        if outcome.expected:
            yield f"  - {markdown(outcome.expected)}"
        yield from (f"  - {markdown(text)}" for text in outcome.words)
        yield from (f"  - {code(text)}" for text in (outcome.excerpt or "").splitlines()[-3:])


def _entry(entry: ledger.Entry, kernels: list[str]) -> Iterator[str]:
    where = ""
    if entry.source is not None:
        where = f"{markdown(entry.source.file.rpartition('/')[2])}:{entry.source.line} {code(entry.source.text)}"
    what = f"{code(entry.field)} {entry.kind}"
    for finding in entry.findings:
        because = "; ".join(text for text in (finding.relation, finding.why, *finding.suspects) if text)
        on = markdown(describe(finding.kernels, kernels))
        yield f"| {where} | {what} | {_MOODS.get(finding.mood, '')}{finding.state} | {on} | {markdown(because)} |"
        where = what = ""


def _refused(cell: CellResult) -> str:
    return f"🔴 {code(cell.id)}: {markdown(cell.reason or '')}"


def _trouble(cell: CellResult) -> str:
    tail = "\n".join(line(text) for text in (cell.console_tail or "").splitlines()[-_CONSOLE_LINES:])
    console = f"\n\n<details><summary>console</summary>\n\n<pre>{markup(tail)}</pre>\n\n</details>" if tail else ""
    apart = "".join(f"\n\n- ≠ {markdown(text)}" for text in loaders.lines(cell))
    return f"🟠 {code(cell.id)} **{cell.status}**: {markdown(cell.reason or '')}<br>{code(cell.rerun)}{apart}{console}"
