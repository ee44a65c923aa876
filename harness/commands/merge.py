"""`corematrix merge RUN...`: the shards of one run put together again, as if it had never been cut."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from harness import config, judge, objects, report
from harness.commands.run import exit_status, show, with_suspects
from harness.errors import UsageError
from harness.judge import comparison
from harness.model.bpf_object import ObjectFile
from harness.model.result import CellResult, RunResult
from harness.predict import compare
from harness.rundir import RunDirectory, read_run, write_whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="every shard of one run: its JSON, or its directory")
    add("--json", metavar="FILE", help="also write the merged run's JSON there; - for standard output")
    add("--output", type=Path, default=Path("corematrix-runs"), metavar="DIR", help="where run directories are made")


def run(options: argparse.Namespace, stdout: TextIO, _stderr: TextIO) -> int:
    """Merge, store, report. The status is what the whole run's would have been."""
    shards = {path: read_run(path) for path in options.runs}
    merged = with_suspects(merge(shards))
    directory = RunDirectory.create(options.output, datetime.fromisoformat(merged.started))
    for path in shards:
        if path.is_dir():
            directory.adopt(path)
    text = report.render("json", merged)
    show(merged, options.json, stdout)
    stored = directory.write("run.json", text)
    directory.write("report.txt", report.render("text", merged, width=120))
    if options.json and options.json != "-":
        write_whole(Path(options.json), text)
    if options.json != "-":
        stdout.write(f"\nJSON: {stored}\n")
    return exit_status(merged.cells)


def merge(shards: Mapping[Path, RunResult]) -> RunResult:
    """One run of all shards, cells in the plan's order. UsageError, naming the files, unless every shard of one cut is
    there exactly once.
    """
    for path, found in shards.items():
        if found.shard is None:
            message = f"{path}: not a shard: the run was made without --shard"
            raise UsageError(message, remedy="give only runs made by `corematrix run --shard i/n`")
    _check(shards)
    runs = sorted(shards.values(), key=lambda run: _shard(run)["index"])
    cells = _ordered(runs)
    first = min(runs, key=lambda run: datetime.fromisoformat(run.started))
    return RunResult(
        tool=runs[0].tool,
        host=_host(runs),
        started=first.started,
        # They ran side by side: the whole took as long as the slowest.
        seconds=max(run.seconds for run in runs),
        cells=cells,
        notes=_notes(cells, first.started),
    )


def _check(shards: Mapping[Path, RunResult]) -> None:
    known = {path: _shard(run) for path, run in shards.items()}
    for name, meaning in (("count", "cut into different numbers of shards"), ("plan", "shards of different plans")):
        if len({record.get(name) for record in known.values()}) > 1:
            message = f"{meaning}: {', '.join(f'{path} ({record.get(name)})' for path, record in known.items())}"
            remedy = "run every shard with the same objects, kernels, matrix and --costs"
            raise UsageError(message, remedy=remedy)
    versions = {path: str(run.tool.get("version")) for path, run in shards.items()}
    if len(set(versions.values())) > 1:
        message = f"run by different versions of corematrix: {', '.join(f'{p} ({v})' for p, v in versions.items())}"
        raise UsageError(message)
    times = Counter(record["index"] for record in known.values())
    count = next(iter(known.values()))["count"]
    for number in range(1, count + 1):
        files = [str(path) for path, record in known.items() if record["index"] == number]
        if times[number] > 1:
            message = f"shard {number}/{count} is there {times[number]} times: {', '.join(files)}"
            raise UsageError(message, remedy="give each shard once")
        if not files:
            message = f"shard {number}/{count} is missing"
            raise UsageError(message, remedy="a run without it proves nothing about its cells: run it, and merge again")


def _shard(run: RunResult) -> dict[str, Any]:
    """What a shard wrote about itself; UsageError when that cannot be."""
    record = run.shard or {}
    positions = record.get("positions")
    numbers = [record.get("index"), record.get("count"), record.get("of_cells")]
    sound = isinstance(positions, list) and len(positions) == len(run.cells)
    if not sound or not all(isinstance(number, int) for number in [*numbers, *(positions or [])]):
        name = f"shard {record.get('index')}/{record.get('count')}"
        message = f"{name}: its record does not fit its {len(run.cells)} cells"
        raise UsageError(message, remedy="run this shard again: its file is damaged or was edited")
    return record


def _ordered(runs: Sequence[RunResult]) -> tuple[CellResult, ...]:
    placed: dict[int, CellResult] = {}
    total = _shard(runs[0])["of_cells"]
    for run in runs:
        for position, cell in zip(_shard(run)["positions"], run.cells, strict=True):
            if position in placed or not 0 <= position < total:
                message = f"{cell.id}: its place in the plan ({position}) is taken, or is none"
                raise UsageError(message, remedy="run the shards again: a file is damaged or was edited")
            placed[position] = cell
    missing = next((position for position in range(total) if position not in placed), None)
    if missing is not None:
        message = f"the cell at place {missing} of {total} is in no shard"
        raise UsageError(message, remedy="run the shards again: a file is damaged or was edited")
    return tuple(placed[position] for position in range(total))


def _host(runs: Sequence[RunResult]) -> dict[str, Any]:
    """The first shard's host, with the guests' packages of all; `shards` names the hosts that differ from it."""
    packages = {arch: found for run in runs for arch, found in run.host.get("guest_packages", {}).items()}
    first = {**runs[0].host, "guest_packages": dict(sorted(packages.items()))}
    others = [{name: value for name, value in run.host.items() if name != "guest_packages"} for run in runs]
    return first if all(other == others[0] for other in others) else {**first, "shards": others}


def _notes(cells: Sequence[CellResult], started: str) -> tuple[str, ...]:
    """Whether a rule is still needed only the whole run can say: said here, from the YAML beside the objects. And where
    prediction and kernel disagree.
    """
    found = {cell.object.name: cell.object for cell in cells}.values()
    files = [ObjectFile(name=known.name, path=Path(known.path), sha256=known.sha256, size=0) for known in found]
    expectations = objects.find_expectations(files, config.load_yaml)
    rules = judge.review_rules(expectations, cells, datetime.fromisoformat(started).date())
    return (*rules, *compare.notes(cells), *comparison.notes(cells))
