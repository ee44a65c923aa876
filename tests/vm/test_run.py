"""`corematrix run` as its users start it, with real guests: the straight road, and guests lost on the way."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import jsonschema
import pytest

pytestmark = [pytest.mark.vm, pytest.mark.network]

ROOT = Path(__file__).resolve().parents[2]
KERNEL = "debian-6.1-cloud-amd64"
OBJECTS = ROOT / "programs" / "build"


class Run:
    """One `corematrix run`; every process it starts carries a mark in its environment, so that none can hide."""

    def __init__(self, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.mark = f"COREMATRIX_TEST_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        command = [
            sys.executable, "-m", "harness.cli", "run", "-k", KERNEL, "--jobs", "1", "--output", str(directory),
            "--json", str(directory / "run.json"), *arguments,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, name: value}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def wait_for(self, text: str) -> None:
        """Until a line of progress holds `text`."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return
        pytest.fail(f"the run ended before it said {text!r}")

    def end(self) -> int:
        """Its exit status, and nothing left of it. Who is killed by force cannot wait for its guests: the kernel sends
        them SIGKILL then, and they need a processor to die of it.
        """
        self.output, self.errors = self.process.communicate(timeout=400)
        if self.process.returncode == -signal.SIGKILL:
            for pid in self.processes():
                await_end(pid)
        assert not self.processes()
        return self.process.returncode

    def result(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads((self.directory / "run.json").read_text())
        return data

    def processes(self, name: str = "") -> list[int]:
        """Processes of this run whose command's name begins with `name`."""
        numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        return [pid for pid in numbers if self._is_ours(pid, name)]

    def await_guest(self) -> list[int]:
        """Until a guest of this run is there, of which nothing tells but looking; the processes."""
        while not (found := self.processes("qemu-system")):
            assert self.process.poll() is None, "the run ended before it had a guest"
            time.sleep(0.01)
        return found

    def _is_ours(self, pid: int, name: str) -> bool:
        with suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            return self.mark.encode() in environment and Path(f"/proc/{pid}/comm").read_text().startswith(name)
        return False


def await_end(pid: int) -> None:
    """Until a process that is no child of ours has ended (pidfd_open(2))."""
    with suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            ended, _, _ = select.select([descriptor], [], [], 60)
        finally:
            os.close(descriptor)
        assert ended, pid


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    if not (OBJECTS / "task_state.bpf.o").is_file():
        pytest.skip("programs/ is not built (make -C programs)")
    runs: list[Run] = []

    def begin(*arguments: str) -> Run:
        runs.append(Run(tmp_path, *arguments))
        return runs[-1]

    yield begin
    for run in runs:
        run.process.kill()
        run.process.communicate()


def cells(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {cell["id"]: cell for cell in result["cells"]}


def test_objects_go_in_and_a_valid_result_comes_out(start: Callable[..., Run]) -> None:
    run = start(str(OBJECTS / "task_state.bpf.o"), str(OBJECTS / "fancy_helper.bpf.o"))
    assert run.end() == 0, run.errors
    result = run.result()
    jsonschema.validate(result, json.loads((ROOT / "harness" / "report" / "schema.json").read_text()))
    assert [cell["id"] for cell in result["cells"]] == [
        f"{KERNEL}/task_state@python",
        f"{KERNEL}/fancy_helper[use_fancy_helper=0]@python",
        f"{KERNEL}/fancy_helper[use_fancy_helper=1]@python",
    ]
    assert KERNEL.split("-")[1] in run.output
    (stored,) = run.directory.glob("*Z")
    assert json.loads((stored / "run.json").read_text()) == result
    for cell in result["cells"]:
        assert json.loads((stored / "cells" / f"{cell['id']}.json").read_text()) == cell
        for prog in cell["progs"]:
            assert "processed" in (stored / prog["verifier"]["log"]).read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_what_it_has_and_leaves_no_guest(start: Callable[..., Run], number: int) -> None:
    run = start(str(OBJECTS), "--isolate")
    run.wait_for("[1/")
    assert run.await_guest()  # the second cell's: there is something to be left
    run.process.send_signal(number)
    assert run.end() == 130
    found = cells(run.result()).values()
    judged = [cell for cell in found if cell["progs"]]
    assert judged
    (plan,) = run.directory.glob("*Z/plan.json")
    assert {cell["id"] for cell in found} == set(json.loads(plan.read_text())["cells"])
    unfinished = {cell["status"] for cell in found if not cell["progs"]}
    assert {"error"} <= unfinished <= {"error", "not_applicable"}
    assert not list(run.directory.rglob("*.tmp"))


@pytest.mark.parametrize(("number", "timeout"), [(signal.SIGKILL, 60), (signal.SIGSTOP, 15)])
def test_a_lost_guest_is_replaced_and_nothing_is_missing(
    start: Callable[..., Run], number: int, timeout: int
) -> None:
    """SIGKILL is a guest that dies, SIGSTOP one that hangs."""
    run = start(str(OBJECTS), "--timeout", str(timeout))
    run.wait_for("[2/")
    (guest,) = run.processes("qemu-system")
    os.kill(guest, number)
    assert run.end() == 0, run.errors
    assert max(cell["attempts"] for cell in run.result()["cells"]) >= 2
    assert "guest lost" in run.errors


def test_a_run_killed_by_force_goes_on_where_it_was(start: Callable[..., Run]) -> None:
    """SIGKILL leaves no guest, every cell that was written, and `--resume` completes the run without asking again."""
    names = ("task_state", "fancy_helper", "start_time", "cpu_time", "sizes", "type_ids", "kconfig", "io_accounting")
    objects, count = [str(OBJECTS / f"{name}.bpf.o") for name in names], len(names) + 1  # fancy_helper is two cells
    run = start(*objects, "--isolate")
    while not list(run.directory.glob("*Z/cells/**/*.json")):
        assert run.process.poll() is None
        time.sleep(0.01)
    run.await_guest()
    run.process.kill()
    assert run.end() == -signal.SIGKILL
    (stored,) = run.directory.glob("*Z")
    kept = {path: path.read_bytes() for path in (stored / "cells").rglob("*.json")}
    assert 1 <= len(kept) < count
    again = start("--resume", "latest", *objects)
    assert again.end() == 0, again.errors
    assert f"[{count - len(kept)}/{count - len(kept)}]" in again.errors
    result = again.result()
    assert [cell["status"] for cell in result["cells"]] == ["passed"] * count
    for path, content in kept.items():
        assert path.read_bytes() == content
        assert json.loads(content) in result["cells"]
