"""What changes for the objects of one run between two kernels: verdicts, and each relocation with what lies behind it.

The run says what; the two kernels' BTF, where the caller has it, say why: a field that one kernel lacks has perhaps
only another name there. Offsets differ between any two kernels and are no change: that is what CO-RE is for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.errors import UsageError
from harness.guest.btf import Btf
from harness.judge.explain import why
from harness.model.result import ProgResult, Relocation, RunResult, Source, field_of
from harness.model.suspicion import ConfigSuspicion
from harness.model.verdict import Liveness
from harness.report.leads import Lead, Lost, lead
from harness.report.ledger import without_ids
from harness.report.view import Program, RelocationKey, View, drift

BtfOf = Callable[[str], Btf | None]  # by sha256


@dataclass(frozen=True, kw_only=True)
class Step:
    """What differs for one relocation of one program, from the first kernel to the second."""

    subject: str
    prog: str
    field: str = ""
    kind: str = ""
    source: Source | None = None
    texts: tuple[str, ...]
    worse: bool = False


@dataclass(frozen=True, kw_only=True)
class KernelDiff:
    """From `first` to `second`. `missing` are kernels whose BTF was not to be had: no suggestions there."""

    first: str
    second: str
    steps: tuple[Step, ...]
    leads: tuple[Lead, ...] = ()
    missing: tuple[str, ...] = field(default=())
    config_suspects: tuple[ConfigSuspicion, ...] = ()


def compare(run: RunResult, first: str, second: str, btf_of: BtfOf) -> KernelDiff:
    """UsageError when the run does not hold a kernel."""
    view = View(run)
    for kernel in (first, second):
        if kernel not in view.kernels:
            message = f"this run has no kernel {kernel!r}"
            raise UsageError(message, remedy=f"it has: {', '.join(view.kernels)}")
    steps: list[Step] = []
    wanted: dict[Lost, None] = {}
    for program in view.all_programs():
        for key, step in _program(view, program, first, second):
            steps.append(step)
            if key is not None:
                wanted |= dict.fromkeys(_lost(program, key, first, second))
    leads, missing = _leads(run, list(wanted), (first, second), btf_of)
    return KernelDiff(first=first, second=second, steps=tuple(steps), leads=leads, missing=missing)


def history(run: RunResult) -> list[tuple[str, str]]:
    """Neighbouring kernels of each architecture, in the run's order (the matrix has the oldest first)."""
    by_arch: dict[str, dict[str, None]] = {}
    for cell in run.cells:
        by_arch.setdefault(cell.kernel.arch, {})[cell.kernel.id] = None
    return [pair for kernels in by_arch.values() for pair in zip(list(kernels), list(kernels)[1:], strict=False)]


def _program(view: View, program: Program, first: str, second: str) -> Iterator[tuple[RelocationKey | None, Step]]:
    old, new = program.judged.get(first), program.judged.get(second)
    subject = view.label(program.subject)
    if old is None or new is None:
        if old is not new:
            text = f"judged on {first if new is None else second} only"
            yield None, Step(subject=subject, prog=program.name, texts=(text,))
        return
    if old.verdict != new.verdict:
        text = f"{_said(old)} -> {_said(new)}"
        worse = old.verdict == "loaded"
        yield None, Step(subject=subject, prog=program.name, texts=(text, *new.explanation), worse=worse)
    for key, by_kernel in program.relocations.items():
        was, now = by_kernel.get(first), by_kernel.get(second)
        texts = tuple(_differences(was, now))
        if texts:
            source = next((relo.source for relo in (now, was) if relo and relo.source), None)
            worse = bool(now and now.is_broken and not (was and was.is_broken))
            yield key, Step(
                subject=subject, prog=program.name, field=key.field, kind=key.kind, source=source, texts=texts,
                worse=worse,
            )  # fmt: skip


def _said(prog: ProgResult) -> str:
    return f"{prog.verdict} at {prog.stage}" if prog.stage else str(prog.verdict)


def _differences(was: Relocation | None, now: Relocation | None) -> Iterator[str]:
    if was is None or now is None:
        yield "not in the program" + (" there any more" if now is None else " before")
        return
    one, other = _state(was), _state(now)
    if one != other:
        because = next((text for relo in (now, was) if relo.target_spec is None and (text := why(relo))), None)
        yield f"{one} -> {other}" + (f": {without_ids((because,))[0]}" if because else "")
    paths = [field_of(relo.target_spec) if relo.target_spec else None for relo in (was, now)]
    if None not in paths and paths[0] != paths[1]:
        yield f"found at {paths[0]} -> {paths[1]}"
    yield from (f"the field's {name}: {old} -> {new}" for name, old, new in drift(was, now))


def _state(relo: Relocation) -> str:
    if relo.is_guard and relo.new_value is not None:
        return f"= {relo.new_value}" + ("" if relo.liveness is Liveness.LIVE else f", {relo.liveness}")
    return f"{relo.outcome}, {relo.liveness}"


def _lost(program: Program, key: RelocationKey, first: str, second: str) -> Iterator[Lost]:
    """What exactly one of the two has a target for."""
    found = [program.relocations[key].get(kernel) for kernel in (first, second)]
    specs = [relo.target_spec for relo in found if relo is not None]
    if len(specs) == 2 and specs.count(None) == 1:
        local = next(relo.local_spec for relo in found if relo is not None)
        yield Lost(spec=local, lacks=(first, second)[specs.index(None)])


def _leads(
    run: RunResult, wanted: Sequence[Lost], pair: tuple[str, str], btf_of: BtfOf
) -> tuple[tuple[Lead, ...], tuple[str, ...]]:
    if not wanted:
        return (), ()
    hashes = {cell.kernel.id: cell.kernel.btf_sha256 for cell in run.cells if cell.kernel.btf_sha256}
    read = {kernel: btf_of(hashes[kernel]) if kernel in hashes else None for kernel in pair}
    btfs = {kernel: btf for kernel, btf in read.items() if btf is not None}
    if len(btfs) < len(read):
        return (), tuple(kernel for kernel in pair if kernel not in btfs)
    leads: dict[tuple[str, frozenset[tuple[str, ...]]], Lead] = {}
    # What the second kernel lacks comes first: the same rename seen from the other side is then known.
    for lost in sorted(wanted, key=lambda item: item.lacks != pair[1]):
        has = pair[0] if lost.lacks == pair[1] else pair[1]
        found = lead(lost, btfs[has], btfs[lost.lacks])
        if found is not None:
            sides = frozenset({found.suggestion.known, found.suggestion.found})
            root = found.suggestion.root if found.suggestion.kind != "type" else ""
            leads.setdefault((root, sides), found)
    return tuple(leads.values()), ()
