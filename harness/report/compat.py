"""What a person asks who wants to know whether a program runs on some kernel: for each program the kernels it works on,
what is guarded there, what breaks and why, as ranges of releases by distribution. Data only; `compat_format` writes it.

From a run comes what was proven, from its `cover` what a booted kernel stands for, from a sweep what is foretold. Where
more than one speaks of a kernel, the proof counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from harness.judge.explain import errno_text, why
from harness.model.release import natural, range_text, runs
from harness.model.result import CellResult, ProgResult, RunResult
from harness.model.sweep import Class, SweepResult, SweptObject
from harness.model.verdict import CellStatus, Liveness, Outcome, Verdict
from harness.report import loaders

PROVEN, COVERED, FORETOLD = "booted", "another booted kernel stands for it", "foretold"
WORKS, GUARDED, BREAKS, UNKNOWN, NOT_MEANT = "works", "works, guarded", "breaks", "not known", "not meant for it"


class Place(NamedTuple):
    """A kernel as people name it; `id` tells two of one release apart."""

    distro: str
    arch: str
    release: str
    id: str

    @property
    def order(self) -> tuple[object, ...]:
        return (self.distro, self.arch, natural(self.release), self.id)


class Standing(NamedTuple):
    """How a program fares on a kernel. `without`: fields and checks it does without there; `shown` who says so."""

    word: str
    why: str
    without: tuple[str, ...]
    shown: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """Kernels of one distribution and architecture that say the same of a program. `shown` counts who says so."""

    distro: str
    arch: str
    ranges: tuple[str, ...]
    word: str
    why: str
    without: tuple[str, ...]
    shown: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class ProgramPage:
    """One program. `brief` by (distribution, architecture): how it fares there, (word, ranges) for each way."""

    object: str
    name: str
    section: str
    rows: tuple[Row, ...]
    brief: Mapping[tuple[str, str], tuple[tuple[str, str], ...]]


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole of it; `places` are the columns of the overview, `kernels` counts by who speaks of them."""

    programs: tuple[ProgramPage, ...]
    places: tuple[tuple[str, str], ...]
    kernels: Mapping[str, int]
    made: tuple[str, ...]


_Standings = dict[tuple[str, str], dict[Place, Standing]]


def page(run: RunResult | None, sweep: SweepResult | None) -> Page:
    """The page of a run, a sweep, or both of the same objects."""
    standings: _Standings = {}
    sections: dict[tuple[str, str], str] = {}
    for source in (_swept(sweep) if sweep else (), _covered(run) if run else (), _proven(run) if run else ()):
        for key, section, place, standing in source:
            known = standings.setdefault(key, {})
            if standing.word != UNKNOWN or place not in known:
                known[place] = standing
            sections[key] = section or sections.get(key, "")
    programs = tuple(_program(key, sections[key], found) for key, found in standings.items())
    places = sorted({(place.distro, place.arch) for found in standings.values() for place in found})
    speakers: dict[Place, set[str]] = {}
    for found in standings.values():
        for place, standing in found.items():
            if standing.word == NOT_MEANT:
                continue
            speakers.setdefault(place, set()).add(standing.shown)
    best = [next(word for word in (PROVEN, COVERED, FORETOLD) if word in said) for said in speakers.values()]
    made = tuple(dict.fromkeys(  # a sweep may stand for a run, too
        f"{one.tool.get('name', '')} {one.tool.get('version', '')}, {one.started}" for one in (run, sweep) if one
    ))  # fmt: skip
    return Page(
        programs=programs, places=tuple(places), made=made,
        kernels={word: best.count(word) for word in (PROVEN, COVERED, FORETOLD) if word in best},
    )  # fmt: skip


_Said = Iterator[tuple[tuple[str, str], str, Place, Standing]]


def _program(key: tuple[str, str], section: str, found: Mapping[Place, Standing]) -> ProgramPage:
    rows: list[Row] = []
    brief: dict[tuple[str, str], tuple[tuple[str, str], ...]] = {}
    ordered = sorted(found, key=lambda place: place.order)
    for where, group in groupby(ordered, key=lambda place: (place.distro, place.arch)):
        places = list(group)
        brief[where] = _brief(places, found)
        rows += _rows(where, places, found)
    return ProgramPage(object=key[0], name=key[1], section=section, rows=tuple(rows), brief=brief)


def _rows(where: tuple[str, str], places: list[Place], found: Mapping[Place, Standing]) -> Iterator[Row]:
    releases = [place.release for place in places]
    for said in dict.fromkeys(found[place][:3] for place in places):
        flags = [found[place][:3] == said for place in places]
        shown = [found[place].shown for place, flag in zip(places, flags, strict=True) if flag]
        yield Row(
            distro=where[0], arch=where[1], word=said[0], why=said[1], without=said[2],
            ranges=tuple(range_text(start, end, releases) for start, end in runs(flags)),
            shown={word: shown.count(word) for word in dict.fromkeys(shown)},
        )  # fmt: skip


def _brief(places: list[Place], found: Mapping[Place, Standing]) -> tuple[tuple[str, str], ...]:
    """(word, ranges) of each way to fare; where only some places are guarded, that is left to the rows."""
    words = [found[place].word for place in places]
    if WORKS in words:
        words = [WORKS if word == GUARDED else word for word in words]
    releases = [place.release for place in places]
    return tuple(
        (word, "; ".join(range_text(start, end, releases) for start, end in runs([word == own for own in words])))
        for word in dict.fromkeys(words)
    )


