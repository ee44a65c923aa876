"""The ledger of one program over its kernels: what became of each relocation, equal findings put together.

Data only; the terminal, Markdown and HTML reports put it into their own shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from harness.judge.explain import errno_text, why
from harness.model.result import ProgResult, Relocation, RelocationRef, Source
from harness.model.verdict import Evidence, Liveness, Outcome, Verdict
from harness.report import suspicion
from harness.report.view import Program

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What became of one relocation on `kernels`. `state` is a few words, `why` a line, `mood` good, bad, quiet or
    plain, `suspects` the config switches that may be behind it.
    """

    state: str
    mood: str
    kernels: tuple[str, ...]
    why: str | None = None
    relation: str | None = None
    suspects: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One relocation of the program. `broken`: on some kernel it is what the program is refused for."""

    field: str
    kind: str
    function: str
    source: Source | None
    findings: tuple[Finding, ...]
    dull: bool
    broken: bool


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """One verdict of the program, and the kernels that gave it."""

    text: str
    mood: str
    kernels: tuple[str, ...]
    unmet: tuple[str, ...]
    expected: str | None
    words: tuple[str, ...]
    excerpt: str | None


def entries(program: Program) -> list[Entry]:
    """The program's relocations in record order; `dull` ones need no line of their own."""
    found = []
    for key, by_kernel in program.relocations.items():
        judged = {kernel: relo for kernel, relo in by_kernel.items() if kernel in program.judged}
        if not judged:
            continue
        groups = _grouped((_finding(relo), kernel) for kernel, relo in judged.items())
        findings = tuple(
            Finding(
                state=state, mood=_mood(judged[on[0]], program, on), why=because, relation=relation, kernels=tuple(on),
                suspects=suspicion.of_field(program.suspicions, key.field, on),
            )
            for (state, because, relation), on in groups
        )
        source = next((relo.source for relo in judged.values() if relo.source), None)
        dull = _is_dull(list(judged.values()), program)
        broken = any(relo.is_broken for relo in judged.values())
        found.append(
            Entry(
                field=key.field, kind=key.kind, function=key.function, source=source, findings=findings,
                dull=dull, broken=broken,
            )
        )  # fmt: skip
    return found


def outcomes(program: Program) -> list[Outcomes]:
    """The program's verdicts over its kernels, the bad ones first.

    Logs that end in the same words are one finding: their addresses differ on every kernel. The first one is shown.
    """
    said = {kernel: _outcome(prog) for kernel, prog in program.judged.items()}
    groups = _grouped(((*item[:-1], (item[-1] or "").rpartition("\n")[2]), kernel) for kernel, item in said.items())
    found = [
        Outcomes(
            text=g[0], mood=g[1], unmet=g[2], expected=g[3], excerpt=said[ks[0]][5], kernels=tuple(ks),
            words=(*g[4], *suspicion.of_field(program.suspicions, "", ks)),
        )
        for g, ks in groups
    ]  # fmt: skip
    return sorted(found, key=lambda item: ("bad", "quiet", "good").index(item.mood))


def _grouped(pairs: Iterable[tuple[_T, str]]) -> list[tuple[_T, list[str]]]:
    groups: dict[_T, list[str]] = {}
    for value, kernel in pairs:
        groups.setdefault(value, []).append(kernel)
    return list(groups.items())


_Outcome = tuple[str, str, tuple[str, ...], str | None, tuple[str, ...], str | None]


def _outcome(prog: ProgResult) -> _Outcome:
    mood = "bad" if not prog.met else "good" if prog.verdict is Verdict.LOADED else "quiet"
    text = str(prog.verdict)
    if prog.verdict is Verdict.REJECTED:
        text = f"rejected at {prog.stage}" + (f", {errno_text(prog.errno)}" if prog.errno else "")
    if prog.alone is not None:
        text += f"; by itself it is {prog.alone.verdict}" + (f" at {prog.alone.stage}" if prog.alone.stage else "")
    expected = None
    if prog.expected.rule:
        expected = (
            f"{prog.expected.verdict} is expected: {prog.expected.reason or 'no reason given'} ({prog.expected.rule})"
        )
    broken = any(relo.is_broken for relo in prog.core_relos)
    excerpt = prog.verifier.log_excerpt if prog.verifier and prog.verdict is Verdict.REJECTED and not broken else None
    said = prog.error if prog.verdict is Verdict.REJECTED and not excerpt and not broken else None
    said = None if said and said in text else said
    words = (*((said,) if said else ()), *prog.explanation)
    return text, mood, without_ids(prog.unmet), expected, without_ids(words), excerpt


