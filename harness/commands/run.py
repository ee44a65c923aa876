"""`corematrix run`: the main job."""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import shutil
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from harness import __version__, config, judge, matrix, objects, report
from harness.commands import attaching, baseline, covering, executors, looking, resume, sharding
from harness.commands.arguments import positive
from harness.errors import CacheError, InfrastructureError, Interrupted, UsageError
from harness.executor import Plan, functional
from harness.executor.costs import Costs
from harness.executor.judging import Judging
from harness.executor.plan import host_limits
from harness.judge import comparison
from harness.model.bpf_object import ObjectFile
from harness.model.cell import Cell
from harness.model.expectation import NONE, Expectations, Rule
from harness.model.machines import with_this_machine
from harness.model.result import CellResult, RunResult
from harness.model.verdict import CellStatus
from harness.predict import compare
from harness.progress import Progress, progress_for
from harness.report import config_suspects
from harness.report.untrusted import line
from harness.rundir import RunDirectory, write_whole
from harness.store import Store

DEFAULT_TAG = "gate"
DEFAULT_OBJECTS = Path("programs/build")
LOADERS: Mapping[str, tuple[str, ...]] = {"python": ("python",), "libbpf": ("libbpf",), "both": ("libbpf", "python")}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("objects", nargs="*", type=Path, default=[DEFAULT_OBJECTS], metavar="OBJECT", help="a compiled object, or a "
        f"directory with *.bpf.o in it (default: {DEFAULT_OBJECTS})")  # fmt: skip
    add("-k", "--kernel", action="append", default=[], metavar="GLOB", help="kernels to run on, by id (repeatable)")
    add("--tag", metavar="T", help=f"kernels with this tag (default: {DEFAULT_TAG}, unless -k or --only is given)")
    add("--arch", metavar="A", help="kernels of this architecture")
    add("--only", action="append", default=[], metavar="CELL", help="cells to run, by identity or glob (repeatable)")
    add("--set", action="append", default=[], metavar="VAR=VALUE", help="value of a .rodata variable, instead of "
        "the settings in the expectations (repeatable)")  # fmt: skip
    add("--loader", choices=sorted(LOADERS), default="python", help="who loads in the guest (default: python)")
    add("--matrix", type=Path, metavar="FILE", help="default: ./kernels.yaml, else the built-in matrix")
    add("--json", metavar="FILE", help="also write the run's JSON there; - for standard output")
    add("--output", type=Path, default=Path("corematrix-runs"), metavar="DIR", help="where run directories are made")
    add("--jobs", type=positive, metavar="N", help="guests at a time (default: as many as cores and memory allow)")
    add("--timeout", type=positive, metavar="S", help="seconds for one object in a guest (default: by accelerator)")
    add("--cold", action="store_true", help="boot every guest, restore none")
    add("--isolate", action="store_true", help="a fresh guest for every cell")
    add("--no-adaptations", action="store_true", help="a program that loads only by "
        "what libbpf would not do breaks its expectation")  # fmt: skip
    add("--attach", action="store_true", help="attach each loaded program where its section says, detach it, report")
    add("--file", action="append", default=[], metavar="HOST[:GUEST]", help="--attach: a binary that sections of "
        "uprobes and USDT name, put into every guest as GUEST (repeatable)")  # fmt: skip
    add("--yes-on-this-machine", action="store_true", help="agree to --attach and to functional tests "
        "on backends local and ssh")  # fmt: skip
    add("--quiet", action="store_true", help="no progress, only the report")
    baseline.add_arguments(parser)
    sharding.add_arguments(parser)
    executors.add_arguments(parser)
    resume.add_arguments(parser)
    covering.add_arguments(parser)


