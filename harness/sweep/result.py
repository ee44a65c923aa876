"""Answers of many BTFs put together into the result of a sweep. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from harness.model.result import Source, field_of
from harness.model.sweep import SweepResult, SweptBtf, SweptObject, SweptProgram, SweptRelocation
from harness.sweep.answers import Answer, Described, Fate
from harness.sweep.classes import classes
from harness.sweep.engine import Answered, Job, suits
from harness.sweep.targets import Target


def result_of(
    jobs: Sequence[Job],
    targets: Sequence[Target],
    answered: Sequence[Answered],
    *,
    tool: dict[str, str],
    started: str,
    seconds: float,
    notes: tuple[str, ...] = (),
) -> SweepResult:
    """The result, objects in the order of the jobs. `targets` must be in their order (`Target.order`)."""
    return SweepResult(
        tool=tool,
        started=started,
        seconds=round(seconds, 2),
        notes=notes,
        indexed=sum(one.indexed for one in answered),
        btfs=tuple(_btf(targets[one.target], one) for one in answered),
        objects=tuple(_object(number, job, targets, answered) for number, job in enumerate(jobs)),
    )


def _btf(target: Target, answered: Answered) -> SweptBtf:
    return SweptBtf(
        id=target.id, distro=target.distro, version=target.version, arch=target.arch, release=target.release,
        path=str(target.path), types=answered.types, error=answered.error, model=answered.rules,
    )  # fmt: skip


def _object(number: int, job: Job, targets: Sequence[Target], answered: Sequence[Answered]) -> SweptObject:
    found: dict[int, Answer] = {one.target: one.answers[number] for one in answered if number in one.answers}
    described: dict[int, Described] = {}
    for one in answered:
        described.update(one.described.get(number, {}))
    names = dict.fromkeys(name for answer in found.values() for name in answer.progs)
    sections = next((one.sections[number] for one in answered if number in one.sections), {})
    return SweptObject(
        name=job.object.name,
        path=str(job.object.path),
        sha256=job.object.sha256,
        arch=job.object.arch,
        btfs=len(found),
        other_arch=sum(not suits(job, target) for target in targets),
        progs=tuple(_prog(name, sections.get(name, ""), found, targets) for name in names),
        core_relos=tuple(_relocation(index, described[index], found, targets) for index in sorted(described)),
        notes=tuple(dict.fromkeys(note for one in answered for note in one.notes.get(number, ()))),
    )


def _prog(name: str, section: str, found: dict[int, Answer], targets: Sequence[Target]) -> SweptProgram:
    fates = {target: answer.progs[name] for target, answer in found.items() if name in answer.progs}
    return SweptProgram(name=name, section=section, classes=classes(fates, targets))


_UNJUDGED = Fate("unjudged", reason="libbpf gave up on the object before it")


def _relocation(
    index: int, described: Described, found: dict[int, Answer], targets: Sequence[Target]
) -> SweptRelocation:
    fates = {
        target: answer.relocations[index] if index < len(answer.relocations) else _UNJUDGED
        for target, answer in found.items()
    }
    return SweptRelocation(
        index=index, prog=described.prog, section=described.section, insn=described.insn, kind=described.kind,
        field=field_of(described.local_spec or "?"), local_spec=described.local_spec,
        source=_source(described.source), classes=classes(fates, targets),
    )  # fmt: skip


def _source(source: Any) -> Source | None:
    return Source(file=source["file"], line=source["line"], text=source["text"]) if source else None
