"""A run on disk: `corematrix-runs/<stamp>/` with a file for each cell as it comes, logs beside, the whole at the end.

    cells/<identity>.json             the cell as in `run --json`, written the moment it is known
    logs/<identity>/<program>.log     the verdict load's verifier log
    functional/<identity>/<test>.log  what a functional test said
    consoles/<kernel>-N.log           what each guest's console said, if anything: guests boot `quiet`
    plan.json                         at the beginning: what each result depends on (commands/resume.py)
    guest_packages.json               before the first guest: what guests are made of, by architecture
    run.json, report.txt              at the end, also of an interrupted run

Files appear whole or not at all (temporary name, then rename), so what a killed run leaves can be trusted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from harness.errors import InfrastructureError, UsageError
from harness.model.plain_json import to_json
from harness.model.result import CellResult, RunResult, run_from_json
from harness.model.sweep import SweepResult, sweep_from_json

PACKAGES = "guest_packages.json"
PLAN = "plan.json"
_LONGEST_NAME = 200  # NAME_MAX is 255 bytes, less room for suffixes


class RunDirectory:
    """One run's directory. `path` is absolute."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._consoles: Counter[str] = Counter()
        self._guard = threading.Lock()

    @classmethod
    def create(cls, parent: Path, started: datetime) -> RunDirectory:
        """A new directory below `parent`, named by the time, with `-N` when another run began in the same second."""
        stamp = started.strftime("%Y%m%dT%H%M%SZ")
        for number in itertools.count(1):
            path = parent / (stamp if number == 1 else f"{stamp}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                if path.is_dir():
                    continue
                raise
            except OSError as error:
                message = f"cannot make a directory for this run: {path}: {error.strerror}"
                raise InfrastructureError(message, remedy="name another place with --output DIR") from error
            return cls(path)
        raise AssertionError

    def keep_cell(self, result: CellResult) -> None:
        """Write one cell. InfrastructureError when the disk will not take it."""
        write_whole(self.path / "cells" / f"{file_name(result.id)}.json", json.dumps(to_json(result)))

    def keep_logs(self, result: CellResult, logs: Mapping[str, str]) -> CellResult:
        """Write verifier logs, by program name, and say in the result where they lie (below this directory)."""
        progs = []
        for prog in result.progs:
            log = logs.get(prog.name)
            if log and prog.verifier is not None:
                where = Path("logs") / file_name(result.id) / f"{file_name(prog.name)}.log"
                write_whole(self.path / where, log)
                prog = replace(prog, verifier=replace(prog.verifier, log=str(where)))  # noqa: PLW2901
            progs.append(prog)
        return replace(result, progs=tuple(progs))

    def keep_output(self, identity: str, name: str, output: bytes) -> str:
        """Write what a functional test of a cell said; where it lies, below this directory. InfrastructureError."""
        where = Path("functional") / file_name(identity) / f"{file_name(quote(name, safe=''))}.log"
        write_whole(self.path / where, output.decode("utf-8", "backslashreplace"))
        return str(where)

    def keep_console(self, kernel_id: str, text: str) -> None:
        """Write what a guest's console said, under the next number of its kernel; nothing for one that was silent."""
        if text.strip():
            with self._guard:
                self._consoles[kernel_id] += 1
                number = self._consoles[kernel_id]
            write_whole(self.path / "consoles" / f"{file_name(kernel_id)}-{number}.log", text)

    def adopt(self, shard: Path) -> None:
        """Copy what a shard's directory holds beside its reports. A kernel may have guests in several shards: their
        consoles get numbers of their own here. InfrastructureError.
        """
        for kind in ("cells", "logs", "functional", "consoles", "internal-errors"):
            for file in sorted(path for path in (shard / kind).rglob("*") if path.is_file()):
                name, text = file.relative_to(shard), file.read_text(encoding="utf-8")
                if name.parent == Path("consoles"):
                    self.keep_console(name.stem.rpartition("-")[0], text)
                else:
                    write_whole(self.path / name, text)

    def sweep(self) -> None:
        """Remove what writers that were killed left behind: it never got its name."""
        for left in self.path.rglob(".*.tmp"):
            left.unlink(missing_ok=True)

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run as a whole; returns its path."""
        return write_whole(self.path / name, text)


def read_run(path: Path) -> RunResult:
    """A stored run: its JSON, or the directory that holds a run.json. UsageError when it is none."""
    file = path / "run.json" if path.is_dir() else path
    data = _json_of(file)
    with _naming(file):
        return run_from_json(data)


def read_sweep(path: Path) -> SweepResult:
    """A stored sweep (`corematrix sweep --json`). UsageError when it is none."""
    data = _json_of(path)
    with _naming(path):
        return sweep_from_json(data)


def read_run_or_sweep(path: Path) -> RunResult | SweepResult:
    """Whichever of the two is stored there. UsageError when it is neither."""
    file = path / "run.json" if path.is_dir() else path
    data = _json_of(file)
    is_sweep = isinstance(data, dict) and data.get("type") == "sweep"
    with _naming(file):
        return sweep_from_json(data) if is_sweep else run_from_json(data)


@contextmanager
def _naming(file: Path) -> Iterator[None]:
    """What is wrong with the JSON is said of the file it is in."""
    try:
        yield
    except UsageError as error:
        message = f"{file}: {error.message}"
        raise UsageError(message, remedy=error.remedy) from error


def _json_of(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except OSError as error:
        message = f"{file}: cannot be read: {error.strerror}"
        remedy = "name a run's JSON file, or a directory below corematrix-runs/"
        if (file.parent / PLAN).is_file():
            message = f"{file.parent}: this run has not come to its end"
            remedy = f"go on with it: the same `corematrix run` with --resume {file.parent}"
        raise UsageError(message, remedy=remedy) from error
    except (ValueError, RecursionError) as error:
        message = f"{file}: not JSON: {error}"
        raise UsageError(message) from error


def logs_of(facts: Mapping[str, Any]) -> dict[str, str]:
    """Program name -> verifier log, from facts."""
    return {str(prog.get("name")): str(prog.get("log") or "") for prog in facts.get("progs", [])}


def file_name(identity: str) -> str:
    """A relative path for an identity: `/` stays, what a file system or shell might take amiss is percent-encoded.

    No part is `.`, `..` or hidden, none is longer than a name may be (the tail gives way to a digest).
    """
    return "/".join(_part(part) for part in identity.split("/"))


def write_whole(path: Path, text: str) -> Path:
    """Write `text` so that `path` either holds all of it or is as it was. InfrastructureError names the path."""
    temporary = path.with_name(f".{path.name[:_LONGEST_NAME]}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        message = f"cannot write {path}: {error.strerror}"
        raise InfrastructureError(message, remedy="free some space, or name another place with --output DIR") from error
    except BaseException:  # Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
    return path


def _part(part: str) -> str:
    encoded = quote(part, safe="[]=,@+-._~")
    if encoded.startswith(".") or not encoded:
        encoded = "%2E" + encoded[1:]
    if len(encoded) > _LONGEST_NAME:
        encoded = f"{encoded[: _LONGEST_NAME - 17]}~{hashlib.sha256(part.encode()).hexdigest()[:16]}"
    return encoded
