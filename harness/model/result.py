"""What a run found, as contract.md's `run --json` spells it: frozen values, and their way to JSON and back.

Names are those of the JSON; what contract.md does not name has been added (`index`, `final_insn`, `liveness_reason`,
`alone`, `notes`, ...), which schema 1 allows. `to_json` gives plain dicts and lists; `run_from_json` is its inverse
and ignores keys it does not know, so that a newer run of the same schema can still be read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from harness.errors import UsageError
from harness.model.cell import CellId
from harness.model.cover import Cover
from harness.model.functional import FunctionalResult
from harness.model.suspicion import ConfigSuspicion
from harness.model.verdict import CellStatus, Evidence, Liveness, Outcome, Stage, Start, Verdict

SCHEMA = 1
_Kind = TypeVar("_Kind")

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

    @property
    def is_clean(self) -> bool:
        """Loaded as expected and nothing to say about it."""
        return self.met and self.verdict is Verdict.LOADED and not self.notes


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


_AS_THEY_ARE = frozenset({str, int, float, bool, NoneType})


def to_json(value: Any) -> Any:
    """A result as plain dicts, lists, strings, numbers: what `json.dumps` takes. Key order is the dataclass's."""
    if type(value) in _AS_THEY_ARE:
        return value
    if isinstance(value, (tuple, list)):
        return [to_json(item) for item in value]
    if is_dataclass(value) and not isinstance(value, type):
        return {name: to_json(getattr(value, name)) for name in _names(type(value))}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    return str(value) if isinstance(value, StrEnum) else value


@cache
def _names(kind: type[Any]) -> tuple[str, ...]:
    return tuple(item.name for item in fields(kind))


def run_from_json(data: Any) -> RunResult:
    """The run that `to_json` wrote; UsageError when it is not one, or of another schema, naming the place."""
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        message = f"not a corematrix run of schema {SCHEMA}: its schema is {schema!r}"
        raise UsageError(message, remedy="give the file written by `corematrix run --json`, by the same release")
    run: RunResult = _decoder(RunResult)(data, "run")
    return run


def cell_from_json(data: Any) -> CellResult:
    """The cell that `to_json` wrote; UsageError, naming the place, when it is none."""
    cell: CellResult = _decoder(CellResult)(data, "cell")
    return cell


def value_from_json(kind: type[_Kind], data: Any, where: str) -> _Kind:
    """A value of one of the dataclasses that `to_json` writes; UsageError, naming the place, when it is none."""
    hint: Any = kind
    value: _Kind = _decoder(hint)(data, where)
    return value


_Decode = Callable[[Any, str], Any]


@cache
def _decoder(hint: Any) -> _Decode:
    """How to read JSON into a value annotated `hint`; built once each, since a run holds many thousands."""
    if is_dataclass(hint):
        return _dataclass_decoder(hint)
    if get_origin(hint) is tuple:
        return _tuple_decoder(_decoder(get_args(hint)[0]))
    if isinstance(hint, UnionType):
        return _union_decoder(hint)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return _enum_decoder(hint)
    return _plain_decoder(get_origin(hint) or hint)


def _dataclass_decoder(hint: Any) -> _Decode:
    hints = get_type_hints(hint)
    plan = [
        (item.name, _decoder(hints[item.name]), item.default is MISSING and item.default_factory is MISSING)
        for item in fields(hint)
    ]

    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, dict):
            raise _mismatch(where, "an object", data)
        missing = [name for name, _, required in plan if required and name not in data]
        if missing:
            message = f"{where}: no {missing[0]!r}"
            raise UsageError(message)
        return hint(**{name: read(data[name], f"{where}.{name}") for name, read, _ in plan if name in data})

    return decode


def _tuple_decoder(item: _Decode) -> _Decode:
    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, list):
            raise _mismatch(where, "a list", data)
        return tuple(item(value, f"{where}[{number}]") for number, value in enumerate(data))

    return decode


def _union_decoder(hint: UnionType) -> _Decode:
    members = [member for member in get_args(hint) if member is not NoneType]
    if len(members) > 1:  # only ever plain types: int | str | None
        return _plain_decoder(*members, NoneType)
    inner = _decoder(members[0])
    return lambda data, where: None if data is None else inner(data, where)


def _enum_decoder(hint: type[StrEnum]) -> _Decode:
    members = {str(member): member for member in hint}

    def decode(data: Any, where: str) -> Any:
        if not isinstance(data, str) or data not in members:
            raise _mismatch(where, f"one of {', '.join(members)}", data)
        return members[data]

    return decode


def _plain_decoder(*types: Any) -> _Decode:
    accepted = (*types, int) if float in types else types

    def decode(data: Any, where: str) -> Any:
        if Any not in accepted and not isinstance(data, accepted):
            raise _mismatch(where, " or ".join(kind.__name__ for kind in types), data)
        return data

    return decode


def _mismatch(where: str, wanted: str, data: Any) -> UsageError:
    return UsageError(f"{where}: {wanted} wanted, found {type(data).__name__} {str(data)[:40]!r}")


def relocations(cell: CellResult) -> Iterator[tuple[ProgResult, Relocation]]:
    """Every relocation of a cell with the entry program it stands in."""
    return ((prog, relo) for prog in cell.progs for relo in prog.core_relos)
