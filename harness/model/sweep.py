"""What a sweep found: objects against many BTFs, put together into classes and ranges. Frozen values; `to_json` of
`harness.model.result` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness.errors import UsageError
from harness.model.plain_json import value_from_json
from harness.model.result import Source
from harness.model.verdict import Evidence, Liveness, Outcome

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class SweptBtf:
    """One BTF. `release` as `uname -r` says it, `version` the distribution's, `error` why it could not be read (then
    nothing was judged against it), `model` the verifier rules its markers tell (harness.predict.models).
    """

    id: str
    distro: str
    version: str
    arch: str | None
    release: str
    path: str
    types: int | None = None
    error: str | None = None
    model: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Range:
    """BTFs of one distribution and architecture that lie side by side in the order of releases. `text` says which:
    `all 12`, `before 5.5.0-3`, `from 5.5.0-3`, `4.18.0-80 to 4.18.0-147`, `4.18.0-80`.
    """

    distro: str
    arch: str | None
    text: str
    btfs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Class:
    """BTFs on which the same became of one thing. `values` are the new values of a relocation, at most a few."""

    outcome: str
    count: int
    ranges: tuple[Range, ...]
    reason: str | None = None
    liveness: Liveness | None = None
    evidence: Evidence | None = None
    values: tuple[int, ...] = ()
    distinct_values: int = 0


@dataclass(frozen=True, kw_only=True)
class SweptRelocation:
    """One relocation of an object; `index` in .BTF.ext record order."""

    index: int
    prog: str
    section: str
    insn: int
    kind: str
    field: str
    local_spec: str | None
    source: Source | None
    classes: tuple[Class, ...]

    @property
    def is_plain(self) -> bool:
        """Resolved everywhere, to whatever value: nothing to say."""
        return all(one.outcome == Outcome.RESOLVED and one.values == () for one in self.classes)


@dataclass(frozen=True, kw_only=True)
class SweptProgram:
    """One entry program: what would become of it. Class outcomes: `loads`, `refused`, `unknown`."""

    name: str
    section: str
    classes: tuple[Class, ...]


@dataclass(frozen=True, kw_only=True)
class SweptObject:
    """One object against all BTFs that are for its architecture; `other_arch` counts those that are not."""

    name: str
    path: str
    sha256: str
    arch: str | None
    btfs: int
    other_arch: int
    progs: tuple[SweptProgram, ...] = ()
    core_relos: tuple[SweptRelocation, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """A whole sweep."""

    schema: int = SCHEMA
    type: str = "sweep"
    tool: dict[str, str]
    started: str
    seconds: float
    indexed: int
    btfs: tuple[SweptBtf, ...]
    objects: tuple[SweptObject, ...]
    notes: tuple[str, ...] = field(default=())


def sweep_from_json(data: Any) -> SweepResult:
    """The sweep that `to_json` wrote; UsageError when it is not one, or of another schema, naming the place."""
    schema = data.get("schema") if isinstance(data, dict) and data.get("type") == "sweep" else None
    if schema != SCHEMA:
        message = f"not a corematrix sweep of schema {SCHEMA}: its schema is {schema!r}"
        raise UsageError(message, remedy="give the file written by `corematrix sweep --json`, by the same release")
    return value_from_json(SweepResult, data, "sweep")
