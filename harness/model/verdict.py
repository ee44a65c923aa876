"""The words of docs/contract.md as enums: statuses, verdicts, stages, outcomes, liveness, evidence."""

from __future__ import annotations

from enum import StrEnum


class CellStatus(StrEnum):
    """What became of a cell. A result starts as CRASHED and has to earn better."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    NOT_APPLICABLE = "not_applicable"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    ERROR = "error"


class Verdict(StrEnum):
    """What became of a program."""

    LOADED = "loaded"
    REJECTED = "rejected"
    CRASHED = "crashed"
    NOT_APPLICABLE = "not_applicable"
    NOT_JUDGED = "not_judged"
    SKIPPED = "skipped"


class Stage(StrEnum):
    """Where a program was refused."""

    OPEN = "open"
    EXTERNS = "externs"
    CORE = "core"
    MAPS = "maps"
    PRE_VERIFIER = "pre_verifier"
    VERIFIER = "verifier"


class Outcome(StrEnum):
    """What relocation made of an instruction."""

    RESOLVED = "resolved"
    POISONED = "poisoned"
    ERROR = "error"


class Liveness(StrEnum):
    """What the verifier made of the relocated instruction."""

    LIVE = "live"
    ELIMINATED = "eliminated"
    UNREACHED = "unreached"
    UNKNOWN = "unknown"


class Evidence(StrEnum):
    """What a liveness rests on."""

    LINE_INFO = "line_info"
    VERIFIER_LOG = "verifier_log"
    PREDICTED = "predicted"


class Start(StrEnum):
    """How the guest came to be."""

    COLD = "cold"
    RESTORED = "restored"
