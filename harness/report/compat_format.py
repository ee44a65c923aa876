"""The compatibility page as Markdown, and as one HTML file without script or network."""

from __future__ import annotations

from collections.abc import Iterator

from harness import ci_log
from harness.model.result import RunResult
from harness.model.sweep import SweepResult
from harness.report.compat import BREAKS, GUARDED, NOT_MEANT, UNKNOWN, WORKS, Page, ProgramPage, Row, page
from harness.report.untrusted import code, line, markdown
from harness.report.untrusted import markup as markup_lines

_SIGNS = {WORKS: "✅", GUARDED: "🟡", BREAKS: "❌", UNKNOWN: "❔", NOT_MEANT: "—"}
_MOST_RANGES, _MOST_FIELDS = 8, 12
_LEGEND = (
    "works: the program loads; guarded: it loads, and does without what this kernel does not have; breaks: the kernel"
    " refuses it"
)
_CSS = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222;background:#fff}"
    "table{border-collapse:collapse;margin:.7em 0}td,th{border:1px solid #bbb;padding:.25em .6em;text-align:left;"
    "vertical-align:top}th{background:#f2f2f2}code{font-size:90%}.breaks{background:#fdecea}.guarded{background:#fff8e1}"
    ".works{background:#edf7ed}.other{color:#666}h2{margin-top:2em}small{color:#555}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}th{background:#2a2a2a}td,th{border-color:#555}"
    ".breaks{background:#4a2020}.guarded{background:#443a15}.works{background:#1c3a20}small,.other{color:#aaa}}"
)
_CLASSES = {WORKS: "works", GUARDED: "guarded", BREAKS: "breaks"}


def markup(text: str) -> str:
    """For HTML, in one line."""
    return markup_lines(line(text))


def _intro(found: Page) -> list[str]:
    total = sum(found.kernels.values())
    spoken = ", ".join(f"{count} {word}" for word, count in found.kernels.items())
    return [
        f"{total} kernels: {spoken or 'none'}. {_LEGEND}.",
        "For the machine you sit at: corematrix inspect OBJECT --running (no root, nothing is loaded).",
    ]


def _ranges(row: Row) -> str:
    more = len(row.ranges) - _MOST_RANGES
    return "; ".join(row.ranges[:_MOST_RANGES]) + (f"; and {more} more ranges" if more > 0 else "")


def _said(row: Row) -> str:
    fields = ", ".join(row.without[:_MOST_FIELDS]) + (" ..." if len(row.without) > _MOST_FIELDS else "")
    return "; ".join(text for text in (row.why, f"does without {fields}" if fields else "") if text)


def _shown(row: Row) -> str:
    return ", ".join(f"{word} ({count})" for word, count in row.shown.items())


def _in_brief(program: ProgramPage, place: tuple[str, str]) -> str:
    return " · ".join(f"{_SIGNS[word]} {ranges}" for word, ranges in program.brief.get(place, ()))


# -- Markdown


def render_markdown(run: RunResult | None, sweep: SweepResult | None) -> str:
    """The page as GitHub Markdown."""
    found = page(run, sweep)
    parts = ["# Which kernels does it run on?", *_intro(found), _overview(found)]
    objects = dict.fromkeys(program.object for program in found.programs)
    for name in objects:
        parts.append(f"## {markdown(name)}")
        parts += [_program(program) for program in found.programs if program.object == name]
    parts.append("<sub>" + "; ".join(markdown(made) for made in found.made) + "</sub>")
    return ci_log.xml("\n\n".join(parts) + "\n")


def _overview(found: Page) -> str:
    heads = [markdown(f"{distro} {arch}") for distro, arch in found.places]
    lines = ["| program | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for program in found.programs:
        cells = [markdown(_in_brief(program, place)) for place in found.places]
        lines.append(f"| {code(f'{program.object}/{program.name}')} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _program(program: ProgramPage) -> str:
    lines = [f"### {code(program.name)} {markdown(program.section)}".rstrip(), ""]
    lines += ["| kernels | | why, and what it does without | who says so |", "|---|---|---|---|"]
    for row in program.rows:
        where = markdown(f"{row.distro} {row.arch} {_ranges(row)}")
        lines.append(f"| {where} | {_SIGNS[row.word]} {row.word} | {markdown(_said(row))} | {markdown(_shown(row))} |")
    return "\n".join(lines)


# -- HTML


def render_html(run: RunResult | None, sweep: SweepResult | None) -> str:
    """The page as one HTML file."""
    return ci_log.xml("\n".join(_html(page(run, sweep))) + "\n")


def _html(found: Page) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
    yield '<meta name="viewport" content="width=device-width,initial-scale=1">'
    yield f"<title>Which kernels does it run on?</title><style>{_CSS}</style></head><body>"
    yield "<h1>Which kernels does it run on?</h1>"
    yield from (f"<p>{markup(text)}</p>" for text in _intro(found))
    heads = "".join(f"<th>{markup(f'{distro} {arch}')}</th>" for distro, arch in found.places)
    yield f"<table><thead><tr><th>program</th>{heads}</tr></thead><tbody>"
    for number, program in enumerate(found.programs):
        cells = "".join(f"<td>{markup(_in_brief(program, place))}</td>" for place in found.places)
        name = markup(f"{program.object}/{program.name}")
        yield f'<tr><td><a href="#p{number}"><code>{name}</code></a></td>{cells}</tr>'
    yield "</tbody></table>"
    last = None
    for number, program in enumerate(found.programs):
        if program.object != last:
            last = program.object
            yield f"<h2>{markup(last)}</h2>"
        yield f'<h3 id="p{number}"><code>{markup(program.name)}</code> <small>{markup(program.section)}</small></h3>'
        yield "<table><thead><tr><th>kernels</th><th></th><th>why, and what it does without</th>"
        yield "<th>who says so</th></tr></thead><tbody>"
        yield from (_html_row(row) for row in program.rows)
        yield "</tbody></table>"
    yield f"<p><small>{markup('; '.join(found.made))}</small></p></body></html>"


def _html_row(row: Row) -> str:
    where = markup(f"{row.distro} {row.arch} {_ranges(row)}")
    cells = (where, f"{_SIGNS[row.word]} {row.word}", markup(_said(row)), markup(_shown(row)))
    kind = _CLASSES.get(row.word, "other")
    return f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"

