"""What is walked and what comes of it: a program's final instructions with what is known before the load, and a
prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Func:
    """A function of the final sequence: where it starts, how long it is, whether it is verified on its own."""

    name: str
    start: int
    insns: int
    is_global: bool


@dataclass(frozen=True, kw_only=True)
class Program:
    """Final instructions, and what is known of them before the load.

    `code` in this machine's byte order; `data` the content of frozen maps by the name that `map_values` gives
    (instruction -> map, offset); `kfuncs` names by instruction of the call; `map_sizes` (key, value) by instruction of
    the ldimm64 that loads a map; `symbols` instructions that load a kernel symbol -> known to exist (None: not
    known); `opaque` instructions whose constant is to be taken as not known; `secrets` ranges of bytes of `data` that
    the verifier knows and we do not.
    """

    name: str
    code: bytes
    funcs: tuple[Func, ...]
    data: Mapping[str, bytes] = field(default_factory=dict)
    map_values: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    map_sizes: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    kfuncs: Mapping[int, str] = field(default_factory=dict)
    symbols: Mapping[int, bool | None] = field(default_factory=dict)
    opaque: frozenset[int] = frozenset()
    secrets: Mapping[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """`visited`: instructions the verifier reaches without passing poison; `poison`: those of them that are poisoned
    calls; `helpers` the numbers of those it calls; `complete` False when there was too much to walk, then nothing
    follows from an instruction's absence.
    """

    visited: frozenset[int]
    poison: frozenset[int]
    helpers: frozenset[int]
    complete: bool

    def reaches(self, insn: int) -> bool | None:
        """None: not known."""
        return True if insn in self.visited else False if self.complete else None