def run(options: argparse.Namespace, stdout: TextIO, stderr: TextIO) -> int:
    """Plan, run, report. Returns the exit status."""
    executors.check(options)
    covering.check(options)
    files = attaching.files(options.file, options.attach)
    job, covered = _covered(_plan(options), options, stderr)
    earlier = baseline.Baseline(options)
    directory = resume.open_directory(options, job.started)
    kept = resume.keep(
        directory, job.cells, job.expectations, job.matrix.lock, job.functional, compared=options.loader == "both"
    )
    listener = progress_for(stderr, len(job.cells) - len(kept), quiet=options.quiet)
    with Store.default() as store:
        judging = Judging(
            store=store, guest=job.matrix.guest, lock=job.matrix.lock, expectations=job.expectations,
            directory=directory, today=job.started.date(), timeout=options.timeout, cold=options.cold, rerun=job.rerun,
            attach=options.attach, both=options.loader == "both", functional=job.functional,
            on_machines=options.yes_on_this_machine, attach_files=files,
        )  # fmt: skip
        for arch, packages in resume.guest_packages(directory, kept).items():
            judging.note_packages(arch, packages)
        plan = Plan(
            cells=tuple(cell for cell in job.cells if not cell.not_applicable and str(cell.id) not in kept),
            limits=host_limits(options.jobs),
            isolate=options.isolate,
        )
        settled = [judging.not_applicable(cell) for cell in job.cells if cell.not_applicable]
        coming = executors.choose(options, judging, plan.cells).run(plan, listener)
        came, stopped = _collect(settled, coming, directory, listener)
        done = {**kept, **came}
        with suppress(CacheError):  # only the next run's guesses depend on it
            Costs.measured(done.values()).store(store)
    missing = [judging.interrupted(cell) for cell in job.cells if str(cell.id) not in done]
    cells = _in_order(job.cells, [*done.values(), *missing])
    result = _run_result(job, cells, judging.guest_packages(), resume.note(kept))
    result = replace(result, cover=covered.conclude(cells) if covered else None)
    result = with_suspects(result)
    changes = earlier.compare(result, _selection(job, options))
    _store_and_show(result, changes, directory, options, stdout)
    said = earlier.update(result, report.render("json", result), _selection(job, options))
    if said:
        stderr.write(f"{said}\n")
    if stopped:
        return Interrupted.exit_status
    return 1 if earlier.closes_gate(changes) else exit_status(cells)


def _covered(
    job: Job, options: argparse.Namespace, stderr: TextIO
) -> tuple[Job, covering.Covering | None]:
    """With --cover the job without the kernels that others stand for."""
    if not options.cover:
        return job, None
    with Store.default() as store:

        def say(text: str) -> None:
            if not options.quiet:
                stderr.write(f"{line(text)}\n")

        def left_out(cell: Cell, progs: Iterable[str]) -> frozenset[str]:
            promises = job.expectations.get(cell.object.name, NONE)
            return judge.left_out(promises, cell.id, cell.kernel.arch.name, progs, job.started.date())

        found = covering.choose(options, job.cells, job.matrix.lock, store, say, left_out=left_out)
    return (replace(job, cells=found.cells), found) if found else (job, None)


def _selection(job: Job, options: argparse.Namespace) -> baseline.Selection:
    return baseline.Selection(
        kernels=job.matrix.kernels,
        cells=job.cells,
        globs=options.kernel,
        only=options.only,
        arch=options.arch,
        whole_directories=any(path.is_dir() for path in options.objects),
        settings_given=bool(options.set),
    )


def _collect(
    settled: Iterable[CellResult],
    coming: Generator[CellResult, None, None],
    directory: RunDirectory,
    listener: Progress,
) -> tuple[dict[str, CellResult], bool]:
    """Every result by identity, each written down as it comes, and whether we were told to stop meanwhile."""
    done: dict[str, CellResult] = {}
    try:
        with closing(coming) as results:
            for result in chain(settled, results):
                done[result.id] = result
                with suppress(InfrastructureError):  # a full disk: the table still comes, and writing run.json says so
                    directory.keep_cell(result)
    except (KeyboardInterrupt, Interrupted):
        return done, True
    finally:
        listener.close()
    return done, False


