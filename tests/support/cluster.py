"""A Dask scheduler and workers as processes of their own, each with its own cache; none outlives the test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Parts of a cache that workers begin with: kernels and packages. Saved guests are theirs to make, unless asked for.
_PARTS = ("blobs", "entries", "trees/kernel", "trees/modules")
_SAVED = "trees/guests"


class Cluster:
    """`directory` holds caches and logs, `source` the `harness` that workers run; `env` is everybody's. A context
    manager.
    """

    def __init__(
        self, directory: Path, source: Path = ROOT, *, scheme: str = "tcp", env: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self._source = source
        self._scheme = scheme
        self._env = dict(env or {})
        self.address = ""
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.killed: set[str] = set()
        self._variable = "COREMATRIX_TEST_MARK"
        self._mark = str(uuid.uuid4())

    def __enter__(self) -> Cluster:
        self.scheduler()
        return self

    def __exit__(self, *_exc: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        for pid in self.marked():
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def scheduler(self, name: str = "scheduler") -> None:
        """Start the scheduler; another one, after the first was killed, at its address."""
        file = self.directory / f"{name}.json"
        port = self.address.rpartition(":")[2] or "0"
        self._start(name, "scheduler", "--protocol", self._scheme, "--port", port, "--no-dashboard",
                    "--scheduler-file", str(file))  # fmt: skip

        def written() -> bool:
            with suppress(OSError, ValueError):
                self.address = json.loads(file.read_text())["address"]
                return True
            return False

        self.until(written, "the scheduler did not start")

    def worker(
        self, name: str, *, cache: Path | None = None, saved: bool = False, threads: int = 1,
        preload: str | None = None, **env: str,
    ) -> None:  # fmt: skip
        """Start a worker; its cache holds what `cache` does (`saved`: saved guests too), by hard links where that can
        be.
        """
        own = self.directory / f"cache-{name}"
        if cache is not None:
            link(cache, own, saved=saved)
        self._start(
            name, "worker", self.address, "--name", name, "--nthreads", str(threads), "--no-nanny", "--no-dashboard",
            "--memory-limit", "0", "--death-timeout", "60", "--local-directory", str(self.directory / "dask"),
            *(["--preload", preload] if preload else []), COREMATRIX_CACHE=str(own), **env,
        )  # fmt: skip

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        self.killed.add(name)
        self.processes[name].send_signal(number)
        self.processes[name].wait()

    def stop(self, name: str) -> None:
        """Let it hang: SIGSTOP, for the guests it has as well."""
        for pid in (*children(self.processes[name].pid), self.processes[name].pid):
            os.kill(pid, signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        """After `stop`."""
        for pid in (self.processes[name].pid, *children(self.processes[name].pid)):
            os.kill(pid, signal.SIGCONT)

    def guests(self, name: str) -> list[int]:
        """The QEMU processes a worker has."""
        found = children(self.processes[name].pid)
        return [pid for pid in found if _comm(pid).startswith("qemu-system")]

    def log(self, name: str) -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def marked(self, comm: str = "") -> list[int]:
        """Processes that descend from these workers and whose command's name begins with `comm`."""
        numbers = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        return [pid for pid in numbers if self._is_ours(pid, comm)]

    def until(self, condition: Callable[[], object], complaint: str, seconds: float = 60.0) -> None:
        """Until `condition` holds: nothing tells of another process's files and children but looking."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, complaint
            time.sleep(0.05)

    def _start(self, name: str, *words: str, **env: str) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
                cwd=self.directory, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": f"{self._source}:{ROOT}", self._variable: self._mark,
                     **self._env, **env},
            )  # fmt: skip

    def _is_ours(self, pid: int, comm: str) -> bool:
        with suppress(OSError):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            ours = f"{self._variable}={self._mark}".encode() in environment
            return ours and Path(f"/proc/{pid}/comm").read_text().startswith(comm)
        return False


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(word) for file in files for word in file.read_text().split()]


def _comm(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text()
    return ""


def link(cache: Path, own: Path, *, saved: bool = False) -> None:
    """A cache of its own with what another holds; `saved`: its saved guests too."""
    for part in (*_PARTS, _SAVED) if saved else _PARTS:
        if (cache / part).is_dir():
            shutil.copytree(cache / part, own / part, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
