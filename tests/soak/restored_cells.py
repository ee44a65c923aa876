"""Restored cells in a row, each in a guest of its own, all by one host process: does memory, do descriptors, threads,
processes or disk grow?

    python -m tests.soak.restored_cells [--cells 500] [--chunk 50] [--kernel ID]... [--step] [--json FILE]

A chunk is one `corematrix run --isolate` in this very process; after each the process is weighed. With `--step` a chunk
waits for a line on standard input, so that a machine shared with others can be had in turns. Status 1: something grew.

What may not grow, from the first weighing at SETTLED cells or more (until then modules are imported, caches filled, and
malloc's arenas, one for each of the threads that come and go) to the last: memory (RSS) by more than 4 MiB (10 KiB a
cell in four hundred); descriptors, threads, child processes, files of the cache, files in $TMPDIR by any. Give it a
cache of its own (COREMATRIX_CACHE) where others use the same.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from harness import cli
from harness.store import Store

OBJECT = Path("programs/build/task_state.bpf.o")
KERNEL = "debian-6.1-cloud-amd64"
SETTLED = 100
MOST_KIB = 4 << 10


@dataclass(frozen=True, kw_only=True)
class Weight:
    """This process and what it leaves behind: `cache` is the whole cache, saved guests and all, `temporary` what lies
    in the directory for temporary files, which is its own.
    """

    cells: int
    seconds: float
    rss_kib: int
    descriptors: int
    threads: int
    children: int
    cache_files: int
    cache_mib: int
    temporary: int


def main(words: list[str], out: TextIO) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--chunk", type=int, default=50)
    parser.add_argument("--kernel", action="append")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args(words)
    weights = []
    with tempfile.TemporaryDirectory(prefix="corematrix-soak-") as directory:
        for weight in soak(Path(directory), chosen.kernel or [KERNEL], chosen.cells, chosen.chunk, step=chosen.step):
            weights.append(weight)
            out.write(line(weight))
            out.flush()
            if chosen.json:
                chosen.json.write_text(json.dumps([asdict(one) for one in weights], indent=1))
    found = growth(weights)
    out.write("".join(f"GREW: {one}\n" for one in found) or "nothing grew\n")
    return 1 if found else 0


def soak(place: Path, kernels: list[str], cells: int, chunk: int, *, step: bool) -> Iterator[Weight]:
    """Chunks until there are enough cells; what this process weighs after each."""
    objects = place / "objects"
    objects.mkdir()
    for number in range(-(-chunk // len(kernels))):
        shutil.copy(OBJECT, objects / f"o{number:03}.bpf.o")
    chosen = [word for kernel in kernels for word in ("-k", kernel)]
    spent, done = 0.0, 0
    tempfile.tempdir = str(place / "tmp")
    os.environ["TMPDIR"] = tempfile.tempdir
    (place / "tmp").mkdir()
    while done < cells:
        if step and not sys.stdin.readline():
            return
        started = time.monotonic()
        done += run(place, objects, chosen)
        spent += time.monotonic() - started
        yield weigh(done, spent)


def run(place: Path, objects: Path, chosen: list[str]) -> int:
    """One run; how many cells it judged. Each must have passed in a restored guest, at the first attempt."""
    result = place / "run.json"
    stdout, sys.stdout = sys.stdout, io.StringIO()
    try:
        words = ["run", str(objects), *chosen, "--isolate", "--quiet", "--json", str(result), "--output", str(place)]
        status = cli.main(words)
    finally:
        sys.stdout = stdout
    cells: list[dict[str, Any]] = json.loads(result.read_text())["cells"]
    kinds = Counter((cell["status"], cell["start"], cell["attempts"]) for cell in cells)
    assert status == 0, kinds
    assert set(kinds) == {("passed", "restored", 1)}, kinds
    for path in place.glob("*Z*"):  # a run's own directory is what a user keeps, and no leak
        shutil.rmtree(path)
    return len(cells)


def weigh(cells: int, seconds: float) -> Weight:
    lines = dict(row.split(":", 1) for row in Path("/proc/self/status").read_text().splitlines())
    with Store.default() as store:
        sizes = [path.stat().st_blocks * 512 for path in store.root.rglob("*") if path.is_file()]
    return Weight(
        cells=cells,
        seconds=round(seconds, 1),
        rss_kib=int(lines["VmRSS"].split()[0]),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        threads=int(lines["Threads"]),
        children=len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        cache_files=len(sizes),
        cache_mib=sum(sizes) >> 20,
        temporary=len(list(Path(tempfile.gettempdir()).iterdir())),
    )


def growth(weights: list[Weight]) -> list[str]:
    """What grew once all had settled, in words."""
    first = next((one for one in weights if one.cells >= SETTLED), weights[-1])
    allowed = {"rss_kib": MOST_KIB, "descriptors": 0, "threads": 0, "children": 0, "cache_files": 0, "temporary": 0}
    rows = ((name, getattr(first, name), getattr(weights[-1], name), most) for name, most in allowed.items())
    return [f"{name}: {was} -> {now}" for name, was, now, most in rows if now > was + most]


def line(weight: Weight) -> str:
    return "  ".join(f"{name} {value}" for name, value in asdict(weight).items()) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
