"""SARIF 2.1.0 with the C source's lines, for code scanning. One run, one result for each finding."""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import quote

from harness import ci_log
from harness.model.result import RunResult
from harness.report.findings import RULES, Finding, SourcePath, as_compiled, collect
from harness.report.untrusted import lines

_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def render(run: RunResult, source_path: SourcePath = as_compiled) -> str:
    """The run's findings as a SARIF log."""
    rules = [
        {"id": rule.id, "shortDescription": {"text": rule.text}, "defaultConfiguration": {"level": rule.level}}
        for rule in RULES.values()
    ]
    driver = {"name": "corematrix", "version": str(run.tool.get("version", "0")), "rules": rules}
    results = [_result(finding) for finding in collect(run, source_path)]
    log = {"$schema": _SCHEMA, "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}]}
    return ci_log.json(json.dumps(log, indent=1)) + "\n"


def _result(finding: Finding) -> dict[str, Any]:
    return {
        "ruleId": finding.rule.id,
        "ruleIndex": list(RULES).index(finding.rule.id),
        "level": finding.rule.level,
        "message": {"text": lines(finding.text)},
        "locations": [{"physicalLocation": _place(finding)}],
        "partialFingerprints": {"corematrix/v1": _fingerprint(finding)},
    }


def _place(finding: Finding) -> dict[str, Any]:
    """The source line; without one, the object file itself (code scanning wants a place for every result)."""
    if finding.source is None or finding.source.line < 1:
        return {"artifactLocation": {"uri": _uri(finding.path)}}
    region = {"startLine": finding.source.line, "snippet": {"text": lines(finding.source.text)}}
    return {"artifactLocation": {"uri": _uri(finding.source.file)}, "region": region}


def _uri(path: str) -> str:
    return quote(path.encode("utf-8", "backslashreplace"), safe="/.-_~+@") or "unknown"


def _fingerprint(finding: Finding) -> str:
    """Stays the same when lines move: rule, subject and the line's text, not its number."""
    text = f"{finding.rule.id}\0{finding.subject}\0{finding.source.text if finding.source else ''}"
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:32]
