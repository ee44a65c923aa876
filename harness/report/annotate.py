"""Annotations in a merge request: GitHub's workflow commands, GitLab's Code Quality report."""

from __future__ import annotations

import hashlib
import json

from harness import ci_log
from harness.model.result import RunResult
from harness.report.findings import Finding, SourcePath, as_compiled, collect
from harness.report.untrusted import lines

_GITHUB = {"error": "error", "warning": "warning", "note": "notice"}
_GITLAB = {"error": "critical", "warning": "minor", "note": "info"}


def github(run: RunResult, source_path: SourcePath = as_compiled) -> str:
    """`::error file=x.bpf.c,line=31,title=live-poison::text`, one line for each finding (GitHub shows ten of each
    level).
    """
    return "".join(f"{_command(finding)}\n" for finding in collect(run, source_path))


def _command(finding: Finding) -> str:
    fields = {"title": f"corematrix: {finding.rule.id}"}
    if finding.source is not None and finding.source.line > 0:
        fields = {"file": finding.source.file, "line": str(finding.source.line), **fields}
    shown = ",".join(f"{name}={_escape(value, field=True)}" for name, value in fields.items())
    return f"::{_GITHUB[finding.rule.level]} {shown}::{_escape(finding.text)}"


def _escape(text: str, *, field: bool = False) -> str:
    """As actions/toolkit does it: what would end a command or a field is percent-encoded."""
    text = lines(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if field else text


def gitlab(run: RunResult, source_path: SourcePath = as_compiled) -> str:
    """A Code Quality report: a list of issues, each with a fingerprint that does not move with the line."""
    issues = []
    for finding in collect(run, source_path):
        source = finding.source
        seed = f"{finding.rule.id}\0{finding.subject}\0{finding.text}\0{source.text if source else ''}"
        place = {
            "path": lines(source.file if source else finding.path),
            "lines": {"begin": source.line if source else 1},
        }
        issues.append(
            {
                "description": lines(finding.text),
                "check_name": f"corematrix/{finding.rule.id}",
                "fingerprint": hashlib.sha256(seed.encode("utf-8", "backslashreplace")).hexdigest(),
                "severity": _GITLAB[finding.rule.level],
                "location": place,
            }
        )
    return ci_log.json(json.dumps(issues, indent=1)) + "\n"
