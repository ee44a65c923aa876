"""The guard audit: what this matrix shows about a program's own precautions, and what it cannot show.

Five questions, each from the stored run alone: poison that nothing guards; a LINUX_KERNEL_VERSION comparison where a
field or type check would be right (and the wrong way round); checks that no kernel of the matrix takes both ways;
flavors that no kernel chooses; and, for the record, checks taken both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from harness.judge.explain import why
from harness.model.result import GUARD_KINDS, ProgResult, Relocation, RunResult, Source
from harness.model.verdict import Liveness, Outcome
from harness.report.ledger import protected, without_ids
from harness.report.view import Program, RelocationKey, View

VERSION = "LINUX_KERNEL_VERSION"


class Topic(StrEnum):
    """What a remark is about, gravest first."""

    UNGUARDED = "unguarded"
    WRONG_WAY = "version-wrong-way"
    BY_VERSION = "version-guard"
    ONE_WAY = "one-way"
    NEVER_CHOSEN = "flavor-never-chosen"


TITLES: Mapping[Topic, str] = {
    Topic.UNGUARDED: "Reached poison: nothing guards it on these kernels",
    Topic.WRONG_WAY: "Guarded by LINUX_KERNEL_VERSION, the wrong way round",
    Topic.BY_VERSION: "Guarded by LINUX_KERNEL_VERSION, where a field or type check would be right",
    Topic.ONE_WAY: "Checks that no kernel of this run takes both ways",
    Topic.NEVER_CHOSEN: "Flavors that no kernel of this run chooses",
}


@dataclass(frozen=True, kw_only=True)
class Remark:
    """One thing the audit says: of a program (`subject`, `prog`), at a line of its source, on these kernels."""

    topic: Topic
    subject: str
    prog: str
    field: str
    kind: str
    text: str
    kernels: tuple[str, ...]
    judged: tuple[str, ...]
    source: Source | None = None


@dataclass(frozen=True, kw_only=True)
class Guards:
    """How a subject's existence checks came out: how many go both ways, are always 1, always 0, or never looked at."""

    subject: str
    both: tuple[str, ...] = ()
    always_1: tuple[str, ...] = ()
    always_0: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    eliminated: int = 0
    kernels: tuple[str, ...] = ()


def audit(run: RunResult) -> list[Remark]:
    """All remarks, by topic, then in the run's order."""
    view = View(run)
    found = [remark for program in view.all_programs() for remark in _program(view, program)]
    return sorted(found, key=lambda remark: list(Topic).index(remark.topic))


def guards(view: View) -> list[Guards]:
    """A line for each subject that has checks, or poison that was eliminated."""
    return [found for subject in view.subjects if (found := _guards(view.label(subject), view.programs(subject)))]


def _guards(label: str, programs: Iterable[Program]) -> Guards | None:
    ways: dict[str, set[int | None]] = {}
    dead: set[tuple[str, RelocationKey]] = set()
    kernels: dict[str, None] = {}
    for program in programs:
        for key, found in _relocations(program):
            if key.kind in GUARD_KINDS:
                ways.setdefault(key.field, set()).update(_values(found))
            lost = [kernel for kernel, relo in found.items() if _eliminated_poison(relo)]
            kernels |= dict.fromkeys(lost)
            dead |= {(program.name, key)} if lost else set()
    if not ways and not dead:
        return None

    def with_ways(*values: int) -> tuple[str, ...]:
        return tuple(field for field, seen in ways.items() if seen == set(values))

    return Guards(
        subject=label,
        both=with_ways(0, 1), always_1=with_ways(1), always_0=with_ways(0), unseen=with_ways(),
        eliminated=len(dead), kernels=tuple(kernels),
    )  # fmt: skip


def _relocations(program: Program) -> Iterator[tuple[RelocationKey, dict[str, Relocation]]]:
    """A program's relocations with the kernels that gave a verdict."""
    for key, by_kernel in program.relocations.items():
        judged = {kernel: relo for kernel, relo in by_kernel.items() if kernel in program.judged}
        if judged:
            yield key, judged


def _values(found: Mapping[str, Relocation]) -> set[int | None]:
    """The ways a check was taken: only where the verifier came to it."""
    return {relo.new_value for relo in found.values()
            if relo.liveness is Liveness.LIVE and relo.outcome is Outcome.RESOLVED}  # fmt: skip


def _eliminated_poison(relo: Relocation) -> bool:
    return relo.outcome is Outcome.POISONED and relo.liveness is Liveness.ELIMINATED


def _program(view: View, program: Program) -> Iterator[Remark]:
    flavors: dict[str, list[tuple[RelocationKey, dict[str, Relocation]]]] = {}
    for key, found in _relocations(program):
        yield from _unguarded(view, program, key, found)
        yield from _by_version(view, program, key, found)
        yield from _one_way(view, program, key, found)
        root = _root(key.field)
        if "___" in root:
            flavors.setdefault(root, []).append((key, found))
    for root, uses in flavors.items():
        yield from _never_chosen(view, program, root, uses)


