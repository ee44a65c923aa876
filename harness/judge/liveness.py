"""From one program's evidence to the liveness of its relocations (docs/facts.md, "Rules of evidence").

Witnesses are asked at relocation instructions only: the kernel drops the line_info record of folded branches, `goto
+0` and bpf_fastcall spills although it visited them, and none of those is ever relocated. A relocated `ldimm64`
occupies two slots, and is spoken of by its first.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from harness.judge.flow import Flow, decode
from harness.judge.ranges import Insns
from harness.judge.stop import last_words, listed, source_at
from harness.model.result import Obstacle, Relocation, RelocationRef
from harness.model.verdict import Evidence, Liveness, Outcome

POISON = 195896080  # 0xbad2310, what libbpf's bpf_core_poison_insn calls
# The kernel prints "invalid func unknown#195896080" right below the instruction (print_bpf_insn begins that line);
# until 4.9 without "unknown#" in either.
_POISON_STOP = re.compile(
    rf"^([0-9]{{1,9}}): \(85\) call (?:unknown#)?{POISON}\b.*\ninvalid func (?:unknown#)?{POISON}", re.MULTILINE
)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """The relocations with their liveness filled in, and what has to be said about the evidence."""

    relocations: tuple[Relocation, ...]
    notes: tuple[str, ...] = ()


def judge(prog: Mapping[str, Any], relocations: Sequence[Relocation], *, loaded: bool, stage: str | None) -> Findings:
    """Liveness, evidence, `behind`, `protects` and `guarded_by` for each relocation of one program of the facts."""
    if loaded:
        findings = _in_accepted(prog.get("evidence") or {}, relocations)
    elif stage == "verifier":
        findings = Findings(relocations=_Rejected(prog, relocations).judge())
    else:
        why = f"the verifier did not run: refused at stage {stage}" if stage else "not judged"
        what = Liveness.UNREACHED if stage else Liveness.UNKNOWN
        judged = (replace(relo, liveness=what, liveness_reason=why) for relo in relocations)
        findings = Findings(relocations=tuple(judged))
    flips = (prog.get("evidence") or {}).get("flips") or ()
    return replace(findings, relocations=_with_guards(findings.relocations, flips))


def _in_accepted(evidence: Mapping[str, Any], relocations: Sequence[Relocation]) -> Findings:
    records = evidence.get("line_info") or {}
    survived = Insns.of(records.get("survived")) if records.get("loaded") else None
    visited = Insns.of(evidence.get("verdict_log_visited"))
    notes = []
    if records.get("loaded") is False:
        refused = f"the evidence load was refused ({_refusal(records)}) though the verdict load was accepted"
        why = refused if records.get("errno") is not None else _refusal(records)
        notes.append(f"{why}: liveness rests on the verifier's log")
    judged = tuple(_accepted_one(relo, survived, visited, records.get("reason")) for relo in relocations)
    notes += [
        f"relocation #{relo.index} {relo.field}: {relo.liveness_reason}"
        for relo in judged
        if relo.liveness is Liveness.UNKNOWN and survived is not None
    ]
    return Findings(relocations=judged, notes=tuple(notes))


def _refusal(records: Mapping[str, Any]) -> str:
    return records.get("reason") or f"errno {records.get('errno')}"


def _accepted_one(relo: Relocation, survived: Insns | None, visited: Insns | None, reason: str | None) -> Relocation:
    insn = relo.final_insn
    if insn is None or (survived is None and visited is None):
        why = reason or "neither surviving line_info nor a complete verifier log"
        return replace(relo, liveness=Liveness.UNKNOWN, liveness_reason=why)
    witnesses = [
        (insn in witness, evidence)
        for witness, evidence in ((survived, Evidence.LINE_INFO), (visited, Evidence.VERIFIER_LOG))
        if witness is not None
    ]
    if len({alive for alive, _ in witnesses}) > 1:
        said = ", ".join(f"{evidence} says {'live' if alive else 'eliminated'}" for alive, evidence in witnesses)
        return replace(relo, liveness=Liveness.UNKNOWN, liveness_reason=f"the witnesses disagree: {said}")
    alive, evidence = witnesses[0]
    if alive and relo.outcome is Outcome.POISONED:
        why = "the kernel accepted the program, yet its evidence shows the poisoned instruction as live"
        return replace(relo, liveness=Liveness.UNKNOWN, liveness_reason=why)
    return replace(relo, liveness=Liveness.LIVE if alive else Liveness.ELIMINATED, evidence=evidence)


class _Rejected:
    """What can be known of a program the verifier refused: whatever it visited is live, and analysis loads see further.

    An analysis step jumps to an exit where a poisoned instruction stopped the step before, so all it visits was
    reached without passing poison. Once a step is accepted, every path around the poison has been walked: an
    instruction not visited is either dead, or lies behind the poison; static control flow tells which.
    """

    def __init__(self, prog: Mapping[str, Any], relocations: Sequence[Relocation]) -> None:
        self._prog = prog
        self._relocations = relocations
        evidence = prog.get("evidence") or {}
        self._steps: list[Mapping[str, Any]] = list(evidence.get("analysis") or ())
        log = prog.get("log") or ""
        self._stop = _stop_of(log)
        walked = evidence.get("verdict_log_visited")
        seen = [walked, *(step.get("visited") for step in self._steps)]
        self._blind = all(item is None for item in seen)
        # Log level 1 drops the paths that went well, yet what it does show was visited.
        shown = [(number, number + 1) for number in listed(log)]
        self._visited = Insns([pair for item in seen if item is not None for pair in item] + shown)
        self._poison = self._steps[-1].get("neutralised", []) if self._steps else []

    def judge(self) -> tuple[Relocation, ...]:
        return tuple(self._one(relo) for relo in self._relocations)

    def _one(self, relo: Relocation) -> Relocation:
        insn = relo.final_insn
        if insn is None:
            return replace(relo, liveness=Liveness.UNKNOWN, liveness_reason="its place in the program is not known")
        if insn in self._visited or insn in self._poison:
            return replace(relo, liveness=Liveness.LIVE, evidence=Evidence.VERIFIER_LOG)
        if self._blind:
            return replace(relo, liveness=Liveness.UNKNOWN, liveness_reason="no complete verifier log of the refusal")
        if self._steps and self._steps[-1].get("loaded"):
            return self._around_the_poison(relo, insn)
        return replace(
            relo,
            liveness=Liveness.UNREACHED,
            behind=self._last_stop,
            liveness_reason="the verifier stopped before it",
        )

    def _around_the_poison(self, relo: Relocation, insn: int) -> Relocation:
        distances = ((after.get(insn), at) for at, after in self._behind_poison)
        near = sorted((steps, at) for steps, at in distances if steps is not None)
        if not near:
            why = "no path reaches it, with or without the poison that stopped the verifier"
            return replace(relo, liveness=Liveness.ELIMINATED, evidence=Evidence.VERIFIER_LOG, liveness_reason=why)
        return replace(
            relo,
            liveness=Liveness.UNREACHED,
            behind=self._obstacle(near[0][1], None),
            liveness_reason="reached, if at all, only through a poisoned instruction",
        )

    @cached_property
    def _behind_poison(self) -> list[tuple[int, dict[int, int]]]:
        """For each poisoned instruction that was jumped over: what control can reach past it, and how far off."""
        insns = decode(base64.b64decode(self._prog.get("insns") or ""))
        flow = Flow(insns, [func["start"] for func in self._prog.get("funcs") or ()])
        return [(at, flow.after(at)) for at in self._poison]

    @cached_property
    def _last_stop(self) -> Obstacle | None:
        stop = self._steps[-1].get("stop") if self._steps else None
        if stop is not None and stop.get("insn") is not None:
            return self._obstacle(stop["insn"], stop.get("message"))
        return None if self._stop is None else self._obstacle(self._stop, last_words(self._prog.get("log") or ""))

    def _obstacle(self, insn: int, message: str | None) -> Obstacle:
        for relo in self._relocations:
            # Both slots of a poisoned ldimm64 are calls; either may be named.
            if relo.final_insn is not None and relo.final_insn <= insn < relo.final_insn + slots(relo):
                return Obstacle(insn=insn, index=relo.index, field=relo.field, source=relo.source, message=message)
        log = self._prog.get("log") or ""
        return Obstacle(insn=insn, message=message, source=source_at(log, insn, self._relocations))


def slots(relo: Relocation) -> int:
    """How many instruction slots the relocated instruction takes: two for `ldimm64`."""
    return 2 if (relo.before or "").startswith("18") else 1


def _stop_of(log: str) -> int | None:
    """The instruction at which the verifier gave up: the poisoned call if that is why, else the last one printed."""
    poisoned = _POISON_STOP.findall(log)
    return int(poisoned[-1]) if poisoned else next(iter(listed(log)[-1:]), None)


def _with_guards(relocations: Sequence[Relocation], flips: Sequence[Mapping[str, Any]]) -> tuple[Relocation, ...]:
    """Fill `protects` and `guarded_by`: R is protected by G if R's liveness changes when G's immediate is inverted."""
    by_index = {relo.index: relo for relo in relocations}
    pairs = [
        (flip["relo"], relo.index, evidence)
        for flip in flips
        if flip["relo"] in by_index
        for relo in relocations
        if relo.index != flip["relo"]
        for evidence in [_changed(relo, flip)]
        if evidence is not None
    ]
    involved = {number for guard, held, _ in pairs for number in (guard, held)}
    return tuple(
        replace(
            relo,
            protects=tuple(_ref(by_index[held], by) for guard, held, by in pairs if guard == relo.index),
            guarded_by=tuple(_ref(by_index[guard], by) for guard, held, by in pairs if held == relo.index),
        )
        if relo.index in involved
        else relo
        for relo in relocations
    )


def _ref(relo: Relocation, evidence: Evidence) -> RelocationRef:
    return RelocationRef(index=relo.index, field=relo.field, evidence=evidence)


def _changed(relo: Relocation, flip: Mapping[str, Any]) -> Evidence | None:
    """What shows that a relocation's liveness is another under the flip; None when nothing shows it."""
    if relo.liveness not in {Liveness.LIVE, Liveness.ELIMINATED} or relo.final_insn is None:
        return None
    for key, evidence in (("survived", Evidence.LINE_INFO), ("visited", Evidence.VERIFIER_LOG)):
        found = Insns.of(flip.get(key))
        if found is None:
            continue
        alive = relo.final_insn in found
        # A flip that is refused (the poison it uncovers) proves what it reached, and nothing about what it did not.
        if alive != (relo.liveness is Liveness.LIVE) and (alive or flip.get("loaded")):
            return evidence
    return None
