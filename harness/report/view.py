"""A run turned by ninety degrees: by program over kernels, as people read it, rather than by cell.

Relocations of one program on different kernels are the same when docs/contract.md's key is the same: program,
containing function, source line text, kind, local field path, ordinal among equals. So an object built anew for each
architecture still lines up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from harness.model.result import CellResult, ProgResult, Relocation, RunResult
from harness.model.suspicion import ConfigSuspicion
from harness.model.verdict import CellStatus, Liveness, Outcome, Verdict

# Cells in which nothing was found out about the object.
TROUBLE = frozenset({CellStatus.TIMEOUT, CellStatus.CRASHED, CellStatus.ERROR})


class RelocationKey(NamedTuple):
    """What makes two relocations the same one (docs/contract.md); the entry program is known from where it is kept."""

    function: str
    source: str
    kind: str
    field: str
    ordinal: int


def keyed(relocations: Iterable[Relocation]) -> dict[RelocationKey, Relocation]:
    """One program's relocations by key, in record order."""
    found: dict[RelocationKey, Relocation] = {}
    for relo in relocations:
        key = RelocationKey(relo.prog, relo.source.text if relo.source else "", relo.kind, relo.field, 0)
        while key in found:
            key = key._replace(ordinal=key.ordinal + 1)
        found[key] = relo
    return found


def drift(old: Relocation, new: Relocation) -> Iterator[tuple[str, object, object]]:
    """(what, was, is) of a field that is found on both sides and is not what it was: its size, signedness, kind.

    A struct may grow: whoever reads one of its members is not concerned, and whoever asks for its size wants to know.
    """
    for name in ("size", "signed", "kind"):
        was, now = (old.target or {}).get(name), (new.target or {}).get(name)
        grown = name == "size" and {(old.target or {}).get("kind"), (new.target or {}).get("kind")} <= _COMPOSITES
        if was is not None and now is not None and was != now and not grown:
            yield name, was, now


_COMPOSITES = frozenset({"struct", "union"})


class Subject(NamedTuple):
    """What is tested, kernel apart: an object with its settings and loader."""

    object: str
    settings: tuple[tuple[str, str], ...]
    loader: str

    @classmethod
    def of(cls, cell: CellResult) -> Subject:
        """The subject of a cell."""
        return cls(cell.object.name, tuple(sorted(cell.settings.items())), cell.loader)

    def label(self, *, with_loader: bool) -> str:
        """`fancy_helper[use_fancy_helper=1]`, and `@libbpf` when a run holds more than one loader."""
        settings = ",".join(f"{name}={value}" for name, value in self.settings)
        return f"{self.object}{f'[{settings}]' if settings else ''}{f'@{self.loader}' if with_loader else ''}"


@dataclass(frozen=True, kw_only=True)
class Program:
    """One entry program of one subject on every kernel that says something about it, in the run's order."""

    subject: Subject
    name: str
    results: dict[str, ProgResult] = field(default_factory=dict)
    cells: dict[str, CellResult] = field(default_factory=dict)
    suspicions: list[ConfigSuspicion] = field(default_factory=list)

    @cached_property
    def relocations(self) -> dict[RelocationKey, dict[str, Relocation]]:
        """Key -> kernel -> relocation, in the record order of the first kernel that has it."""
        found: dict[RelocationKey, dict[str, Relocation]] = {}
        for kernel, prog in self.results.items():
            for key, relo in keyed(prog.core_relos).items():
                found.setdefault(key, {})[kernel] = relo
        return found

    @cached_property
    def judged(self) -> dict[str, ProgResult]:
        """Those kernels on which there is a verdict."""
        return {
            kernel: prog
            for kernel, prog in self.results.items()
            if prog.verdict in {Verdict.LOADED, Verdict.REJECTED, Verdict.CRASHED}
        }

    @property
    def needs_words(self) -> bool:
        """Is there more to say than `loaded` on some kernel?"""
        return any(not prog.met or prog.verdict is not Verdict.LOADED or prog.notes for prog in self.judged.values())

    @property
    def is_broken(self) -> bool:
        """Is something not as expected on some kernel?"""
        return any(not prog.met for prog in self.judged.values())

    @property
    def has_guards(self) -> bool:
        """Does any existence check, or any poison that was eliminated, deserve to be shown?"""
        return any(
            relo.is_guard or relo.outcome is Outcome.POISONED
            for prog in self.judged.values()
            for relo in prog.core_relos
        )


