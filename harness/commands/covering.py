"""`run --cover`: boot the fewest kernels that show every outcome a sweep foretells, and say who stands for the rest."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness import kernels
from harness.errors import CorematrixError, UsageError
from harness.executor.costs import Costs
from harness.model.cell import Cell
from harness.model.cover import Cover, Remark, StandIn
from harness.model.kernel import Kernel, KernelSpec
from harness.model.lock import Lock
from harness.model.result import CellResult
from harness.model.verdict import CellStatus
from harness.store import Store
from harness.sweep.answers import Answer
from harness.sweep.cover import Foretold, cover
from harness.sweep.engine import Answered, Job, answers, problem
from harness.sweep.targets import Target, find_targets, kernel_targets

OnEvent = Callable[[str], None]
LeftOut = Callable[[Cell, Iterable[str]], frozenset[str]]
# Machines that run already are asked what they are only when they are asked everything.
_BACKENDS = frozenset({"qemu", "virtme-ng"})
_JUDGED = frozenset({CellStatus.PASSED, CellStatus.FAILED})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--cover", action="store_true", help="relocate against every kernel chosen, boot only the fewest that show "
        "every outcome, and say which of them stands for each of the rest, and what that leaves unproven")  # fmt: skip
    add("--cover-btf", nargs="+", action="extend", default=[], type=Path, metavar="TREE|FILE", help="--cover: also "
        "cover kernels of which there is only BTF, given as for `sweep --btf`")  # fmt: skip


def check(options: argparse.Namespace) -> None:
    """UsageError unless the options fit each other."""
    if options.cover_btf and not options.cover:
        message = "--cover-btf is for --cover"
        raise UsageError(message)
    if options.cover and options.shard:
        message = "--cover and --shard do not go together: a part of a run cannot stand for the whole"
        raise UsageError(message, remedy="take the few kernels of --cover on one machine")


@dataclass(frozen=True, kw_only=True)
class Covering:
    """What was decided: the cover, and the cells that are left to run."""

    cover: Cover
    cells: tuple[Cell, ...]

    def conclude(self, results: Sequence[CellResult]) -> Cover:
        """The cover after the run: what booted kernels themselves left open is unproven where they stand in."""
        found = {(cell.kernel.id, _subject(cell.object.name, cell.settings.items())): cell for cell in results}
        return replace(
            self.cover,
            stand_ins=tuple(
                replace(one, unproven=(*_open(one, found), *one.unproven)) for one in self.cover.stand_ins
            ),
        )


def choose(
    options: argparse.Namespace, cells: tuple[Cell, ...], lock: Lock | None, store: Store, on_event: OnEvent,
    *, left_out: LeftOut,
) -> Covering | None:  # fmt: skip
    """Sweep the cells' kernels and choose; None unless --cover was given. Kernels are fetched, and none is booted.
    `left_out` says which programs the expectations take out of a cell: they show nothing there, and need not.
    """
    if not options.cover:
        return None
    real = [cell for cell in cells if not cell.not_applicable]
    specs = list({cell.kernel.id: cell.kernel for cell in real}.values())
    known, always, notes = _provided(specs, lock, store, on_event)
    here = kernel_targets(known.values())
    targets = tuple(sorted([*here, *find_targets(options.cover_btf)], key=lambda target: target.order))
    jobs, unread = _jobs(real)
    notes += unread
    on_event(f"--cover: {len(jobs)} objects against {len(targets)} BTFs")
    found = answers([job for job, _ in jobs.values()], targets, store, processes=options.jobs, detailed=True)
    numbers = {key: number for key, (_, number) in jobs.items()}
    asked = _Asked(numbers=numbers, cells=_by_kernel(real), left_out=left_out)
    foretold = [
        _foretold(target, answered, known.get(target.id), asked)
        for answered in found
        if answered.error is None and (target := targets[answered.target])
    ]
    notes += [_with_name(targets[one.target].id, one.error) for one in found if one.error]
    always += [targets[one.target].id for one in found if one.error and targets[one.target].id in known]
    made = cover(_in_matrix_order(foretold, specs), always, notes)
    on_event(f"--cover: {len(made.booted)} of {made.kernels} kernels are booted: {', '.join(made.booted)}")
    return Covering(cover=made, cells=tuple(cell for cell in cells if cell.kernel.id in made.booted))


def _provided(
    specs: Iterable[KernelSpec], lock: Lock | None, store: Store, on_event: OnEvent
) -> tuple[dict[str, Kernel], list[str], list[str]]:
    """Kernels with BTF by id, those that have to be booted unseen, and why."""
    known: dict[str, Kernel] = {}
    always, notes = [], []
    for spec in specs:
        why = None if spec.backend in _BACKENDS else "a machine that runs is asked, not foretold"
        if why is None:
            try:
                kernel = kernels.provide(spec, store, lock, on_event)
            except CorematrixError as error:
                why = error.message
            else:
                known[spec.id] = kernel
                why = "no BTF to foretell it from" if kernel.btf is None else None
        if why is not None:
            always.append(spec.id)
            notes.append(f"{spec.id}: {why}")
    return known, always, notes


def _with_name(name: str, text: str) -> str:
    """What is wrong with a BTF: of its contents it is said with the name, of its file with the path."""
    return text if text.startswith(f"{name}: ") else f"{name}: {text}"


def _subject(name: str, settings: Iterable[tuple[str, str]]) -> str:
    """An object with its settings, as a cell's identity spells it."""
    text = ",".join(f"{key}={value}" for key, value in settings)
    return f"{name}[{text}]" if text else name


