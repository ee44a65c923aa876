"""Config switches that may be behind a difference between kernels, as they stand in a run's JSON: suspects, no more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConfigSuspect:
    """One switch: `here` is its value where something is missing, `there` where it is not (`y`, `m`, `n`, `y or m`).

    `because` says in words what speaks for it.
    """

    option: str
    here: str
    there: str
    because: str


@dataclass(frozen=True, kw_only=True)
class ConfigSuspicion:
    """What differs between kernels, and the switches that differ in the same way.

    `field` is the relocation's (`Relocation.field`), "" for a program that is refused on `lacking` and loaded on
    `having`; `progs` are those concerned, `object/program`. `separating` counts the switches that are the same on all
    of `lacking` and the other way on all of `having`; `alike`: both hold kernels of one architecture and version, and
    only those were compared. `suspects` come with the best evidence first.
    """

    field: str
    progs: tuple[str, ...]
    lacking: tuple[str, ...]
    having: tuple[str, ...]
    separating: int
    alike: bool
    suspects: tuple[ConfigSuspect, ...] = ()