def without_ids(texts: Iterable[str]) -> tuple[str, ...]:
    """BTF ids differ from kernel to kernel and would keep equal findings apart."""
    return tuple(re.sub(r" ?\[\d+\]", "", text) for text in texts)


def _finding(relo: Relocation) -> tuple[str, str | None, str | None]:
    """(state, why, relation): what must be equal on two kernels to be one finding."""
    state = f"{relo.outcome}, {relo.liveness}"
    if relo.is_guard and relo.outcome is Outcome.RESOLVED:
        state = f"= {relo.new_value}" + ("" if relo.liveness is Liveness.LIVE else f", {relo.liveness}")
        return state, None, relation_of(relo)
    because = why(relo)
    return state, without_ids((because,))[0] if because else None, relation_of(relo)


def _mood(relo: Relocation, program: Program, kernels: list[str]) -> str:
    if relo.is_broken:
        return "quiet" if all(program.results[kernel].met for kernel in kernels) else "bad"
    if relo.liveness is Liveness.UNKNOWN:
        return "trouble"
    if relo.outcome is Outcome.POISONED:
        return "good" if relo.liveness is Liveness.ELIMINATED else "trouble"
    return "quiet" if relo.liveness in {Liveness.ELIMINATED, Liveness.UNREACHED} else "plain"


def relation_of(relo: Relocation) -> str | None:
    """How a relocation stands to others: what it is behind, what it protects, what guards it; None when alone."""
    parts = []
    if relo.is_broken and relo.outcome is Outcome.POISONED:
        parts.append("the verifier stops here")
    if relo.behind is not None:
        parts.append(f"behind {_place(relo)}")
    elif relo.liveness_reason and relo.liveness is not Liveness.ELIMINATED:
        parts.append(relo.liveness_reason)
    if relo.protects:
        parts.append(f"protects {protected(relo.protects)}")
    if relo.guarded_by:
        parts.append(f"guarded by the check on {protected(relo.guarded_by)}")
    return "; ".join(parts) or None


def _place(relo: Relocation) -> str:
    behind = relo.behind
    if behind is None:
        return ""
    line = f" (line {behind.source.line})" if behind.source and behind.source.line else ""
    if behind.field:
        return f"{behind.field}{line}"
    said = behind.message or "which the verifier gave no reason for"
    if behind.source is None:
        return f"instruction {behind.insn}, where the verifier stopped: {said}"
    place = f"{behind.source.file.rpartition('/')[2]}:{behind.source.line}" if behind.source.line else ""
    return f"{place or repr(behind.source.text)}, where the verifier stopped: {said}"


def protected(references: Iterable[RelocationRef]) -> str:
    """The fields of relocations on the one or the other side of a guard: what was only predicted last, and marked."""
    refs = tuple(references)
    proven = dict.fromkeys(ref.field for ref in refs if ref.evidence is not Evidence.PREDICTED)
    foretold = dict.fromkeys(f"{ref.field} (predicted)" for ref in refs if ref.field not in proven)
    return ", ".join([*proven, *foretold])


def _is_dull(relocations: list[Relocation], program: Program) -> bool:
    """Resolved and the same everywhere: live, or dead in a program with nothing to explain, or the verifier never
    ran.
    """
    if any(relo.outcome is not Outcome.RESOLVED or relo.is_guard or relo.guarded_by for relo in relocations):
        return False
    if all(relo.liveness is Liveness.UNREACHED and relo.behind is None for relo in relocations):
        return True
    states = {relo.liveness for relo in relocations}
    return states == {Liveness.LIVE} or (states == {Liveness.ELIMINATED} and not program.needs_words)
