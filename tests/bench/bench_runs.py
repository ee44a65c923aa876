"""Whole runs: the gate matrix cold and warm, growth with objects, growth with kernels. Each is `corematrix run` as its
user starts it; wall and processor seconds, Python's start included.

    python -m tests.bench.bench_runs {matrix,objects,kernels} [--rounds N] [--kernel ID]

`matrix`: tag gate x all of programs/, with every guest booted (`--cold`) and with saved
guests. `objects`: 1, 10 and 50 objects in one guest; the slope
is what a further object costs. `kernels`: one object on 1, 4 and 11 kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

PROGRAMS = Path("programs/build")
TAG = "gate"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run: seconds on the clock, seconds of processors, cells judged."""

    wall: float
    cpu: float
    cells: int


def main(words: list[str], out: TextIO) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["matrix", "objects", "kernels"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kernel", default="debian-6.1-cloud-amd64", help="for `objects`")
    chosen = parser.parse_args(words)
    parts = {"matrix": matrix, "objects": lambda: objects(chosen.kernel), "kernels": kernels}
    for name, row in best(parts[chosen.part](), chosen.rounds).items():
        each = row.wall / row.cells * 1000
        out.write(f"{name:34}{row.wall:9.2f} s{row.cpu:9.2f} cpu s{row.cells:6} cells{each:9.1f} ms each\n")
    out.write(f"load {os.getloadavg()[0]:.1f}\n")
    return 0


def matrix() -> dict[str, list[str]]:
    gate = [str(PROGRAMS), "--tag", TAG]
    return {"gate, warm": gate, "gate, --cold": [*gate, "--cold"]}


def objects(kernel: str) -> dict[str, list[str]]:
    """The same object under many names: what grows is the number, not the kind."""
    found = {}
    for count in (1, 10, 50):
        directory = Path(tempfile.mkdtemp(prefix="corematrix-bench-"))
        for number in range(count):
            shutil.copyfile(PROGRAMS / "exe_name.bpf.o", directory / f"exe_name_{number}.bpf.o")
        found[f"{count} objects on {kernel}"] = [str(directory), "-k", kernel]
    return found


def kernels() -> dict[str, list[str]]:
    found = {}
    for count in (1, 4, 11):
        chosen = [word for identity in _gate()[:count] for word in ("-k", identity)]
        found[f"1 object on {count} kernels"] = [str(PROGRAMS / "exe_name.bpf.o"), *chosen]
    return found


def best(runs: dict[str, list[str]], rounds: int) -> dict[str, Measured]:
    """The quickest of each, rounds interleaved, after one of each that is not counted (it boots and saves)."""
    for words in runs.values():
        if "--cold" not in words:
            run(words)
    rows: dict[str, list[Measured]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, words in runs.items():
            rows[name].append(run(words))
    return {name: min(found, key=lambda row: row.wall) for name, found in rows.items()}


def run(words: Sequence[str]) -> Measured:
    """One `corematrix run`. Every cell must have been judged: crashes and timeouts are no measurement."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory, "run.json")
        command = [sys.executable, "-m", "harness.cli", "run", *words, "--quiet", "--json", str(result)]
        cpu, wall = _children_cpu(), time.monotonic()
        # As a user has it: compiled modules are kept, whatever the shell of a test machine says.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        done = subprocess.run([*command, "--output", directory], capture_output=True, text=True, check=False, env=env)
        wall, cpu = time.monotonic() - wall, _children_cpu() - cpu
        assert done.returncode in (0, 1), done.stderr
        cells = json.loads(result.read_text())["cells"]
    unjudged = [cell["reason"] for cell in cells if cell["status"] in ("crashed", "timeout", "error")]
    assert not unjudged, unjudged
    return Measured(wall=wall, cpu=cpu, cells=sum(cell["status"] != "not_applicable" for cell in cells))


def _gate() -> list[str]:
    from harness.config import builtin_matrix, load_matrix

    return [spec.id for spec in load_matrix(builtin_matrix()).kernels if TAG in spec.tags]


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
