"""Expectations applied: which rule decides a program, what of it was broken, and which rules have outlived their
purpose.

docs/expectations.md says the rules in words; the last match wins.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.model.cell import CellId
from harness.model.expectation import Expectations, RelocationRule, Rule
from harness.model.plain_json import to_json
from harness.model.reading import matches
from harness.model.result import CellResult, Expected, ProgResult, Relocation
from harness.model.verdict import CellStatus, Liveness, Verdict

# Nothing was found out about these; a promise is neither kept nor broken.
UNJUDGED = frozenset({Verdict.NOT_JUDGED, Verdict.SKIPPED, Verdict.NOT_APPLICABLE})


def identity(cell: CellResult) -> CellId:
    """The identity a result's `id` was printed from."""
    return CellId(
        kernel=cell.kernel.id,
        object=cell.object.name,
        settings=tuple(sorted(cell.settings.items())),
        loader=cell.loader,
    )


def rules_for(expectations: Expectations, cell: CellResult, today: datetime.date) -> tuple[Rule, ...]:
    """The rules that speak of this cell and have not expired."""
    return _rules_of(expectations, identity(cell), cell.kernel.arch, today)


def _rules_of(expectations: Expectations, cell: CellId, arch: str, today: datetime.date) -> tuple[Rule, ...]:
    return tuple(rule for rule in expectations.rules if not rule.expired(today) and rule.covers_cell(cell, arch))


def left_out(
    expectations: Expectations, cell: CellId, arch: str, progs: Iterable[str], today: datetime.date
) -> frozenset[str]:
    """Which of the programs a rule calls not_applicable in this cell: whoever runs it learns nothing of them."""
    rules = _rules_of(expectations, cell, arch, today)
    decides = {prog: deciding_rule(rules, prog) for prog in progs}
    return frozenset(prog for prog, rule in decides.items() if rule and rule.verdict == "not_applicable")


def deciding_rule(rules: Iterable[Rule], prog: str) -> Rule | None:
    """The last rule with a verdict for this program."""
    found = [rule for rule in rules if rule.verdict and matches(rule.program, prog)]
    return found[-1] if found else None


def apply(prog: ProgResult, rules: Sequence[Rule]) -> ProgResult:
    """Fill `expected`, `met` and `unmet`; a program that a rule calls not_applicable becomes so."""
    decides = deciding_rule(rules, prog.name)
    entries = [entry for rule in rules if matches(rule.program, prog.name) for entry in rule.relocations]
    expected = _expected(decides, entries)
    if expected.verdict == "not_applicable" or prog.verdict in UNJUDGED:
        verdict = Verdict.NOT_APPLICABLE if expected.verdict == "not_applicable" else prog.verdict
        return replace(prog, expected=expected, verdict=verdict, met=verdict is not Verdict.NOT_JUDGED)
    refused = _broken_verdict(prog, expected) or _adapted(prog, rules)
    broken = (*refused, *_broken_relocations(prog, entries, reached_only=bool(refused)))
    return replace(prog, expected=expected, met=not broken, unmet=broken)


def _expected(rule: Rule | None, entries: Sequence[RelocationRule]) -> Expected:
    shown = tuple(_shown(entry) for entry in entries)
    if rule is None:
        return Expected(relocations=shown)
    return Expected(
        verdict=rule.verdict or "loaded",
        stage=rule.stage,
        relocations=shown,
        reason=rule.reason,
        expires=rule.expires.isoformat() if rule.expires else None,
        rule=rule.where,
    )


def _shown(entry: RelocationRule) -> dict[str, Any]:
    return {key: value for key, value in to_json(entry).items() if value not in (None, [])}


def _broken_verdict(prog: ProgResult, expected: Expected) -> tuple[str, ...]:
    rule = f" ({expected.rule}: {expected.reason})" if expected.rule and expected.reason else ""
    if expected.verdict not in {"any", prog.verdict}:
        at = f" at {prog.stage}" if prog.stage else ""
        return (f"expected {expected.verdict}, was {prog.verdict}{at}{rule}",)
    if expected.stage and expected.stage != prog.stage:
        return (f"expected to be rejected at {expected.stage}, was rejected at {prog.stage}{rule}",)
    return ()