def _jobs(cells: Iterable[Cell]) -> tuple[dict[tuple[str, str], tuple[Job, int]], list[str]]:
    """By (name with settings, digest of the file): the job and its number; and what cannot be opened, with why: libbpf
    refuses that wherever it is. Loaders make no difference here.
    """
    found: dict[tuple[str, str], tuple[Job, int]] = {}
    refused: dict[tuple[str, str], str] = {}
    for cell in cells:
        key = (_subject(cell.object.name, cell.settings), cell.object.sha256)
        if key in found or key in refused:
            continue
        job = Job(object=cell.object, settings=dict(cell.settings))
        why = problem(job)
        if why is None:
            found[key] = (job, len(found))
        else:
            refused[key] = f"{key[0]}: nothing is foretold of it: {why}"
    return found, list(refused.values())


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What was asked of every BTF: the jobs' numbers by (name with settings, digest of the file), a kernel's own cells
    by its id and the same keys, and what the expectations take out of them.
    """

    numbers: Mapping[tuple[str, str], int]
    cells: Mapping[str, Mapping[tuple[str, str], Sequence[Cell]]]
    left_out: LeftOut


def _by_kernel(cells: Iterable[Cell]) -> dict[str, dict[tuple[str, str], list[Cell]]]:
    found: dict[str, dict[tuple[str, str], list[Cell]]] = {}
    for cell in cells:
        key = (_subject(cell.object.name, cell.settings), cell.object.sha256)
        found.setdefault(cell.kernel.id, {}).setdefault(key, []).append(cell)
    return found


def _foretold(target: Target, answered: Answered, kernel: Kernel | None, asked: _Asked) -> Foretold:
    """What one BTF said; of a kernel of the matrix only for its own cells."""
    own = asked.cells.get(kernel.spec.id, {}) if kernel is not None else {}
    mine = {
        key: number
        for key, number in asked.numbers.items()
        if number in answered.answers and (kernel is None or key in own)
    }
    found = {name: answered.answers[number] for (name, _), number in mine.items()}
    return Foretold(
        kernel=target.id,
        distro=target.distro,
        arch=target.arch or "?",
        variant=target.version,
        release=target.release,
        rules=frozenset(answered.rules),
        cost=Costs().boot(kernel.spec) if kernel is not None else 0.0,
        answers=found,
        digests=dict(mine.keys()),
        bootable=kernel is not None,
        left_out={
            key[0]: frozenset.intersection(*(asked.left_out(cell, found[key[0]].progs) for cell in own[key]))
            for key in mine
            if key in own
        },
        silent=frozenset(name for name, answer in found.items() if target.kconfig is None and _reads_kconfig(answer)),
    )


def _reads_kconfig(answer: Answer) -> bool:
    """Whether the object has CONFIG_ externs: where no configuration is to be had, libbpf gives it up."""
    return answer.detail is not None and any(name.startswith("CONFIG_") for name, _ in answer.detail.externs)


def _in_matrix_order(foretold: Sequence[Foretold], specs: Sequence[KernelSpec]) -> list[Foretold]:
    order = {spec.id: number for number, spec in enumerate(specs)}
    return sorted(foretold, key=lambda one: order.get(one.kernel, len(order)))


def _open(one: StandIn, found: dict[tuple[str, str], CellResult]) -> Iterable[Remark]:
    """What the cells of the kernels that stand for another left open."""
    for share in one.by:
        cell = found.get((share.kernel, one.object))
        if cell is None or cell.status not in _JUDGED:
            said = "was not run" if cell is None else f"{cell.status}: {cell.reason}"
            yield Remark(what="proof", text=f"{share.kernel} proved nothing: {said}")
            continue
        for row in (cell.prediction or {}).get("disagreements") or ():
            text = f"{row['field']} is {row['kernel']} on {share.kernel}, foretold {row['predicted']}"
            yield Remark(what="proof", text=text, prog=row["prog"])
        reason = (cell.prediction or {}).get("reason")
        if reason:
            yield Remark(what="proof", text=f"on {share.kernel} nothing was held against the proof: {reason}")
        for prog in cell.progs:
            if prog.name in share.progs and prog.verdict != "loaded":
                text = f"{prog.verdict} on {share.kernel}, and so to be expected here"
                yield Remark(what="proof", text=text, prog=prog.name)
