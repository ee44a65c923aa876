"""`corematrix bisect OBJECT --prog P --good K1 --bad K2`: the first kernel where P's fate changes: first among the
rows of the matrix, then among all versions the repositories hold between the two rows found.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from harness import backends, bisection, config, kernels, matrix, objects
from harness.apt.repository import AptClient, AptOptions
from harness.apt.version import version_key
from harness.commands.exec import one_kernel
from harness.errors import CorematrixError, NothingJudgedError, UsageError
from harness.executor import Plan
from harness.executor.judging import Judging
from harness.executor.local import LocalExecutor
from harness.executor.plan import host_limits
from harness.model.bpf_object import ObjectFile
from harness.model.cell import Cell
from harness.model.expectation import NONE
from harness.model.kernel import KernelSpec
from harness.model.lock import Package
from harness.model.result import CellResult
from harness.model.sources import AptSource
from harness.progress import QuietProgress
from harness.report import untrusted
from harness.rundir import RunDirectory, write_whole
from harness.store import Store


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("object", type=Path, metavar="OBJECT", help="a compiled object")
    add("--prog", required=True, metavar="P", help="the program to follow")
    add("--good", required=True, metavar="K1", help="a kernel of the matrix where it is as it should be")
    add("--bad", required=True, metavar="K2", help="one where it is not; may be the older of the two")
    add("--field", metavar="TEXT", help="follow only relocations with this in their name (task_struct.state), not the "
        "verdict")  # fmt: skip
    add("--rows-only", action="store_true", help="stop at the matrix; fetch no versions between its rows")
    add("--matrix", type=Path, metavar="FILE", help="default: ./kernels.yaml, else the built-in matrix")
    add("--output", type=Path, default=Path("corematrix-runs"), metavar="DIR", help="where the run directory is made")
    add("--json", type=Path, metavar="FILE", help="write what was found there too")


def run(options: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> int:
    """Find it; 0 when found, 3 when the two ends do not differ or cannot be judged."""
    loaded = config.load_matrix(options.matrix)
    good, bad = (one_kernel(loaded.kernels, name) for name in (options.good, options.bad))
    if good.arch is not bad.arch:
        message = f"{good.id} is {good.arch.name}, {bad.id} {bad.arch.name}: not of one history"
        raise UsageError(message, remedy="take two kernels of one architecture")
    candidate = _one_object(options.object, options.prog)

    def say(line: str) -> None:
        stderr.write(untrusted.line(line) + "\n")

    with Store.default() as store:
        started = datetime.now(UTC).replace(microsecond=0)
        judging = Judging(
            store=store, guest=loaded.guest, lock=loaded.lock, expectations={},
            directory=RunDirectory.create(options.output, started), today=started.date(),
            rerun=lambda cell: f"corematrix run {cell.object.path} --only '{cell.id}'",
        )  # fmt: skip
        history = _History(matrix=loaded, store=store, say=say)
        hunt = _Hunt(judging=judging, candidate=candidate, prog=options.prog, say=say)
        hunt.compare(good, bad, options.field)
        found = hunt.between(history.rows(good, bad))
        if not options.rows_only:
            finer = history.versions(*found)
            found = hunt.between(finer) if len(finer) > 2 else found
    _show(hunt, found, stdout, options.json)
    return 0


def _one_object(path: Path, prog: str) -> ObjectFile:
    """The object, with that program in it; before anything boots. UsageError."""
    found = objects.find_objects([path])
    if len(found) != 1:
        message = f"{path}: {len(found)} objects here, and one is followed"
        raise UsageError(message, remedy="name the file")
    objects.check_objects(found, [found[0].byteorder])
    names = objects.programs(found[0])
    if names and prog not in names:
        message = f"{path}: no program {prog!r} in this object"
        raise UsageError(message, remedy=f"it has: {', '.join(untrusted.line(name) for name in names)}")
    return found[0]


class _Hunt:
    """Asks kernels for the program's fate, each once, and says so."""

    def __init__(self, *, judging: Judging, candidate: ObjectFile, prog: str, say: Callable[[str], None]) -> None:
        self._judging = judging
        self._candidate = candidate
        self._prog = prog
        self._say = say
        self.fates: dict[str, bisection.Fate | None] = {}
        self.releases: dict[str, str | None] = {}
        self.aspects: tuple[str, ...] = ()
        self.unknown: tuple[str, ...] = ()
        self._good: bisection.Fate = {}

    def compare(self, good: KernelSpec, bad: KernelSpec, field: str | None) -> None:
        """Judge both ends and settle what is followed. NothingJudgedError when there is nothing to follow."""
        fates = [self.fate(spec) for spec in (good, bad)]
        for spec, found in zip((good, bad), fates, strict=True):
            if found is None:
                message = f"{spec.id}: {self._prog} was not judged there"
                raise NothingJudgedError(message, remedy=f"corematrix run {self._candidate.path} -k {spec.id} says why")
        assert fates[0] is not None
        assert fates[1] is not None
        self._good = fates[0]
        self.aspects = bisection.differing(fates[0], fates[1], field)
        if not self.aspects:
            message = f"{self._prog} fares on {bad.id} as on {good.id}: {fates[0][bisection.VERDICT]}"
            raise NothingJudgedError(message, remedy="take two kernels that differ")
        self._say(f"following: {', '.join(self.aspects)}")

    def between(self, row: Sequence[KernelSpec]) -> tuple[KernelSpec, KernelSpec]:
        """The neighbours between which it changes."""

        def changed(at: int) -> bool | None:
            found = self.fate(row[at])
            return None if found is None else self.shown(found) != self.shown(self._good)

        found = bisection.search(len(row), changed)
        self.unknown = tuple(row[at].id for at in found.unknown)
        return row[found.last_good], row[found.first_changed]

    def shown(self, fate: bisection.Fate) -> dict[str, str]:
        """The part of a fate that is followed."""
        return {name: fate.get(name, "absent") for name in self.aspects}

    def fate(self, spec: KernelSpec) -> bisection.Fate | None:
        """On one kernel."""
        if spec.id not in self.fates:
            self._say(f"{spec.id}: judging")
            cell = self._judge(spec)
            self.fates[spec.id] = found = bisection.fate(cell, self._prog)
            self.releases[spec.id] = cell.kernel.release
            unjudged = f"not judged ({cell.status}: {cell.reason})"
            verdict = unjudged if found is None else found[bisection.VERDICT]
            self._say(f"{spec.id} ({cell.kernel.release}): {verdict}")
        return self.fates[spec.id]

    def _judge(self, spec: KernelSpec) -> CellResult:
        (cell,) = matrix.expand([spec], [self._candidate], {self._candidate.name: NONE})
        if cell.not_applicable:
            return self._judging.not_applicable(cell)
        return self._alone(cell)

    def _alone(self, cell: Cell) -> CellResult:
        plan = Plan(cells=(cell,), limits=host_limits(1))
        with closing(LocalExecutor(self._judging.services()).run(plan, QuietProgress())) as results:
            return next(results)