def _adapted(prog: ProgResult, rules: Sequence[Rule]) -> tuple[str, ...]:
    """Loaded, and only with what libbpf would not have done, where the last rule about that refuses it."""
    found = [rule for rule in rules if rule.adaptations and matches(rule.program, prog.name)]
    refused = bool(found) and found[-1].adaptations == "refused"
    if not refused or not prog.own_adaptations or prog.verdict is not Verdict.LOADED:
        return ()
    return (f"loads only with {', '.join(prog.own_adaptations)}, which libbpf does not do ({found[-1].where})",)


def _covers(entry: RelocationRule, relo: Relocation) -> bool:
    return entry.covers(relo.field, relo.kind, relo.source.text if relo.source else "")


def _broken_relocations(prog: ProgResult, entries: Sequence[RelocationRule], *, reached_only: bool) -> tuple[str, ...]:
    """The last entry that covers a relocation decides it.

    `reached_only`: of a program whose verdict is already broken, what the verifier did not come to is only a
    consequence.
    """
    broken = []
    for relo in prog.core_relos:
        if reached_only and relo.liveness in {Liveness.UNREACHED, Liveness.UNKNOWN}:
            continue
        covering = [entry for entry in entries if _covers(entry, relo)]
        if covering:
            broken += _differences(relo, covering[-1])
    return tuple(broken)


def _differences(relo: Relocation, entry: RelocationRule) -> list[str]:
    place = f"{relo.field} ({relo.kind}{f', line {relo.source.line}' if relo.source else ''})"
    found = []
    for name, wanted, actual in (("outcome", entry.outcome, relo.outcome), ("liveness", entry.liveness, relo.liveness)):
        if wanted and actual not in wanted:
            found.append(f"{place}: expected {name} {' or '.join(wanted)}, was {actual}")
    if entry.value is not None and relo.new_value != entry.value:
        found.append(f"{place}: expected value {entry.value}, was {relo.new_value}")
    return found


def missing(rules: Sequence[Rule], progs: Sequence[ProgResult]) -> tuple[str, ...]:
    """Promises about what the object does not have: a program named outright, a relocation no program holds."""
    broken = []
    for rule in rules:
        judged = [prog for prog in progs if matches(rule.program, prog.name)]
        broken += [
            f"{rule.where}: the object has no program {name!r}"
            for name in rule.program
            if not set(name) & set("*?") and name not in {prog.name for prog in progs}
        ]
        relos = [relo for prog in judged for relo in prog.core_relos]
        if any(prog.verdict not in UNJUDGED for prog in judged):
            absent = [entry for entry in rule.relocations if not any(_covers(entry, relo) for relo in relos)]
            broken += [f"{rule.where}: no relocation {entry.field} (kind: {entry.kind or 'any'})" for entry in absent]
    return tuple(broken)


def review(
    expectations: Mapping[str, Expectations], cells: Iterable[CellResult], today: datetime.date
) -> tuple[str, ...]:
    """What a run says about the rules themselves: expired, matching nothing, or no longer needed. Object name -> its
    file.
    """
    by_object: dict[str, list[CellResult]] = {}
    for cell in cells:
        if cell.status in {CellStatus.PASSED, CellStatus.FAILED, CellStatus.NOT_APPLICABLE}:
            by_object.setdefault(cell.object.name, []).append(cell)
    return tuple(
        note
        for name in sorted(expectations)
        for rule in expectations[name].rules
        for note in _review_rule(rule, expectations[name], by_object.get(name, []), today)
    )


def _review_rule(rule: Rule, all_: Expectations, cells: Sequence[CellResult], today: datetime.date) -> list[str]:
    covered = [cell for cell in cells if rule.covers_cell(identity(cell), cell.kernel.arch) and cell.progs]
    if not covered:
        return []
    if rule.expired(today):
        return [f"{rule.where}: expired on {rule.expires}; it counts no more ({rule.reason or 'no reason given'})"]
    if not any(matches(rule.program, prog.name) for cell in covered for prog in cell.progs):
        return [f"{rule.where}: matches no program of {', '.join(sorted({cell.object.name for cell in covered}))}"]
    judged = [(cell, prog) for cell in covered for prog in cell.progs if prog.verdict not in UNJUDGED]
    decided = [prog for cell, prog in judged if deciding_rule(rules_for(all_, cell, today), prog.name) is rule]
    if rule.verdict in {"any", "rejected", "crashed"} and decided and all(p.verdict is Verdict.LOADED for p in decided):
        names = ", ".join(sorted({prog.name for prog in decided}))
        return [f"{rule.where}: no longer needed: {names} loads wherever it decided ({rule.reason})"]
    return []
