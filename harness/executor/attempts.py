"""How one cell is asked until it answers or is given up: retries, and the culprit program of a dead guest run alone.

Policy only: `ask` hides sessions, boots and machines, so all of it is tested without a guest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from harness.errors import GuestLostError

# A kernel that dies of more programs than this is not being tested any more, only rebooted.
MOST_CULPRITS = 4


class Ask(Protocol):
    """One request to a guest, booted anew if need be. GuestLostError when it does not answer."""

    def __call__(
        self,
        *,
        progs: tuple[str, ...] | None,
        skip_progs: tuple[str, ...],
        on_progress: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        """Returns facts (docs/facts.md)."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a cell. `crashed_progs` maps a program that kills its kernel even when alone to the console's tail.

    `facts` is None when no guest ever answered for the object; then `lost` says how the last one went, and
    `last_prog` at what.
    """

    facts: dict[str, Any] | None
    attempts: int
    crashed_progs: Mapping[str, str] = field(default_factory=dict)
    lost: GuestLostError | None = None
    last_prog: str | None = None


def ask_until_answered(ask: Ask, *, retries: int, on_progress: Callable[[dict[str, Any]], None]) -> Answer:
    """Ask for the whole object; a guest lost at a program gets that program tried alone.

    Lost again when alone: the program is a culprit, and the others are asked for without it. Otherwise the whole is
    tried again, `retries` times.
    """
    watch = _Watch(on_progress)
    culprits: dict[str, str] = {}
    attempts = 0
    while True:
        attempts += 1
        lost = _lost_or(lambda: ask(progs=None, skip_progs=tuple(culprits), on_progress=watch))
        if isinstance(lost, dict):
            return Answer(facts=lost, attempts=attempts, crashed_progs=culprits)
        suspect, watch.prog = watch.prog, None
        # One that is named again though it was left out is no culprit found: a guest may name whom it likes, for ever.
        if suspect and suspect not in culprits and lost.status == "crashed" and len(culprits) < MOST_CULPRITS:
            attempts += 1
            alone = _lost_or(lambda prog=suspect: ask(progs=(prog,), skip_progs=(), on_progress=watch))  # type: ignore[misc]
            if isinstance(alone, GuestLostError) and alone.status == "crashed":
                culprits[suspect] = alone.console_tail
                continue
        if retries == 0:
            return Answer(facts=None, attempts=attempts, crashed_progs=culprits, lost=lost, last_prog=suspect)
        retries -= 1


class _Watch:
    """Passes progress on and remembers the last program named."""

    def __init__(self, on_progress: Callable[[dict[str, Any]], None]) -> None:
        self.prog: str | None = None
        self._on_progress = on_progress

    def __call__(self, message: dict[str, Any]) -> None:
        prog = message.get("prog")
        self.prog = prog if isinstance(prog, str) and prog else self.prog
        self._on_progress(message)


def _lost_or(ask: Callable[[], dict[str, Any]]) -> dict[str, Any] | GuestLostError:
    try:
        return ask()
    except GuestLostError as lost:
        return lost