@dataclass(frozen=True, kw_only=True)
class Job:
    """What the command line came to; `begun` on the monotonic clock."""

    started: datetime
    begun: float
    matrix: config.Matrix
    expectations: Mapping[str, Expectations]
    cells: tuple[Cell, ...]
    rerun: Callable[[Cell], str]
    functional: functional.Tests
    shard: dict[str, Any] | None = None


def _plan(options: argparse.Namespace) -> Job:
    """Everything that can be wrong with the user's input is found here, before anything is fetched or booted."""
    loaded = config.load_matrix(options.matrix)
    everywhere = options.kernel or options.only or options.tag
    selector = matrix.KernelSelector(
        globs=tuple(options.kernel), tag=options.tag if everywhere else DEFAULT_TAG, arch=options.arch
    )
    named = [*options.kernel, *(cell.partition("/")[0] for cell in options.only)]
    kernels = matrix.select_kernels(with_this_machine(loaded.kernels, named), selector)
    attaching.check(kernels, options.attach, options.yes_on_this_machine)
    if options.objects == [DEFAULT_OBJECTS] and not DEFAULT_OBJECTS.exists():
        message = f"there is no {DEFAULT_OBJECTS} here, which is meant when no OBJECT is named"
        raise UsageError(message, remedy="name compiled objects, or directories with *.bpf.o in them")
    found = objects.find_objects(options.objects)
    matrix.group_by_name(found)
    objects.check_objects(found, {kernel.arch.byteorder for kernel in kernels})
    expectations = objects.find_expectations(found, config.load_yaml)
    if options.no_adaptations:
        expectations = _without_adaptations(found, expectations)
    axes = _with_settings(found, expectations, _settings(options.set))
    cells = matrix.expand(kernels, found, axes, loaders=LOADERS[options.loader], exclude=loaded.exclude)
    part = sharding.part(matrix.only(cells, options.only), options)
    return Job(
        started=datetime.now(UTC).replace(microsecond=0),
        begun=time.monotonic(),
        matrix=loaded,
        expectations=expectations,
        cells=part.cells,
        rerun=_rerun(options),
        functional=functional.prepare(part.cells, expectations),
        shard=part.record or None,
    )


def _without_adaptations(
    found: Sequence[ObjectFile], expectations: Mapping[str, Expectations]
) -> dict[str, Expectations]:
    """A first rule for every object, which one of its own may take back (`adaptations: allowed`)."""
    rule = Rule(where="--no-adaptations", adaptations="refused")
    known = {file.name: expectations.get(file.name, NONE) for file in found}
    return {name: replace(own, rules=(rule, *own.rules)) for name, own in {**expectations, **known}.items()}