def _remark(
    view: View, program: Program, topic: Topic, key: RelocationKey, found: Mapping[str, Relocation], *, text: str
) -> Remark:
    source = next((relo.source for relo in found.values() if relo.source), None)
    return Remark(
        topic=topic, subject=view.label(program.subject), prog=program.name, field=key.field, kind=key.kind, text=text,
        kernels=tuple(found), judged=tuple(program.judged), source=source,
    )  # fmt: skip


def _by_text(found: Mapping[str, Relocation], say: Mapping[str, str]) -> Iterator[tuple[str, dict[str, Relocation]]]:
    groups: dict[str, dict[str, Relocation]] = {}
    for kernel, text in say.items():
        groups.setdefault(text, {})[kernel] = found[kernel]
    yield from groups.items()


def _unguarded(
    view: View, program: Program, key: RelocationKey, found: Mapping[str, Relocation]
) -> Iterator[Remark]:
    broken = {kernel: relo for kernel, relo in found.items() if relo.is_broken and not _wrong_way(program, kernel)}
    say = {kernel: without_ids((why(relo) or "no reason recorded",))[0] for kernel, relo in broken.items()}
    for text, where in _by_text(broken, say):
        yield _remark(view, program, Topic.UNGUARDED, key, where, text=text)


def _by_version(
    view: View, program: Program, key: RelocationKey, found: Mapping[str, Relocation]
) -> Iterator[Remark]:
    asked = {kernel: relo for kernel, relo in found.items() if _knows_version(program, kernel)}
    wrong = {kernel: relo for kernel, relo in asked.items() if relo.is_broken and _wrong_way(program, kernel)}
    if wrong:
        kept = next(iter(wrong))
        other = ", ".join(sorted(_resolves_but_dead(program.judged[kept])))
        text = (
            f"the comparison keeps this read, which has no target, and drops {other}, which has one: "
            "compare the other way, or better, ask `if (bpf_core_field_exists(...))`"
        )
        yield _remark(view, program, Topic.WRONG_WAY, key, wrong, text=text)
    # Eliminated, and no existence check decides it: what is left in such a program is the version.
    decided = {
        kernel: relo for kernel, relo in asked.items()
        if relo.liveness is Liveness.ELIMINATED and not relo.guarded_by and not relo.is_guard
        and kernel not in wrong and not _wrong_way(program, kernel) and _no_live_check(program.judged[kernel], relo)
    }  # fmt: skip
    if decided:
        poison = any(relo.outcome is Outcome.POISONED for relo in decided.values())
        text = "no existence check decides whether this is reached; distributions backport, so ask for "
        text += "the field or type itself" if poison else "what differs (bpf_core_field_exists, _type_matches)"
        yield _remark(view, program, Topic.BY_VERSION, key, decided, text=text)


def _knows_version(program: Program, kernel: str) -> bool:
    return any(extern.name == VERSION for extern in program.cells[kernel].externs)


def _wrong_way(program: Program, kernel: str) -> bool:
    """Poison is kept and what would resolve is dropped, in a program that knows the kernel's version."""
    prog = program.judged[kernel]
    reached = any(relo.is_broken for relo in prog.core_relos)
    return reached and _knows_version(program, kernel) and bool(_resolves_but_dead(prog))


def _resolves_but_dead(prog: ProgResult) -> set[str]:
    return {
        relo.field for relo in prog.core_relos
        if relo.outcome is Outcome.RESOLVED and relo.liveness is Liveness.ELIMINATED and not relo.is_guard
        and not relo.guarded_by
    }  # fmt: skip


def _no_live_check(prog: ProgResult, relo: Relocation) -> bool:
    """Is there no live check of the same type that could be what decides? (A flip may have shown nothing.)"""
    return not any(
        other.is_guard and _root(other.field).partition("___")[0] == _root(relo.field).partition("___")[0]
        for other in prog.core_relos
    )


def _one_way(view: View, program: Program, key: RelocationKey, found: Mapping[str, Relocation]) -> Iterator[Remark]:
    ways = _values(found)
    if key.kind not in GUARD_KINDS or len(ways) > 1:
        return
    text = "the verifier comes to this check on no kernel of this run"
    for value in ways:
        text = f"always {value}: the code for {1 - (value or 0)} was never verified"
    held = protected(ref for relo in found.values() for ref in relo.protects)
    text += f"; it protects {held}" if held else ""
    yield _remark(view, program, Topic.ONE_WAY, key, found, text=text)


def _never_chosen(
    view: View, program: Program, root: str, uses: list[tuple[RelocationKey, dict[str, Relocation]]]
) -> Iterator[Remark]:
    def chosen(relo: Relocation) -> bool:
        live = relo.outcome is Outcome.RESOLVED and relo.liveness is Liveness.LIVE
        return live and (relo.new_value == 1 if relo.is_guard else True)

    if any(chosen(relo) for _, found in uses for relo in found.values()):
        return
    key, found = uses[0]
    text = f"{root} resolves and is reached on no kernel of this run: older kernels are missing from it, or it can go"
    yield _remark(view, program, Topic.NEVER_CHOSEN, key, found, text=text)


def _root(field: str) -> str:
    """The type's name, flavor kept."""
    return field.partition(".")[0].partition("::")[0]