class View:
    """A run's kernels (columns) and programs (rows), both in the run's order."""

    def __init__(self, run: RunResult) -> None:
        self.run = run
        self.kernels: list[str] = list(dict.fromkeys(cell.kernel.id for cell in run.cells))
        self.cells: dict[tuple[Subject, str], CellResult] = {
            (Subject.of(cell), cell.kernel.id): cell for cell in run.cells
        }
        self.subjects: list[Subject] = list(dict.fromkeys(Subject.of(cell) for cell in run.cells))
        self.many_loaders = len({cell.loader for cell in run.cells}) > 1
        self._programs: dict[Subject, dict[str, Program]] = {subject: {} for subject in self.subjects}
        for cell in run.cells:
            self._add(cell)
        self._suspect(run.config_suspects)

    def _suspect(self, suspicions: Iterable[ConfigSuspicion]) -> None:
        programs = {f"{self.label(program.subject)}/{program.name}": program for program in self.all_programs()}
        for suspicion in suspicions:
            for label in suspicion.progs:
                if label in programs:
                    programs[label].suspicions.append(suspicion)

    def _add(self, cell: CellResult) -> None:
        subject = Subject.of(cell)
        for prog in cell.progs:
            program = self._programs[subject].setdefault(prog.name, Program(subject=subject, name=prog.name))
            program.results[cell.kernel.id] = prog
            program.cells[cell.kernel.id] = cell

    def programs(self, subject: Subject) -> list[Program]:
        """A subject's programs, in the object's order."""
        return list(self._programs[subject].values())

    def all_programs(self) -> Iterator[Program]:
        """Every subject's programs."""
        return (program for subject in self.subjects for program in self.programs(subject))

    @cached_property
    def attached(self) -> bool:
        """Did this run try to attach anything (`run --attach`)?"""
        return any(prog.attach for cell in self.run.cells for prog in cell.progs)

    def label(self, subject: Subject) -> str:
        """How a subject is called in this run."""
        return subject.label(with_loader=self.many_loaders)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One field of the kernels x programs table: its `word`, and whether that is `good`, `bad`, `trouble` or
    `quiet`.
    """

    word: str
    mood: str


MARKS = {
    "ok": Mark(word="ok", mood="good"),
    "guard": Mark(word="guard", mood="good"),
    "ok*": Mark(word="ok*", mood="good"),
    "guard*": Mark(word="guard*", mood="good"),
    "reject": Mark(word="reject", mood="quiet"),
    "crash": Mark(word="crash", mood="quiet"),
    "REJECT": Mark(word="REJECT", mood="bad"),
    "CRASH": Mark(word="CRASH", mood="bad"),
    "LOADS": Mark(word="LOADS", mood="bad"),
    "UNMET": Mark(word="UNMET", mood="bad"),
    "n/a": Mark(word="n/a", mood="quiet"),
    "skip": Mark(word="skip", mood="quiet"),
    "lost": Mark(word="lost", mood="trouble"),
    "timeout": Mark(word="timeout", mood="trouble"),
    "error": Mark(word="error", mood="trouble"),
    "fail": Mark(word="FAILED", mood="bad"),
    "": Mark(word="", mood="quiet"),
}
LEGEND = {
    "ok": "loaded",
    "guard": "loaded, poisoned code eliminated",
    "ok*": "loaded, by an adaptation that libbpf does not make",
    "guard*": "loaded, by an adaptation that libbpf does not make, poisoned code eliminated",
    "reject": "rejected, as expected",
    "crash": "crashed the kernel, as expected",
    "REJECT": "rejected",
    "CRASH": "crashed the kernel",
    "LOADS": "loaded, though that is not expected",
    "UNMET": "a relocation is not as expected",
    "n/a": "not applicable",
    "skip": "not loaded by itself",
    "lost": "the guest was lost: not judged",
    "timeout": "the guest did not answer in time",
    "error": "our own or the host's trouble",
    "FAILED": "the object was refused as a whole",
}
SHORT = {"reject": "rej", "REJECT": "REJ", "timeout": "late", "FAILED": "FAIL"}
# The same in one letter, for tables with many kernels: what is as it should be small, what is not in capitals.
LETTERS = {
    "ok": "·",
    "guard": "g",
    "ok*": "*",
    "guard*": "+",
    "reject": "r",
    "crash": "c",
    "REJECT": "R",
    "CRASH": "C",
    "LOADS": "L",
    "UNMET": "U",
    "n/a": "-",
    "skip": "s",
    "lost": "?",
    "timeout": "T",
    "error": "E",
    "FAILED": "F",
    "": " ",
}
# The column beside the verdict, where a run attached programs.
ATTACH = {
    "attached": Mark(word="yes", mood="good"),
    "stand_in": Mark(word="alike", mood="good"),
    "refused": Mark(word="NO", mood="bad"),
    "not_attempted": Mark(word="untried", mood="quiet"),
}
ATTACH_LEGEND = {
    "yes": "attached and detached again",
    "alike": "the same, on a stand-in: what the section names is not there",
    "NO": "cannot be attached",
    "untried": "takes something only its user has",
}
ATTACH_SHORT = {"untried": "-"}
ATTACH_LETTERS = {"yes": "y", "alike": "~", "NO": "N", "untried": "o"}
_UNEXPECTED = {Verdict.REJECTED: "REJECT", Verdict.CRASHED: "CRASH", Verdict.LOADED: "LOADS"}
_PLAIN = {
    Verdict.REJECTED: "reject",
    Verdict.CRASHED: "crash",
    Verdict.LOADED: "ok",
    Verdict.NOT_APPLICABLE: "n/a",
    Verdict.SKIPPED: "skip",
    Verdict.NOT_JUDGED: "lost",
}
_BY_STATUS = {
    CellStatus.TIMEOUT: "timeout",
    CellStatus.CRASHED: "lost",
    CellStatus.ERROR: "error",
    CellStatus.NOT_APPLICABLE: "n/a",
    CellStatus.SKIPPED: "skip",
    CellStatus.FAILED: "fail",
}


def mark(cell: CellResult | None, prog: ProgResult | None) -> Mark:
    """What the table says about one program on one kernel. No result is never shown as a pass: the field stays
    empty.
    """
    if cell is None:
        return MARKS[""]
    if prog is None or cell.status is CellStatus.ERROR:
        return MARKS[_BY_STATUS.get(cell.status, "")]
    if prog.verdict not in _UNEXPECTED:
        return MARKS[_PLAIN[prog.verdict]]
    if not prog.met:
        wrong_relocation = prog.expected.verdict in {"any", prog.verdict}
        return MARKS["UNMET" if wrong_relocation else _UNEXPECTED[prog.verdict]]
    star = "*" if prog.own_adaptations and prog.verdict is Verdict.LOADED else ""
    if prog.verdict is Verdict.LOADED and any(is_eliminated_poison(relo) for relo in prog.core_relos):
        return MARKS[f"guard{star}"]
    return MARKS[f"{_PLAIN[prog.verdict]}{star}"]


def attach_mark(prog: ProgResult | None) -> Mark:
    """What the column beside the verdict says: whether it was attached. Empty where that was not tried."""
    found = prog.attach if prog is not None else None
    if found is None:
        return MARKS[""]
    status = "stand_in" if found.get("stand_in") else str(found.get("status"))
    return ATTACH.get(status, Mark(word=status, mood="trouble"))


def is_eliminated_poison(relo: Relocation) -> bool:
    """The good case of old-kernel support: what could not be relocated is dead code here."""
    return relo.outcome is Outcome.POISONED and relo.liveness is Liveness.ELIMINATED