def _settings(assignments: Sequence[str]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name or name in settings:
            message = f"--set {assignment}: expected VAR=VALUE, each variable once"
            raise UsageError(message)
        settings[name] = value
    return settings


def _with_settings(
    found: Sequence[ObjectFile], expectations: Mapping[str, Expectations], settings: Mapping[str, str]
) -> dict[str, Expectations]:
    """`--set` in place of the settings axis of every object that has such variables. UsageError for one nobody has."""
    axes = dict(expectations)
    unknown = set(settings)
    for candidate in found if settings else ():
        own = {name: value for name, value in settings.items() if name in objects.rodata_variables(candidate)}
        unknown -= set(own)
        if own:
            axes[candidate.name] = replace(axes.get(candidate.name, NONE), settings=(tuple(sorted(own.items())),))
    if unknown:
        message = f"--set {min(unknown)}: no object here has a .rodata variable of that name"
        raise UsageError(message, remedy="declare it `const volatile` in the source")
    return axes


def _rerun(options: argparse.Namespace) -> Callable[[Cell], str]:
    """The command that runs one cell of this run again."""

    def command(cell: Cell) -> str:
        # An object found below a directory has its name from there, so the directory must be given again.
        depth = cell.object.name.count("/")
        path = cell.object.path.parents[depth] if depth else cell.object.path
        words = ["corematrix", "run", str(path)]
        words += ["--matrix", str(options.matrix)] if options.matrix else []
        words += [word for assignment in options.set for word in ("--set", assignment)]
        words += ["--no-adaptations"] if options.no_adaptations else []
        loader = "both" if options.loader == "both" else cell.loader
        words += ["--loader", loader] if loader != "python" else []
        return shlex.join([*words, "--only", str(cell.id)])

    return command


def _in_order(cells: Sequence[Cell], results: Iterable[CellResult]) -> tuple[CellResult, ...]:
    by_id = {result.id: result for result in results}
    return tuple(by_id[str(cell.id)] for cell in cells)


def _run_result(
    job: Job, cells: tuple[CellResult, ...], guest_packages: dict[str, Any], notes: tuple[str, ...]
) -> RunResult:
    return RunResult(
        tool={"name": "corematrix", "version": __version__, "python": platform.python_version()},
        host={
            "system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count(),
            "guest_packages": guest_packages,
        },
        started=job.started.isoformat(),
        seconds=round(time.monotonic() - job.begun, 1),  # the date may be set meanwhile
        cells=cells,
        # Whether a rule is still needed only a whole run can say: `merge` says it for shards.
        notes=(
            *(() if job.shard else judge.review_rules(job.expectations, cells, job.started.date())),
            *compare.notes(cells),
            *comparison.notes(cells),
            *notes,
        ),
        shard=job.shard,
    )


def with_suspects(result: RunResult) -> RunResult:
    """The run with the config switches that may be behind what differs between its kernels."""
    with suppress(CacheError), Store.default() as store:  # without it the run itself still stands
        return replace(result, config_suspects=config_suspects.suspects(result, looking.sources(store)))
    return result


def _store_and_show(
    result: RunResult, changes: report.Diff | None, directory: RunDirectory, options: argparse.Namespace, stdout: TextIO
) -> None:
    """The report on the screen comes first: a full disk must not cost the user what was found out."""
    text = report.render("json", result)
    unseen: OSError | None = None
    try:
        show(result, options.json, stdout, changes)
    except OSError as error:  # a full disk behind it, or a reader that went away
        unseen = error
    stored = directory.write("run.json", text)
    readable = directory.write("report.txt", report.render("text", result, width=120))
    if changes is not None:
        directory.write("changes.json", report.render_diff("json", changes))
    if options.json and options.json != "-":
        write_whole(Path(options.json), text)
    if unseen is not None:
        raise unseen
    if options.json != "-":
        stdout.write(f"\nJSON: {stored}\ntext: {readable}\n")


def show(result: RunResult, json: str | None, stdout: TextIO, changes: report.Diff | None = None) -> None:
    """A finished run on standard output: as JSON where `json` is `-`, else as a table for its terminal."""
    if json == "-":
        stdout.write(report.render("json", result))
    else:
        width, _ = shutil.get_terminal_size((100, 24))
        colour = stdout.isatty() and "NO_COLOR" not in os.environ
        stdout.write(report.render("terminal", result, width=width, colour=colour))
        if changes is not None:
            since = report.render_diff("terminal", changes, width=width, colour=colour)
            stdout.write(f"\nSince the baseline\n\n{since}")
    stdout.flush()


def exit_status(cells: Sequence[CellResult]) -> int:
    """The exit status of a finished run: a failure outweighs trouble, trouble outweighs nothing judged."""
    statuses = {cell.status for cell in cells}
    if CellStatus.FAILED in statuses:
        return 1
    if CellStatus.ERROR in statuses:
        return 4
    if statuses & {CellStatus.CRASHED, CellStatus.TIMEOUT}:
        return 7
    return 0 if CellStatus.PASSED in statuses else 3
