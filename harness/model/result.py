"""What a run found, as docs/contract.md's `run --json` spells it: frozen values, and their way to JSON and back.

Names are those of the JSON; schema 1 allows more to be added. `plain_json.to_json` writes them, `run_from_json` reads
a whole run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError
from harness.model.cell import CellId
from harness.model.cover import Cover
from harness.model.functional import FunctionalResult
from harness.model.plain_json import value_from_json
from harness.model.suspicion import ConfigSuspicion
from harness.model.verdict import CellStatus, Evidence, Liveness, Outcome, Stage, Start, Verdict

SCHEMA = 1

# bpf_core_format_spec() of libbpf: "<kind> [id] what name", then for fields " (0:1 @ offset N)", for enumerators " =
# N".
_SPEC = re.compile(r"^<(?P<kind>\w+)> \[\d+\] \S+ (?P<name>.*?)(?: \([\d:]* @ offset [\d.]+\)| = -?\d+)?$", re.DOTALL)
GUARD_KINDS = frozenset({"field_exists", "type_exists", "type_matches", "enumval_exists"})


def field_of(spec: str) -> str:
    """The part of libbpf's spec text that people write: `task_struct.pid`, `bpf_func_id::BPF_FUNC_x`, `bpf_ringbuf`."""
    match = _SPEC.match(spec)
    return match["name"] if match else spec


@dataclass(frozen=True, kw_only=True)
class Source:
    """A line of the program's C source, from .BTF.ext's line_info."""

    file: str
    line: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A target type of the same essential name, and why it did not match (None when it did)."""

    name: str
    id: int | None = None
    why_not: str | None = None


@dataclass(frozen=True, kw_only=True)
class RelocationRef:
    """Another relocation of the same program: `index` is its position in .BTF.ext record order."""

    index: int
    field: str
    evidence: Evidence


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """What stands before an instruction the verifier never reached: a poisoned relocation, or where it stopped
    otherwise.
    """

    insn: int
    index: int | None = None
    field: str | None = None
    source: Source | None = None
    message: str | None = None


@dataclass(frozen=True, kw_only=True)
class Relocation:
    """One CO-RE relocation as it stands in one entry program's final instructions.

    `prog` is the function that holds the instruction and `insn` counts within it; `final_insn` counts within the
    entry program as given to the kernel (None when the program was never assembled). `index` is the position in
    .BTF.ext record order.
    """

    index: int
    prog: str
    section: str
    insn: int
    kind: str
    local_spec: str
    target_spec: str | None
    outcome: Outcome
    orig_value: int | None
    new_value: int | None
    before: str | None = None
    after: str | None = None
    reason: str | None = None
    local: dict[str, Any] | None = None
    target: dict[str, Any] | None = None
    candidates: tuple[Candidate, ...] = ()
    source: Source | None = None
    final_insn: int | None = None
    liveness: Liveness = Liveness.UNKNOWN
    evidence: Evidence | None = None
    liveness_reason: str | None = None
    behind: Obstacle | None = None
    protects: tuple[RelocationRef, ...] = ()
    guarded_by: tuple[RelocationRef, ...] = ()

    @property
    def field(self) -> str:
        """What the relocation is about, as people write it (see `field_of`)."""
        return field_of(self.local_spec)

    @property
    def is_guard(self) -> bool:
        """An existence check: its value decides at load time which code lives."""
        return self.kind in GUARD_KINDS

    @property
    def is_broken(self) -> bool:
        """The one combination that costs the program: poisoned and reached, or fatal for the object."""
        return self.outcome is Outcome.ERROR or (self.outcome is Outcome.POISONED and self.liveness is Liveness.LIVE)


@dataclass(frozen=True, kw_only=True)
class VerifierStats:
    """The verifier's own figures; `stack_depth` is the sum over subprograms, as veristat prints it; None: not
    reported.
    """

    processed_insns: int | None = None
    total_states: int | None = None
    peak_states: int | None = None
    max_states_per_insn: int | None = None
    stack_depth: int | None = None
    verification_usec: int | None = None
    insn_limit: int | None = None
    log: str | None = None
    log_excerpt: str | None = None


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What was expected of one program: `rule` says where it is written (None: the default, that it loads)."""

    verdict: str = "loaded"
    stage: Stage | None = None
    relocations: tuple[dict[str, Any], ...] = ()
    reason: str | None = None
    expires: str | None = None
    rule: str | None = None


