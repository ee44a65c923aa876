"""`corematrix sweep`: every object against the BTF of every kernel at hand; no guest, no root."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from harness import __version__, config, kernels, matrix, objects
from harness.apt.repository import AptOptions
from harness.commands.arguments import positive
from harness.errors import CorematrixError, InfrastructureError, NothingJudgedError, UsageError
from harness.inspection.command import check_rules
from harness.model.kernel import Kernel
from harness.model.plain_json import to_json
from harness.model.sweep import SweepResult
from harness.report import sweep as report
from harness.report.untrusted import line
from harness.rundir import write_whole
from harness.store import Store
from harness.sweep.engine import Answered, Job, answers
from harness.sweep.result import result_of
from harness.sweep.targets import Target, find_targets, kernel_targets

_GLOB = "*"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("objects", nargs="+", type=Path, metavar="OBJECT", help="a compiled object, or a directory with *.bpf.o in it")
    add(
        "--btf", nargs="+", action="extend", default=[], metavar="TREE|FILE|KERNEL-GLOB",
        help="a tree of distro/version/arch/release.btf.tar.xz, a raw BTF file, an ELF with .BTF, or cached kernels of"
        " the matrix by id (default: all that are cached)",
    )  # fmt: skip
    add("--set", action="append", default=[], metavar="VAR=VALUE", help="value of a .rodata variable (repeatable)")
    add("--rules", metavar="VERSION", help="follow the rules of this libbpf release (default: the newest)")
    add("--matrix", type=Path, metavar="FILE", help="default: ./kernels.yaml, else the built-in matrix")
    add("--format", choices=("text", "json"), default="text", help="on standard output (default: text)")
    add("--json", metavar="FILE", help="also write JSON there; - for standard output")
    add("--jobs", type=positive, metavar="N", help="processes (default: one more than there are cores)")
    add("--quiet", action="store_true", help="no progress, only the report")


def run(options: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> int:
    """Sweep and report. Returns 0, 1 where some program would be refused on some kernel, 3 when nothing was judged, 4
    when a BTF could not be, and nothing was refused by the others: what was not looked at is no pass.
    """
    begun, clock = datetime.now(UTC).replace(microsecond=0), time.monotonic()
    jobs = _jobs(options)
    check_rules(options.rules)
    with Store.default() as store:
        targets, notes = _targets(options, store)
        progress = _Progress(stderr, len(targets), options.quiet)
        answered = answers(
            jobs, targets, store, processes=options.jobs, rules=options.rules, on_answer=progress.answered
        )
        progress.done()
    result = result_of(
        jobs, targets, answered, tool={"name": "corematrix", "version": __version__}, started=begun.isoformat(),
        seconds=time.monotonic() - clock, notes=notes,
    )  # fmt: skip
    _show(result, options, stdout)
    return exit_status(result)


def exit_status(result: SweepResult) -> int:
    """See `run`."""
    outcomes = {one.outcome for swept in result.objects for prog in swept.progs for one in prog.classes}
    if "refused" in outcomes:
        return 1
    if not any(swept.btfs for swept in result.objects):
        return NothingJudgedError.exit_status
    return InfrastructureError.exit_status if any(btf.error for btf in result.btfs) else 0


def _show(result: SweepResult, options: argparse.Namespace, stdout: TextIO) -> None:
    as_json = options.format == "json" or options.json == "-"
    text = json.dumps(to_json(result), indent=1) + "\n" if options.json or as_json else ""
    stdout.write(text if as_json else report.render(result))
    if options.json and options.json != "-":
        write_whole(Path(options.json), text)


def _jobs(options: argparse.Namespace) -> list[Job]:
    found = objects.find_objects(options.objects)
    objects.check_objects(found, ())
    settings: dict[str, str] = {}
    for assignment in options.set:
        name, equals, value = assignment.partition("=")
        if not equals or not name or name in settings:
            message = f"--set {assignment}: expected VAR=VALUE, each variable once"
            raise UsageError(message)
        settings[name] = value
    known = {one.path: objects.rodata_variables(one) for one in found} if settings else {}
    nobodys = set(settings) - frozenset().union(*known.values()) if known else set()
    if nobodys:
        message = f"--set {min(nobodys)}: no object here has a .rodata variable of that name"
        raise UsageError(message, remedy="declare it `const volatile` in the source")
    return [
        Job(object=one, settings={name: value for name, value in settings.items() if name in known[one.path]})
        for one in found
    ]


# -- what to sweep


def _targets(options: argparse.Namespace, store: Store) -> tuple[tuple[Target, ...], tuple[str, ...]]:
    """BTFs in order, and what has to be said of kernels that are not there."""
    paths = [Path(word) for word in options.btf if Path(word).exists()]
    globs = [word for word in options.btf if not Path(word).exists()]
    for word in globs:
        if "/" in word:
            message = f"--btf {word}: no such file or directory"
            raise UsageError(message)
    found = list(find_targets(paths))
    notes: tuple[str, ...] = ()
    if globs or not options.btf:
        cached, notes = _cached(options, store, globs or [_GLOB])
        found += kernel_targets(cached)
    if not found:
        message = "no BTF to sweep: " + ("; ".join(notes) if notes else "no kernel of the matrix is in the cache")
        raise UsageError(message, remedy="corematrix kernels fetch, or name BTF with --btf")
    return tuple(sorted(found, key=lambda target: target.order)), notes


def _cached(options: argparse.Namespace, store: Store, globs: Sequence[str]) -> tuple[list[Kernel], tuple[str, ...]]:
    """Kernels of the matrix that the cache can give without asking anyone."""
    loaded = config.load_matrix(options.matrix)
    chosen = matrix.select_kernels(loaded.kernels, matrix.KernelSelector(globs=tuple(globs)))
    found, missing = [], []
    for spec in chosen:
        try:
            offline = AptOptions(offline=True)
            found.append(kernels.provide(spec, store, loaded.lock, lambda _line: None, options=offline))
        except CorematrixError:
            missing.append(spec.id)
    notes = [f"not cached: {', '.join(missing)} (corematrix kernels fetch)"] if missing else []
    without = [kernel.spec.id for kernel in found if kernel.btf is None]
    notes += [f"no BTF in the files of {', '.join(without)}: left out"] if without else []
    return found, tuple(notes)


class _Progress:
    """A line that counts, on a terminal; a line now and then elsewhere."""

    _EVERY = 5.0

    def __init__(self, stream: TextIO, total: int, quiet: bool) -> None:
        self._stream = stream
        self._total = total
        self._quiet = quiet
        self._count = self._indexed = 0
        self._last = time.monotonic()
        self._live = stream.isatty()

    def answered(self, answered: Answered) -> None:
        self._count += 1
        self._indexed += answered.indexed
        now = time.monotonic()
        if not self._quiet and now - self._last >= (0.2 if self._live else self._EVERY):
            self._last = now
            indexed = f", {self._indexed} indexed" if self._indexed else ""
            text = line(f"{self._count} of {self._total} BTFs{indexed}")
            self._stream.write(f"\r{text}\x1b[K" if self._live else f"{text}\n")
            self._stream.flush()

    def done(self) -> None:
        if self._live and not self._quiet:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
