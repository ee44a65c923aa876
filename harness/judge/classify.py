"""Facts become a result: pure, so that a recorded answer of a guest stays judgeable when the rules change.

Nothing here is forgiving: what the facts do not show was not shown, and a cell leaves `crashed` only when every
program of it has a verdict.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.errors import CorematrixError, GuestLostError
from harness.judge import expectations as promises
from harness.judge import liveness, shape
from harness.judge.explain import DEAD_POISON, NO_KCONFIG, Case, errno_text, explain
from harness.judge.stop import STATISTICS, last_report
from harness.model.expectation import Expectations
from harness.model.result import (
    Alone,
    Candidate,
    CellResult,
    ExternResult,
    ProgResult,
    Relocation,
    Source,
    VerifierStats,
)
from harness.model.verdict import CellStatus, Liveness, Outcome, Stage, Verdict

EXCERPT_LINES = 12
FACTS_VERSION = 1


def classify(
    facts: Mapping[str, Any],
    begun: CellResult,
    expectations: Expectations,
    *,
    today: datetime.date,
    crashed: Mapping[str, str] | None = None,
) -> CellResult:
    """The result of a cell whose guest answered.

    `facts` is docs/facts.md's answer, `begun` the cell as `CellResult.begin` made it, `crashed` the programs that
    killed the kernel again when they were run alone, each with the console's evidence. `today` decides which rules
    have expired.
    """
    if facts.get("facts") != FACTS_VERSION:
        reason = f"the guest's facts are of version {facts.get('facts')!r}, this program reads {FACTS_VERSION}"
        return replace(begun, status=CellStatus.ERROR, reason=reason)
    problem = shape.problem(facts)
    if problem is not None:
        return replace(begun, status=CellStatus.ERROR, reason=f"the guest's facts are malformed: {problem}")
    rules = promises.rules_for(expectations, begun, today)
    progs = [_prog(facts, prog, (crashed or {}).get(prog["name"])) for prog in facts.get("progs") or ()]
    known = {prog.name for prog in progs}
    progs += [_crashed(name, console) for name, console in (crashed or {}).items() if name not in known]
    progs = [promises.apply(prog, rules) for prog in progs]
    result = replace(
        begun,
        loader_version=facts.get("loader_version"),
        externs=tuple(_extern(item) for item in facts.get("externs") or ()),
        object_error=facts.get("object_error"),
        skipped_core_relos=facts.get("skipped_core_relos") or 0,
        progs=tuple(progs),
    )
    result = _with_status(result, promises.missing(rules, progs) if progs else ())
    lacking = _lacks_configuration(result)
    if lacking is not None and result.status is CellStatus.FAILED:
        return replace(result, status=CellStatus.ERROR, reason=lacking)
    return result


def _lacks_configuration(result: CellResult) -> str | None:
    """Why the guest cannot stand for machines that run this kernel, None when it can: the object reads the kernel's
    configuration, every machine with a distribution's kernel has that, and only the archive has lost it. So what the
    guest says is nobody's failure; it is no pass either.
    """
    error, source = result.object_error or {}, result.kernel.source
    wanted = error.get("stage") == Stage.EXTERNS and NO_KCONFIG in (error.get("message") or "")
    if not wanted or source.get("kind") != "apt" or result.kernel.config_sha256 is not None:
        return None
    package = source.get("package") or result.kernel.release
    return f"the object has CONFIG_ externs, and the configuration of {package} is no longer in the repository"


def lost(begun: CellResult, error: CorematrixError) -> CellResult:
    """The result of a cell that never got facts: the guest was lost, or our own side failed. Never a judgement."""
    status, tail = CellStatus.ERROR, begun.console_tail
    if isinstance(error, GuestLostError):
        status, tail = CellStatus(error.status), error.console_tail or begun.console_tail
    return replace(begun, status=status, reason=str(error), console_tail=tail)


def not_applicable(begun: CellResult, expectations: Expectations) -> CellResult | None:
    """The result of a cell that `arches:` leaves out, None when it is to be run."""
    arch = begun.kernel.arch
    if not expectations.arches or arch in expectations.arches:
        return None
    reason = f"{begun.object.name} is for {', '.join(expectations.arches)}, this kernel is {arch}"
    return replace(
        begun,
        status=CellStatus.NOT_APPLICABLE,
        reason=f"{reason}: {expectations.reason}" if expectations.reason else reason,
    )


def _with_status(result: CellResult, missing: Sequence[str]) -> CellResult:
    """Broken expectations first: they stand whatever else happened. Then what was never judged. Only then a pass."""
    broken = [f"{prog.name}: {text}" for prog in result.progs for text in prog.unmet] + list(missing)
    verdicts = {prog.verdict for prog in result.progs}
    error = result.object_error
    if broken:
        return replace(result, status=CellStatus.FAILED, reason="; ".join(broken))
    if not result.progs and error:
        return replace(result, status=CellStatus.FAILED, reason=f"refused at {error['stage']}: {error['message']}")
    if Verdict.NOT_JUDGED in verdicts:
        names = ", ".join(prog.name for prog in result.progs if prog.verdict is Verdict.NOT_JUDGED)
        return replace(result, reason=f"not judged: {names}")
    if not verdicts - {Verdict.NOT_APPLICABLE, Verdict.SKIPPED}:
        reasons = dict.fromkeys(prog.expected.reason for prog in result.progs if prog.expected.reason)
        reason = "; ".join(reasons) or "the object has no program that is loaded by itself"
        return replace(result, status=CellStatus.NOT_APPLICABLE, reason=reason)
    return replace(result, status=CellStatus.PASSED, reason=None)


def _prog(facts: Mapping[str, Any], prog: Mapping[str, Any], console: str | None) -> ProgResult:
    verdict, stage, error = _verdict(facts, prog)
    base = ProgResult(
        name=prog["name"],
        section=prog.get("section") or "",
        prog_type=prog.get("prog_type") or "",
        verdict=verdict,
        stage=stage,
        errno=prog.get("errno"),
        error=error,
        attach=prog.get("attach"),
        adaptations=tuple(prog.get("adaptations") or ()),
        verifier=_verifier(prog),
    )
    if console is not None:
        return _crashed_with(base, console, _relocations(facts, prog))
    if verdict is Verdict.SKIPPED:
        return base
    own_stage = prog.get("stage")
    found = liveness.judge(prog, _relocations(facts, prog), loaded=bool(prog.get("loaded")), stage=own_stage)
    notes = (*found.notes, *(_adaptation_note(item) for item in base.adaptations if not item.get("libbpf", True)))
    words = explain(Case.of(facts, {**prog, "stage": own_stage or stage}, found.relocations))
    return replace(
        base,
        core_relos=found.relocations,
        notes=notes,
        alone=_alone(prog),
        explanation=words if verdict is Verdict.REJECTED else (),
    )


def _verdict(facts: Mapping[str, Any], prog: Mapping[str, Any]) -> tuple[Verdict, Stage | None, str | None]:
    """What libbpf would have made of the program. An error fatal for the object refuses all its programs."""
    fatal = facts.get("object_error")
    if not prog.get("autoload", True):
        return Verdict.SKIPPED, None, 'not loaded by itself (SEC("?...") or bpf_program__set_autoload)'
    if fatal and (prog.get("alone") or not prog.get("stage")):
        return Verdict.REJECTED, Stage(fatal["stage"]), fatal.get("message")
    if prog.get("loaded"):
        return Verdict.LOADED, None, None
    if prog.get("stage"):
        return Verdict.REJECTED, Stage(prog["stage"]), prog.get("error") or errno_text(prog.get("errno"))
    return Verdict.NOT_JUDGED, None, prog.get("error")


def _alone(prog: Mapping[str, Any]) -> Alone | None:
    if not prog.get("alone"):
        return None
    if prog.get("loaded"):
        return Alone(verdict=Verdict.LOADED)
    stage = prog.get("stage")
    return Alone(
        verdict=Verdict.REJECTED if stage else Verdict.NOT_JUDGED,
        stage=Stage(stage) if stage else None,
        error=prog.get("error"),
    )


def _crashed(name: str, console: str) -> ProgResult:
    return ProgResult(
        name=name,
        verdict=Verdict.CRASHED,
        error="the kernel died while loading this program alone",
        explanation=last_report(console, EXCERPT_LINES),
    )


def _crashed_with(base: ProgResult, console: str, relocations: Sequence[Relocation]) -> ProgResult:
    """A program that killed its kernel, with what is known of it from the facts on the others: where its relocations
    lead, and nothing of what the verifier made of them.
    """
    crashed = _crashed(base.name, console)
    why = "the kernel died before it answered"
    relos = tuple(replace(relo, liveness=Liveness.UNKNOWN, liveness_reason=why) for relo in relocations)
    poison = next((relo for relo in relos if relo.outcome is Outcome.POISONED), None)
    advice = () if poison is None else (DEAD_POISON.format(field=poison.field),)
    return replace(
        crashed, section=base.section, prog_type=base.prog_type, core_relos=relos,
        explanation=(*advice, *crashed.explanation),
    )  # fmt: skip


def _adaptation_note(adaptation: Mapping[str, Any]) -> str:
    return f"loaded with an adaptation libbpf would not make: {adaptation.get('name')}: {adaptation.get('detail')}"


def _verifier(prog: Mapping[str, Any]) -> VerifierStats | None:
    stats, log = prog.get("verifier"), prog.get("log") or ""
    if stats is None and not log:
        return None
    known = VerifierStats.__dataclass_fields__.keys() - {"log", "log_excerpt"}
    figures = {name: value for name, value in (stats or {}).items() if name in known}
    return VerifierStats(**figures, log_excerpt=None if prog.get("loaded") else _excerpt(log))


def _excerpt(log: str) -> str | None:
    """The lines that say why: the last ones, without the statistics."""
    lines = [line for line in log.splitlines() if line.strip()]
    while lines and lines[-1].startswith(STATISTICS):
        lines.pop()
    return "\n".join(lines[-EXCERPT_LINES:]) or None


def _relocations(facts: Mapping[str, Any], prog: Mapping[str, Any]) -> tuple[Relocation, ...]:
    """Those in the program's final instructions; of a program never assembled, those of its own function."""
    lines = {line.get("index", number): line for number, line in enumerate(facts.get("core_relos") or ())}
    placed = prog.get("relos") or ()
    if placed:
        return tuple(_relocation(item["relo"], lines[item["relo"]], item.get("insn")) for item in placed)
    return tuple(_relocation(index, line, None) for index, line in lines.items() if line.get("prog") == prog["name"])


def _relocation(index: int, line: Mapping[str, Any], final_insn: int | None) -> Relocation:
    source = line.get("source")
    same = (
        "prog",
        "section",
        "insn",
        "kind",
        "target_spec",
        "orig_value",
        "new_value",
        "before",
        "after",
        "reason",
        "local",
        "target",
    )
    return Relocation(
        **{name: line.get(name) for name in same},  # type: ignore[arg-type]
        index=index,
        local_spec=line.get("local_spec") or "",  # null: a record that cannot be parsed
        outcome=Outcome(line["outcome"]),
        candidates=tuple(
            Candidate(name=item.get("name") or "", id=item.get("id"), why_not=item.get("why_not"))
            for item in line.get("candidates") or ()
        ),
        source=_source(source) if source else None,
        final_insn=final_insn,
    )


def _source(source: Mapping[str, Any]) -> Source:
    return Source(file=source.get("file") or "", line=source.get("line") or 0, text=(source.get("text") or "").strip())


def _extern(item: Mapping[str, Any]) -> ExternResult:
    return ExternResult(
        name=item["name"],
        kind=item["kind"],
        value=item.get("value"),
        weak=bool(item.get("weak")),
        outcome=item.get("outcome") or "resolved",
        reason=item.get("reason"),
    )