@dataclass(frozen=True, kw_only=True)
class Alone:
    """What became of a program by itself, when a relocation, map or extern is fatal for the object as a whole."""

    verdict: Verdict
    stage: Stage | None = None
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProgResult:
    """One entry program on one kernel. `explanation` is for people: why, and what to do, a paragraph an item."""

    name: str
    section: str = ""
    prog_type: str = ""
    verdict: Verdict = Verdict.NOT_JUDGED
    stage: Stage | None = None
    errno: int | None = None
    error: str | None = None
    expected: Expected = Expected()
    met: bool = False
    unmet: tuple[str, ...] = ()
    alone: Alone | None = None
    adaptations: tuple[dict[str, Any], ...] = ()
    attach: dict[str, Any] | None = None
    verifier: VerifierStats | None = None
    explanation: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    core_relos: tuple[Relocation, ...] = ()

    @property
    def own_adaptations(self) -> tuple[str, ...]:
        """Names of what was done for this kernel that libbpf would not have done: it would not have loaded this."""
        return tuple(dict.fromkeys(str(item.get("name")) for item in self.adaptations if item.get("libbpf") is False))


@dataclass(frozen=True, kw_only=True)
class KernelResult:
    """The kernel of a cell: `id` is identity, the rest provenance."""

    id: str
    arch: str
    release: str | None = None
    variant: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    btf_sha256: str | None = None
    config_sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class ObjectResult:
    """The object of a cell: `name` is identity."""

    name: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ExternResult:
    """A Kconfig value, kernel symbol or kernel function the object asked for."""

    name: str
    kind: str
    value: int | str | None = None
    weak: bool = False
    outcome: str = "resolved"
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One cell. It starts as `crashed` (see `begin`) and has to earn better from `harness.judge`."""

    id: str
    kernel: KernelResult
    object: ObjectResult
    status: CellStatus = CellStatus.CRASHED
    reason: str | None = None
    attempts: int = 1
    console_tail: str | None = None
    substituted: str | None = None
    disagreements: tuple[dict[str, Any], ...] = ()
    comparison: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    settings: dict[str, str] = field(default_factory=dict)
    loader: str = "python"
    loader_version: str | None = None
    accelerator: str | None = None
    cpus: int | None = None
    qemu: str | None = None
    start: Start | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    rerun: str = ""
    externs: tuple[ExternResult, ...] = ()
    object_error: dict[str, Any] | None = None
    skipped_core_relos: int = 0
    notes: tuple[str, ...] = ()
    progs: tuple[ProgResult, ...] = ()
    functional: tuple[FunctionalResult, ...] = ()

    @classmethod
    def begin(cls, cell: CellId, kernel: KernelResult, object_: ObjectResult, **provenance: Any) -> CellResult:
        """The result of a cell of which nothing is known yet: crashed, until facts say otherwise."""
        rerun = provenance.pop("rerun", f"corematrix run {object_.path} --only '{cell}'")
        return cls(
            id=str(cell),
            kernel=kernel,
            object=object_,
            settings=dict(cell.settings),
            loader=cell.loader,
            rerun=rerun,
            **provenance,
        )


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """A whole run. `notes` are about the run: rules no longer needed, rules that expired. `shard` says which part of a
    run this is (`executor.shard.Cut.record`), None for a whole one; `cover` which kernels were not booted, and who
    stands for them (`run --cover`). `config_suspects` are for people to look into.
    """

    schema: int = SCHEMA
    tool: dict[str, Any]
    host: dict[str, Any]
    started: str
    seconds: float
    notes: tuple[str, ...] = ()
    shard: dict[str, Any] | None = None
    cover: Cover | None = None
    config_suspects: tuple[ConfigSuspicion, ...] = ()
    cells: tuple[CellResult, ...]

    def count(self) -> dict[CellStatus, int]:
        """How many cells have each status, every status named."""
        counts = dict.fromkeys(CellStatus, 0)
        for cell in self.cells:
            counts[cell.status] += 1
        return counts


def run_from_json(data: Any) -> RunResult:
    """The run that `to_json` wrote; UsageError when it is not one, or of another schema, naming the place."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        message = f"not a corematrix run of schema {SCHEMA}: its schema is {schema!r}"
        raise UsageError(message, remedy="give the file written by `corematrix run --json`, by the same release")
    return value_from_json(RunResult, data, "run")


def cell_from_json(data: Any) -> CellResult:
    """The cell that `to_json` wrote; UsageError, naming the place, when it is none."""
    return value_from_json(CellResult, data, "cell")


def relocations(cell: CellResult) -> Iterator[tuple[ProgResult, Relocation]]:
    """Every relocation of a cell with the entry program it stands in."""
    return ((prog, relo) for prog in cell.progs for relo in prog.core_relos)
