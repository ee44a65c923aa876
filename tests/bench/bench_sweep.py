"""How fast a sweep is: an object against hundreds of BTFs, made from the kernels at hand.

    python -m tests.bench.bench_sweep OBJECT... [--count 500] [--different 160] [--scratch DIR] [--tree DIR]

To pack 500 takes half an hour; beyond `--different` they are the same ones once more with padding behind the .xz
stream, which makes other files of them: each is hashed, unpacked and indexed.
The first time every BTF is unpacked and indexed, the second time only relocated. CPU seconds are counted (user and
system, of all processes) and divided by two cores, so that a busy machine does not decide; wall seconds stand beside
them, and mean something on a machine of two cores (`taskset -c 0,1`). Memory is the sum of what each process has for
itself plus what they share (PSS), at its highest. Exit status 1 when a target of the issue is missed.
"""

from __future__ import annotations

import argparse
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

from harness.sweep.archive import read_btf
from tests.support.derived_btf import derive

FIRST, AGAIN, MEMORY_MB, CORES = 40.0, 4.0, 300.0, 2
_STRUCTS = frozenset(("task_struct", "sock", "tcp_sock", "file", "request", "mm_struct", "cgroup", "thread_struct"))


def _archive(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        member = tarfile.TarInfo(path.name.removesuffix(".tar.xz"))
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    path.write_bytes(lzma.compress(raw.getvalue(), preset=6))  # as `tar cJf` does, which made BTFHub's


def make_tree(scratch: Path, sources: list[Path], count: int, different: int) -> Path:
    """`count` archives below `scratch`, made once; the sources themselves are among them."""
    tree = scratch / f"tree-{count}"
    if (tree / "done").exists():
        return tree
    if different < count:
        shutil.copytree(make_tree(scratch, sources, different, different), tree, ignore=lambda *_: ["done"])
        _pad(tree, count)
        (tree / "done").touch()
        return tree
    contents = [read_btf(source) for source in sources]
    small = [data for data in contents if len(data) < 8 << 20]
    for number in range(count - len(sources)):
        data = derive(small[number % len(small)], number, _STRUCTS)
        name = f"{4 + number % 3}.{number % 20}.{number}-derived.btf.tar.xz"
        _archive(tree / f"distro{number % 7}" / "1" / "x86_64" / name, data)
    for number, data in enumerate(contents):
        _archive(tree / "real" / "1" / "x86_64" / f"5.{number}.0-real.btf.tar.xz", data)
    (tree / "done").touch()
    return tree


def _pad(tree: Path, count: int) -> None:
    """Copies with stream padding (four zeros once or more; the .xz format, 2.2) until there are `count` archives."""
    archives = sorted(tree.rglob("*.tar.xz"))
    for number in range(count - len(archives)):
        again, which = divmod(number, len(archives))
        archive = archives[which]
        copy = archive.with_name(f"{archive.name.removesuffix('.btf.tar.xz')}.again{again}.btf.tar.xz")
        copy.write_bytes(archive.read_bytes() + bytes(4 * (again + 1)))


def _pss_kb(pid: int) -> int:
    """Of a process and its children."""
    total = 0
    for found in [pid, *map(int, _children(pid))]:
        try:
            text = Path(f"/proc/{found}/smaps_rollup").read_text()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:")))
    return total


def _children(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []


def _measured(command: list[str], cache: Path) -> tuple[float, float, float]:
    """(CPU seconds, wall seconds, highest memory in MB) of a command."""
    before, start, peak = os.times(), time.perf_counter(), 0
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, env={**os.environ, "COREMATRIX_CACHE": str(cache)}
    )
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(0.05):
            peak = max(peak, _pss_kb(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    status = process.wait()
    finished.set()
    watcher.join()
    if status not in (0, 1):
        raise SystemExit(f"{' '.join(command)}: exit status {status}")
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system, (
        time.perf_counter() - start
    ), peak / 1024


def _report(name: str, value: float, target: float, unit: str, note: str = "") -> bool:
    verdict = "ok" if value <= target else "MISSED"
    sys.stdout.write(f"{name:<44} {value:8.2f} {unit:<2} target {target:g}  {verdict} {note}\n")
    return value <= target


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("objects", type=Path, nargs="+")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--different", type=int, help="archives that are packed anew (default: all)")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/corematrix-bench-sweep"))
    parser.add_argument("--tree", type=Path, default=Path("/work/shared/btf"))
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="raw BTF files to derive from as well")
    options = parser.parse_args()
    sources = sorted(options.tree.rglob("*.btf.tar.xz")) + list(options.more)
    tree = make_tree(options.scratch, sources, options.count, min(options.count, options.different or options.count))
    cache = options.scratch / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    command = [sys.executable, "-m", "harness.cli", "sweep", *map(str, options.objects), "--btf", str(tree), "--quiet"]
    scale = 500 / options.count
    results: list[bool] = []
    for name, target in (("first time, 500 BTFs on 2 cores", FIRST), ("index cached, 500 BTFs on 2 cores", AGAIN)):
        cpu, wall, peak = _measured(command, cache)
        results.append(_report(name, cpu * scale / CORES, target, "s", f"(wall {wall:.1f} s for {options.count})"))
        results.append(_report("  memory of all processes", peak, MEMORY_MB, "MB"))
    size = sum(file.stat().st_size for file in (cache / "trees").rglob("*") if file.is_file())
    sys.stdout.write(f"cache: {size / options.count / 2**20:.1f} MB for each BTF\n")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
