"""Which kernels a run booted for the others, and what that leaves unproven: the run's `cover` (`run --cover`). Frozen
values; `to_json` of `harness.model.result` writes them.
"""

from __future__ import annotations

from dataclasses import dataclass

# Words of remarks by which reports put several into one line.
UNTOLD = "this BTF does not tell"  # the end of one where BTF has no say
NOT_KNOWN = "not known"  # a value of an extern
ANOTHER_RELEASE = "limits and checks are those of another release; shown are those of "


@dataclass(frozen=True, kw_only=True)
class Remark:
    """Something about a kernel that was not booted. `what`: architecture, verifier, helpers, attach, kfunc, config,
    or proof (what the booted kernel itself left open); `prog` None: about all programs.
    """

    what: str
    text: str
    prog: str | None = None


@dataclass(frozen=True, kw_only=True)
class Share:
    """A booted kernel that stands for another, and for which programs: there, all that was foretold is the same."""

    kernel: str
    progs: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class StandIn:
    """One object on one kernel that was not booted. `by`: usually one kernel for all programs; `uncovered`: programs
    whose outcome there no booted kernel shows. `checked` was held against BTF and is the same, `unproven` was not or
    is not. `bootable` False: of this kernel only the BTF is at hand.
    """

    kernel: str
    distro: str
    arch: str
    release: str
    object: str
    by: tuple[Share, ...]
    uncovered: tuple[str, ...] = ()
    unproven: tuple[Remark, ...] = ()
    checked: tuple[Remark, ...] = ()
    bootable: bool = True


@dataclass(frozen=True, kw_only=True)
class Cover:
    """`kernels` were looked at; `booted` show all the distinct `outcomes` of programs that any kernel shows that can be
    booted; `unshown` more are foretold of kernels of which only BTF is at hand.

    `minimal`: no smaller set does; else at least `at_least` kernels are needed. `always`: kernels booted because
    nothing could be foretold of them, with the reason in `notes`.
    """

    kernels: int
    outcomes: int
    booted: tuple[str, ...]
    minimal: bool
    at_least: int
    unshown: int = 0
    always: tuple[str, ...] = ()
    stand_ins: tuple[StandIn, ...] = ()
    notes: tuple[str, ...] = ()