@dataclass(frozen=True, kw_only=True)
class _History:
    """Kernels in the order of their versions."""

    matrix: config.Matrix
    store: Store
    say: Callable[[str], None]

    def rows(self, good: KernelSpec, bad: KernelSpec) -> list[KernelSpec]:
        """From one end to the other: the matrix's rows between them, of their architecture and variants."""
        variants = {good.variant, bad.variant}
        wanted = [
            row for row in self.matrix.kernels
            if row.arch is good.arch and row.variant in variants and row.backend not in backends.MACHINES
        ]  # fmt: skip
        keys = {row.id: key for row in (*wanted, good, bad) if (key := self._key(row)) is not None}
        for end in (good, bad):
            if end.id not in keys:
                message = f"{end.id}: its version is not known, so nothing lies between"
                raise UsageError(message, remedy="take kernels from a repository")
        low, high = sorted((keys[good.id], keys[bad.id]))
        inside = [row for row in wanted if row.id in keys and low < keys[row.id] < high]
        inside.sort(key=lambda row: keys[row.id], reverse=keys[good.id] > keys[bad.id])
        return [good, *inside, bad]

    def versions(self, good: KernelSpec, bad: KernelSpec) -> list[KernelSpec]:
        """The same with every version of that variant in the repositories; only the ends where there is no telling."""
        if good.variant != bad.variant or not all(isinstance(row.source, AptSource) for row in (good, bad)):
            return [good, bad]
        assert isinstance(good.source, AptSource)
        low, high = sorted(key for row in (good, bad) if (key := self._key(row)) is not None)
        known = {package.version: package for package in self._packages(good)}
        ordered = [known[version] for version in sorted(known, key=version_key) if low < version_key(version) < high]
        if self._key(good) == high:
            ordered.reverse()
        self.say(f"{len(ordered)} versions in the repositories between {good.id} and {bad.id}")
        return [good, *(_version(good, good.source, package) for package in ordered), bad]

    def _packages(self, row: KernelSpec) -> Iterable[Package]:
        """All kernels of a row's variant: its package glob without the version. A suite that is gone is passed over."""
        source = row.source
        assert isinstance(source, AptSource)
        glob = f"linux-image-[0-9]*{source.package.rpartition('*')[2]}"
        client = AptClient(source.repositories, self.store, on_event=self.say, options=AptOptions())
        for suite in dict.fromkeys(suite for repository in source.repositories for suite in repository.suites):
            try:
                yield from client.matching(glob, (suite,), row.arch.debian)
            except CorematrixError as error:
                self.say(f"{suite}: {error.message}")

    def _key(self, row: KernelSpec) -> tuple[object, ...] | None:
        """Where a row stands: the version of its package, or of what it provides."""
        if not isinstance(row.source, AptSource):
            return version_key(kernels.provide(row, self.store, self.matrix.lock, self.say).release)
        pins = self.matrix.lock.kernels.get(row.id) if self.matrix.lock else None
        if pins:
            return version_key(pins[0].version)
        client = AptClient(row.source.repositories, self.store, on_event=self.say, options=AptOptions())
        found = client.matching(row.source.package, row.source.suites, row.arch.debian)
        return version_key(found[0].version) if found else None


