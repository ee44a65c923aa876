"""How fast `inspect` is, as seconds and as ratios to libbpf in C doing the same work in the same run.

    python -m tests.bench.bench_inspect [--objects DIR] [--btf FILE...]

Exit status 1 when a target of the issue is missed. CPU seconds (user and system) are compared, so that a busy machine
does not decide; wall seconds are printed beside them. Without root or libbpf the ratio is left out, and the output
says so.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness.guest import btf
from harness.guest.bpf_object import BpfObject
from harness.guest.core_relo import Targets, relocate

START_TO_REPORT = 0.35  # seconds, one object against a vmlinux of 100,000 types
NEXT_OBJECT_AT_30 = 0.010  # seconds for each 30 relocations in a further object
LIBBPF_RATIO = 4.0
MEMORY_KB = 80 * 1024
VMLINUX = Path("/sys/kernel/btf/vmlinux")


def _cpu(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of `work`, children included."""
    before, start = os.times(), time.perf_counter()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4]), time.perf_counter() - start


def _report(name: str, value: float, target: float, unit: str, note: str = "") -> bool:
    sys.stdout.write(
        f"{name:<46} {value:9.4f} {unit:<3} target {target:g}  {'ok' if value <= target else 'MISSED'} {note}\n"
    )
    return value <= target


def _start_to_report(obj: Path, target: Path) -> bool:
    command = [sys.executable, "-m", "harness.inspection", str(obj), "--btf", str(target)]
    runs = [_cpu(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)) for _ in range(5)]
    cpu, wall = min(runs)
    ok = _report("process start to report", cpu, START_TO_REPORT, "s", f"(wall {wall:.3f} s)")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return _report("peak memory of inspect", peak / 1024, MEMORY_KB / 1024, "MB") and ok


def _further_objects(objects: list[bytes], target: btf.Btf) -> bool:
    targets, relos = Targets(target), 0

    def work() -> None:
        nonlocal relos
        relos = sum(len(relocate(BpfObject(data), targets).relos) for data in objects)

    work()  # the first objects also pay for names that are looked up once
    cpu, wall = _cpu(work)
    per_30 = cpu / max(relos, 1) * 30
    note = f"({len(objects)} objects, {relos} relocations, wall {wall:.3f} s)"
    return _report("further object, for each 30 relocations", per_30, NEXT_OBJECT_AT_30, "s", note)


def _against_libbpf(objects: list[bytes], paths: list[Path]) -> bool:
    if os.geteuid() != 0:
        sys.stdout.write("ratio to libbpf: left out, libbpf needs root\n")
        return True
    from tests.support.libbpf_judge import judge

    def ours() -> None:
        for path in paths:
            targets = Targets(btf.load(str(path)))
            for data in objects:
                relocate(BpfObject(data), targets)

    def theirs() -> None:
        for path in paths:
            for data in objects:
                judge(data, target=str(path))

    (mine, _), (other, _) = _cpu(ours), _cpu(theirs)
    note = f"({mine:.2f} s to {other:.2f} s; libbpf also opens the BTF anew for each object and tries to load it)"
    return _report(
        f"{len(objects)} objects x {len(paths)} BTFs, ratio to libbpf", mine / other, LIBBPF_RATIO, "x", note
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=Path, default=Path("programs/build"))
    parser.add_argument("--btf", type=Path, nargs="+", default=[VMLINUX])
    options = parser.parse_args()
    paths = sorted(options.objects.glob("*.o"))
    if not paths or not options.btf[0].exists():
        sys.stderr.write(f"no objects in {options.objects}, or no {options.btf[0]}\n")
        return 2
    objects = [path.read_bytes() for path in paths]
    most = max(paths, key=lambda path: path.stat().st_size)
    checks = [
        _start_to_report(most, options.btf[0]),
        _further_objects(objects, btf.load(str(options.btf[0]))),
        _against_libbpf(objects, options.btf),
    ]
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
