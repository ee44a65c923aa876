"""How fast `inspect` is, as seconds and as ratios to libbpf in C doing the same work in the same run.

    python -m tests.bench.bench_inspect [--objects DIR | --corpus GLOB] [--btf FILE... | --kernels ID...] [--guest ID]

Exit status 1 when a target of the issue is missed. Of several runs the least counts. CPU seconds (user and system) are
compared with libbpf's (`relocate.c`: no kernel, no root), so that a busy machine does not decide; what the issue sets
in seconds is taken by the clock, with CPU seconds beside. `--corpus` takes objects that Debian ships (docs/corpus.md),
`--guest` also asks an emulated guest.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from harness.guest import btf
from harness.guest.bpf_object import BpfObject
from harness.guest.core_relo import Targets, relocate

START_TO_REPORT = 0.35  # seconds, one object against a vmlinux of 100,000 types
NEXT_OBJECT_AT_30 = 0.010  # seconds for each 30 relocations in a further object
NEXT_OBJECT_IN_GUEST = 0.150  # seconds
LIBBPF_RATIO = 4.0
MEMORY_KB = 80 * 1024
ROUNDS = 5
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
    runs = [_cpu(lambda: subprocess.run(command, stdout=subprocess.DEVNULL, check=True)) for _ in range(ROUNDS)]
    cpu, wall = min(cpu for cpu, _ in runs), min(wall for _, wall in runs)
    ok = _report("process start to report", wall, START_TO_REPORT, "s", f"(cpu {cpu:.3f} s, {obj.name})")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return _report("peak memory of inspect", peak / 1024, MEMORY_KB / 1024, "MB") and ok


def _further_objects(objects: list[bytes], target: btf.Btf) -> bool:
    targets, relos = Targets(target), 0

    def work() -> None:
        nonlocal relos
        relos = sum(len(relocate(BpfObject(data), targets).relos) for data in objects)

    work()  # the first objects also pay for names that are looked up once
    runs = [_cpu(work) for _ in range(ROUNDS)]
    cpu, wall = min(cpu for cpu, _ in runs), min(wall for _, wall in runs)
    per_30 = wall / max(relos, 1) * 30
    note = f"({len(objects)} objects, {relos} relocations, {wall:.3f} s; cpu {cpu:.3f} s)"
    return _report("further object, for each 30 relocations", per_30, NEXT_OBJECT_AT_30, "s", note)


def _against_libbpf(paths: list[Path], targets: list[Path], scratch: Path) -> bool:
    compiler = shutil.which("cc") or shutil.which("clang-19")
    program = scratch / "relocate"
    source = Path(__file__).with_name("relocate.c")
    if (
        compiler is None
        or subprocess.run([compiler, "-O2", "-o", str(program), str(source), "-lbpf"], check=False).returncode
    ):
        sys.stdout.write("ratio to libbpf: left out, wants a C compiler and libbpf-dev\n")
        return True
    command = [str(program), "-b", *map(str, targets), "-o", *map(str, paths)]

    def theirs() -> None:
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)

    mine = min(_in_a_fork(lambda: _ours(paths, targets)) for _ in range(3))
    other = min(_cpu(theirs)[0] for _ in range(3))
    counted = subprocess.run([command[0], "-c", *command[1:]], capture_output=True, text=True, check=True)
    seen = counted.stdout.split()[1]
    note = f"({mine:.2f} s for {_ours(paths, targets)} relocations to {other:.2f} s for {seen})"
    return _report(
        f"{len(paths)} objects x {len(targets)} BTFs, ratio to libbpf", mine / other, LIBBPF_RATIO, "x", note
    )


def _ours(paths: Sequence[Path], targets: Sequence[Path]) -> int:
    """The number of relocations."""
    relos = 0
    for target in targets:
        against = Targets(btf.load(str(target)))
        relos += sum(len(relocate(BpfObject(path.read_bytes()), against).relos) for path in paths)
    return relos


def _in_a_fork(work: Callable[[], object]) -> float:
    """CPU seconds of `work` in a process that has nothing of it yet."""

    def child() -> None:
        pid = os.fork()
        if pid == 0:
            work()
            os._exit(0)
        os.waitpid(pid, 0)

    return _cpu(child)[0]


def _in_a_guest(identity: str, objects: list[tuple[str, bytes]]) -> bool:
    """Requests to one restored guest, the first left out: by the clock, from question to answer."""
    from harness.session import JudgeRequest, Session
    from tests.support import guests

    kernel = guests.kernel(identity)
    walls, inside = [], []
    with Session(kernel, guests.options(kernel)) as session:
        for name, data in objects:
            started = time.perf_counter()
            request = JudgeRequest(name=name, evidence=False)
            facts = session.judge(request, data, lambda _message: None)
            walls.append(time.perf_counter() - started)
            inside.append(sum(facts["seconds"][word] for word in ("open", "core")))
        start = session.provenance.start
    relos = _report(
        f"{identity}: relocating a further object", statistics.median(inside[1:]), NEXT_OBJECT_IN_GUEST, "s",
        f"(median of {len(inside) - 1}, most {max(inside[1:]):.3f} s; guest {start})",
    )  # fmt: skip
    return _report(
        f"{identity}: judging a further object", statistics.median(walls[1:]), NEXT_OBJECT_IN_GUEST, "s",
        f"(median of {len(walls) - 1}, most {max(walls[1:]):.3f} s: with maps, programs, verdicts)",
    ) and relos  # fmt: skip


def _corpus(glob: str, scratch: Path) -> list[Path]:
    """Objects of the corpus as files, those libbpf opens here: little-endian, not of the oldest kind."""
    from harness.guest.errors import GuestError
    from harness.store import Store
    from tests.corpus.fetch import fetch_all

    paths = []
    with Store.default() as store:
        for one in fetch_all(store):
            blob = store.blob(one.sha256)
            if blob is None or not fnmatch.fnmatchcase(one.name, glob):
                continue
            try:
                BpfObject(blob.read_bytes())
            except GuestError:
                continue
            path = scratch / f"{one.name.replace('/', '_')}@{one.sha256[:8]}.o"
            path.symlink_to(blob)
            paths.append(path)
    return sorted(paths)


def _targets(options: argparse.Namespace) -> list[Path]:
    if not options.kernels:
        return list(options.btf)
    from tests.support import guests

    return [path for identity in options.kernels if (path := guests.kernel(identity).btf) is not None]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=Path, default=Path("programs/build"))
    parser.add_argument("--corpus", metavar="GLOB")
    parser.add_argument("--btf", type=Path, nargs="+", default=[VMLINUX])
    parser.add_argument("--kernels", nargs="+", metavar="ID")
    parser.add_argument("--guest", metavar="ID")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="corematrix-bench-") as name:
        scratch = Path(name)
        paths = _corpus(options.corpus, scratch) if options.corpus else sorted(options.objects.glob("*.o"))
        targets = _targets(options)
        if not paths or not targets or not targets[0].exists():
            sys.stderr.write(f"no objects in {options.objects}, or no BTF {targets[:1]}\n")
            return 2
        return 0 if all(_checks(paths, targets, scratch, options.guest)) else 1


def _checks(paths: list[Path], targets: list[Path], scratch: Path, guest: str | None) -> list[bool]:
    first = btf.load(str(targets[0]))
    sys.stdout.write(f"{len(paths)} objects, {targets[0]} with {first.count} types, load {os.getloadavg()[0]:.1f}\n")
    objects = [path.read_bytes() for path in paths]
    most = max(paths, key=lambda path: path.stat().st_size)
    checks = [
        _start_to_report(most, targets[0]),
        _further_objects(objects, first),
        _against_libbpf(paths, targets, scratch),
    ]
    if guest is not None:
        few = list(zip((path.name for path in paths), objects, strict=True))[:20]
        checks.append(_in_a_guest(guest, few))
    return checks


if __name__ == "__main__":
    sys.exit(main())