def _version(row: KernelSpec, source: AptSource, package: Package) -> KernelSpec:
    """A row for exactly this package."""
    identity = f"{package.name.removeprefix('linux-image-')}_{package.version}".replace("~", "-").replace(":", "-")
    return replace(row, id=identity, source=replace(source, suites=(package.suite,), package=package.name))


def _show(hunt: _Hunt, found: tuple[KernelSpec, KernelSpec], stdout: TextIO, json_file: Path | None) -> None:
    names = ("last as the good one", "first that differs")
    ends = []
    for name, spec in zip(names, found, strict=True):
        fate = hunt.fates[spec.id]
        assert fate is not None
        ends.append({"kernel": spec.id, "release": hunt.releases[spec.id], "fate": hunt.shown(fate)})
        stdout.write(f"{name}: {spec.id} ({hunt.releases[spec.id]})\n")
        shown = hunt.shown(fate).items()
        stdout.writelines(f"    {untrusted.line(aspect)}: {untrusted.line(value)}\n" for aspect, value in shown)
    if hunt.unknown:
        stdout.write(f"between them, not judged: {', '.join(hunt.unknown)}\n")
    stdout.write(f"kernels asked: {len(hunt.fates)}\n")
    if json_file is not None:
        report = {"schema": 1, "last_good": ends[0], "first_changed": ends[1], "unknown": list(hunt.unknown),
                  "asked": len(hunt.fates)}  # fmt: skip
        write_whole(json_file, json.dumps(report, indent=1) + "\n")
