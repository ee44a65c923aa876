"""Reports: a run in, text out. `FORMATS` is the registry; a new report is a module here and one row below."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from harness.errors import UsageError
from harness.model.result import RunResult
from harness.model.sweep import SweepResult
from harness.report import (
    annotate,
    audit_format,
    badge,
    compat_format,
    csv_format,
    diff_format,
    html,
    json_format,
    junit,
    markdown,
    sarif,
    terminal,
)
from harness.report.diff import CostLimits, Diff, diff
from harness.report.findings import SourcePath, as_compiled

__all__ = ["FORMATS", "CostLimits", "Diff", "Format", "diff", "render", "render_diff"]

render_diff = diff_format.render


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a report may be asked: the run, the columns and colour of its stream, an earlier run to compare with, a
    sweep of the same objects, how the tree whose lines are annotated calls a source file.
    """

    run: RunResult
    width: int = 100
    colour: bool = False
    baseline: RunResult | None = None
    verbose: bool = False
    sweep: SweepResult | None = None
    source_path: SourcePath = as_compiled


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write a run: `purpose` for --help, `suffix` for a file that holds it."""

    purpose: str
    suffix: str
    render: Callable[[Request], str]


FORMATS: Mapping[str, Format] = {
    "terminal": Format(
        purpose="for people at a terminal: the table, what is not as it should be and why, guards",
        suffix="txt",
        render=lambda request: terminal.render(
            request.run, columns=request.width, colour=request.colour, verbose=request.verbose
        ),
    ),
    "text": Format(
        purpose="the same for a file: no colour, and the ledger of every program with guards",
        suffix="txt",
        render=lambda request: terminal.render(request.run, columns=request.width, verbose=True),
    ),
    "audit": Format(
        purpose="guards: missing, never taken both ways, by version instead of by field; flavors never chosen",
        suffix="txt",
        render=lambda request: audit_format.render(request.run, columns=request.width, colour=request.colour),
    ),
    "json": Format(
        purpose="everything, in the stable schema (schema.json)",
        suffix="json",
        render=lambda request: json_format.render(request.run),
    ),
    "junit": Format(
        purpose="JUnit XML for CI servers: a suite is a kernel, a case a program",
        suffix="xml",
        render=lambda request: junit.render(request.run),
    ),
    "markdown": Format(
        purpose="GitHub Markdown, sized for a step summary",
        suffix="md",
        render=lambda request: markdown.render(request.run),
    ),
    "html": Format(
        purpose="one self-contained page: heat map, ledger of each cell, filters, changes since a baseline",
        suffix="html",
        render=lambda request: html.render(request.run, request.baseline),
    ),
    "csv": Format(
        purpose="the verifier's figures, for `veristat -C`",
        suffix="csv",
        render=lambda request: csv_format.render(request.run),
    ),
    "sarif": Format(
        purpose="SARIF 2.1.0 with source lines, for code scanning",
        suffix="sarif",
        render=lambda request: sarif.render(request.run, request.source_path),
    ),
    "github": Format(
        purpose="GitHub workflow commands: annotations on source lines",
        suffix="txt",
        render=lambda request: annotate.github(request.run, request.source_path),
    ),
    "gitlab": Format(
        purpose="GitLab Code Quality report",
        suffix="json",
        render=lambda request: annotate.gitlab(request.run, request.source_path),
    ),
    "badge": Format(
        purpose="an SVG badge: cells passed of cells judged",
        suffix="svg",
        render=lambda request: badge.render(request.run),
    ),
    "compat": Format(
        purpose="Markdown for users who ask `will it run on my kernel?`: by program, ranges of kernels",
        suffix="md",
        render=lambda request: compat_format.render_markdown(request.run, request.sweep),
    ),
    "compat-html": Format(
        purpose="the same as one HTML page",
        suffix="html",
        render=lambda request: compat_format.render_html(request.run, request.sweep),
    ),
}


def render(
    format: str,
    run: RunResult,
    *,
    width: int = 100,
    colour: bool = False,
    baseline: RunResult | None = None,
    verbose: bool = False,
    sweep: SweepResult | None = None,
    source_path: SourcePath = as_compiled,
) -> str:
    """The run in the named format. UsageError, naming those there are, for a name that is none of them."""
    if format not in FORMATS:
        message = f"no report format {format!r}"
        raise UsageError(message, remedy=f"take one of: {', '.join(FORMATS)}")
    return FORMATS[format].render(
        Request(
            run=run, width=width, colour=colour, baseline=baseline, verbose=verbose, sweep=sweep,
            source_path=source_path,
        )
    )  # fmt: skip