# -- from a run


def _place(cell: CellResult, releases: Mapping[str, str]) -> Place:
    kernel = cell.kernel
    return Place(kernel.id.partition("-")[0], kernel.arch, releases.get(kernel.id, kernel.id), kernel.id)


def _subject(cell: CellResult) -> str:
    settings = ",".join(f"{key}={value}" for key, value in cell.settings.items())
    return f"{cell.object.name}[{settings}]" if settings else cell.object.name


def _proven(run: RunResult) -> _Said:
    """What each cell showed; of two loaders our own, which comes last. Where they disagree nothing is known."""
    rows = [cell for cell in run.cells if cell.disagreements]
    apart = {(_subject(cell), cell.kernel.id): "; ".join(loaders.lines(cell)) for cell in rows}
    # A cell that is not applicable was never booted for, and knows no release.
    releases = {cell.kernel.id: cell.kernel.release for cell in run.cells if cell.kernel.release}
    for cell in sorted(run.cells, key=lambda cell: cell.loader == "python"):
        names = {prog.name: prog for prog in cell.progs}
        if cell.status is CellStatus.NOT_APPLICABLE:
            for name in {prog.name for other in run.cells if other.object.name == cell.object.name
                         for prog in other.progs}:  # fmt: skip
                standing = Standing(NOT_MEANT, cell.reason or "", (), PROVEN)
                yield (_subject(cell), name), "", _place(cell, releases), standing
        for name, prog in names.items():
            said = apart.get((_subject(cell), cell.kernel.id))
            standing = Standing(UNKNOWN, said, (), PROVEN) if said else _verdict(prog)
            yield (_subject(cell), name), prog.section, _place(cell, releases), standing


def _verdict(prog: ProgResult) -> Standing:
    if prog.verdict is Verdict.LOADED:
        missing = tuple(dict.fromkeys(
            relo.field for relo in prog.core_relos
            if (relo.outcome is Outcome.POISONED and relo.liveness is Liveness.ELIMINATED)
            or (relo.is_guard and relo.new_value == 0)
        ))  # fmt: skip
        return Standing(GUARDED if missing else WORKS, "", missing, PROVEN)
    if prog.verdict is Verdict.NOT_APPLICABLE:
        return Standing(NOT_MEANT, prog.error or "", (), PROVEN)
    if prog.verdict in (Verdict.REJECTED, Verdict.CRASHED):
        broken = [relo for relo in prog.core_relos if relo.is_broken]
        reasons = dict.fromkeys(f"{relo.field}: {why(relo) or relo.outcome}" for relo in broken)
        said = "; ".join(reasons) or prog.error or (errno_text(prog.errno) if prog.errno else str(prog.verdict))
        return Standing(BREAKS, said, (), PROVEN)
    return Standing(UNKNOWN, prog.error or str(prog.verdict), (), PROVEN)


def _covered(run: RunResult) -> _Said:
    """Kernels that were not booted: as on the booted kernel that stands for them, program by program."""
    if run.cover is None:
        return
    cells = {(cell.kernel.id, _subject(cell)): cell for cell in sorted(run.cells, key=lambda c: c.loader == "python")}
    for one in run.cover.stand_ins:
        place = Place(one.distro, one.arch, one.release, one.kernel)
        for share in one.by:
            cell = cells.get((share.kernel, one.object))
            for prog in cell.progs if cell is not None else ():
                if prog.name in share.progs:
                    said = _verdict(prog)._replace(shown=COVERED)
                    yield (one.object, prog.name), prog.section, place, said


# -- from a sweep

_WORDS = {"loads": WORKS, "refused": BREAKS}


def _swept(sweep: SweepResult) -> _Said:
    places = {btf.id: Place(btf.distro, btf.arch or "?", btf.release, btf.id) for btf in sweep.btfs}
    for swept in sweep.objects:
        without = _done_without(swept)
        for prog in swept.progs:
            for one in prog.classes:
                for id_ in _btfs(one):
                    missing = without.get((prog.name, id_), ()) if one.outcome == "loads" else ()
                    word = GUARDED if missing else _WORDS.get(one.outcome, UNKNOWN)
                    said = Standing(word, one.reason or "", missing, FORETOLD)
                    yield (swept.name, prog.name), prog.section, places[id_], said


def _btfs(one: Class) -> Iterable[str]:
    return (id_ for found in one.ranges for id_ in found.btfs)


def _done_without(swept: SweptObject) -> dict[tuple[str, str], tuple[str, ...]]:
    """(program, BTF) -> fields that are not there and not needed; of a subprogram's in every program."""
    entries = [prog.name for prog in swept.progs]
    found: dict[tuple[str, str], dict[str, None]] = {}
    for relo in swept.core_relos:
        for one in relo.classes:
            gone = one.outcome == Outcome.POISONED and one.liveness is Liveness.ELIMINATED
            absent = one.outcome == Outcome.RESOLVED and one.values == (0,)
            for id_ in _btfs(one) if gone or absent else ():
                for name in [relo.prog] if relo.prog in entries else entries:
                    found.setdefault((name, id_), {})[relo.field] = None
    return {key: tuple(fields) for key, fields in found.items()}


