"""What came of one object on one kernel under both loaders, and the figures of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.judge.agreement import disagreements


@dataclass(kw_only=True)
class Compared:
    """One object on one kernel: `rows` the disagreements, `trouble` why there is no comparison (None: there is one).

    From a guest also what it ran (`release`, `guest_code` by its fingerprint), `when` and how long it took, and
    `memory_mb` where the object was asked for in a larger guest because (`why_more`) the usual one was too small; then
    also what came of the prediction (`foretold.held_against`), the seconds each loader took in the guest (`judging`),
    and the programs that libbpf did not load.
    """

    name: str
    kernel: str
    relocations: int = 0
    progs: int = 0
    loaded: int = 0
    insns: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    error: str | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    trouble: str | None = None
    judge: str | None = None
    release: str | None = None
    guest_code: str | None = None
    when: str | None = None
    seconds: float | None = None
    memory_mb: int | None = None
    why_more: str | None = None
    liveness: dict[str, int] = field(default_factory=dict)
    foretold: int = 0
    foretold_wrongly: list[dict[str, Any]] = field(default_factory=list)
    not_foretold: str | None = None
    judging: dict[str, float] = field(default_factory=dict)
    refused: list[dict[str, Any]] = field(default_factory=list)


def compare(name: str, kernel: str, python: dict[str, Any], libbpf: dict[str, Any]) -> Compared:
    """Figures are libbpf's."""
    return Compared(
        name=name,
        kernel=kernel,
        relocations=len(libbpf["core_relos"]),
        progs=sum(prog["autoload"] for prog in libbpf["progs"]),
        loaded=sum(prog["loaded"] for prog in libbpf["progs"]),
        insns=sum(len(prog["insns"]) * 3 // 4 // 8 for prog in libbpf["progs"]),
        outcomes=dict(Counter(line["outcome"] for line in libbpf["core_relos"])),
        error=libbpf["object_error"]["stage"] if libbpf["object_error"] else None,
        rows=disagreements(python, libbpf),
        judge=libbpf["loader_version"],
        judging={facts["loader"]: round(sum(facts["seconds"].values()), 3) for facts in (libbpf, python)},
        refused=[
            {"prog": prog["name"], "stage": prog["stage"], "errno": prog["errno"], "error": (prog["error"] or "")[:200]}
            for prog in libbpf["progs"]
            if prog["autoload"] and not prog["loaded"]
        ],
    )


def plain_name(name: str) -> str:
    """The object's name as a request has it: the last part, without what no map name may hold."""
    return Path(name).name.replace("#", "_")


def summary(compared: Sequence[Compared]) -> str:
    """The figures and each disagreement, for people and docs/corpus.md."""
    good = [one for one in compared if one.trouble is None]
    disagree = [one for one in good if one.rows]
    outcomes = sum((Counter(one.outcomes) for one in good), Counter[str]())
    said = ", ".join(f"{count} {word}" for word, count in sorted(outcomes.items()))
    lines = [
        f"objects: {len(compared)}, compared: {len(good)}, in agreement: {len(good) - len(disagree)}",
        f"relocations: {sum(one.relocations for one in good)} ({said})",
        f"programs: {sum(one.progs for one in good)} autoloaded, {sum(one.loaded for one in good)} loaded",
        f"final instructions compared: {sum(one.insns for one in good)}",
        f"liveness: {_sum(one.liveness for one in good)}",
        f"foretold: {sum(one.foretold for one in good)}, wrongly: {sum(len(one.foretold_wrongly) for one in good)}",
        f"objects libbpf gave up: {dict(Counter(one.error for one in good if one.error))}",
    ]
    for one in compared:
        if one.why_more is not None and one.trouble is None:
            lines.append(
                f"{one.kernel} {one.name}: compared in a guest of {one.memory_mb} MB ({one.why_more.strip()[:200]})"
            )
        if one.trouble is not None:
            lines.append(f"{one.kernel} {one.name}: TROUBLE {one.trouble.strip()[-600:]}")
        lines.extend(f"{one.kernel} {one.name}: {_told(row)}" for row in one.rows)
        lines.extend(f"{one.kernel} {one.name}: foretold wrongly: {row}" for row in one.foretold_wrongly)
        if one.not_foretold is not None:
            lines.append(f"{one.kernel} {one.name}: not foretold: {one.not_foretold}")
    return "\n".join(lines) + "\n"


def _sum(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    return dict(sum(map(Counter, counts), Counter[str]()))


def _told(row: dict[str, Any]) -> str:
    place = " ".join(str(row[word]) for word in ("what", "where", "field") if row[word])
    return f"{place}: python {row['python']} | libbpf {row['libbpf']}"
