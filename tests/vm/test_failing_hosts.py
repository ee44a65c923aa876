"""Hosts that fail while real guests run: the OOM killer takes QEMU, KVM goes away, the date jumps, ten runs want the
same cache at once. And what a guest sees of its host: nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.backends import execution
from tests.support import guests
from tests.support.objects import PROGRAMS, compile_object

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parents[2]
KERNEL = "debian-6.1-cloud-amd64"
QEMU = "qemu-system-x86_64"
TEN_YEARS = 10 * 365 * 86400


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    guests.kernel(KERNEL)  # fetched, or skipped by name
    guests.packages(guests.kernel(KERNEL).spec.arch)
    place = tmp_path / "objects"
    place.mkdir()
    for name in ("sizes", "user_read"):
        compile_object(PROGRAMS / f"{name}.bpf.c", place / f"{name}.bpf.o")
        shutil.copy(PROGRAMS / f"{name}.yaml", place)
    return place


def command(objects: Path, *words: str, module: tuple[str, ...] = ("harness.cli",)) -> list[str]:
    return [sys.executable, "-m", *module, "run", str(objects), "-k", KERNEL, "--quiet", "--json", "-", *words]


def environment(tmp_path: Path, **changes: str) -> dict[str, str]:
    """With `tmp_path`/bin before everything else on the path."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **changes}


def run(tmp_path: Path, words: list[str], **changes: str) -> tuple[int, list[dict[str, Any]], str]:
    """Exit status, cells, standard error."""
    done = subprocess.run(
        [*words, "--output", str(tmp_path / "runs")], env=environment(tmp_path, **changes), cwd=ROOT,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)["cells"], done.stderr


def another_qemu(tmp_path: Path, script: str) -> None:
    """A script of Python's before the real QEMU, whose path it finds as `QEMU` and its own arguments as `words`."""
    binary = tmp_path / "bin" / QEMU
    binary.parent.mkdir()
    head = f"#!{sys.executable} -IS\nimport os, sys\nQEMU, words = {shutil.which(QEMU)!r}, sys.argv[1:]\n"
    binary.write_text(f"{head}{script}\nos.execv(QEMU, [QEMU, *words])\n")
    binary.chmod(0o755)


@pytest.fixture
def little_memory() -> Iterator[Path]:
    """A memory cgroup of 100 MiB: less than a guest takes to boot."""
    v1 = Path("/sys/fs/cgroup/memory")
    parent, limit = (v1, "memory.limit_in_bytes") if v1.is_dir() else (Path("/sys/fs/cgroup"), "memory.max")
    group = parent / f"corematrix-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / limit).write_text(str(100 << 20))
    except OSError as error:
        pytest.skip(f"needs a memory cgroup of its own: {error}")
    yield group
    group.rmdir()


def test_a_qemu_the_oom_killer_takes(tmp_path: Path, objects: Path, little_memory: Path) -> None:
    another_qemu(tmp_path, f"open({str(little_memory / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))")
    status, cells, said = run(tmp_path, command(objects / "sizes.bpf.o", "--cold", "--jobs", "1"))
    assert status == 7, said
    (cell,) = cells
    assert cell["status"] == "crashed"
    assert "QEMU was killed by SIGKILL" in cell["reason"]
    assert not (little_memory / "cgroup.procs").read_text(), "no QEMU is left"


def test_a_kvm_that_goes_away_in_the_middle_of_a_run(tmp_path: Path, objects: Path) -> None:
    """The first two guests (the trial and the first cell's) have it; the third finds it gone and the rest emulate."""
    device, calls = tmp_path / "kvm", tmp_path / "calls"
    device.touch()
    another_qemu(tmp_path, f"""
if "kvm" in words:
    calls = open({str(calls)!r}, "a+"); calls.write("x"); calls.seek(0)
    if len(calls.read()) > 2:
        if os.path.exists({str(device)!r}): os.unlink({str(device)!r})
        sys.exit("Could not access KVM kernel module: No such file or directory")
    words = [dict(kvm="tcg", host="max").get(word, word) for word in words]
""")  # fmt: skip
    cache = linked_cache(tmp_path, "entries/kvm")
    words = command(objects, "--cold", "--isolate", "--jobs", "1", module=("tests.support.without_kvm", str(device)))
    status, cells, said = run(tmp_path, words, COREMATRIX_CACHE=str(cache))
    assert status == 0, said
    assert not device.exists()
    found = [(cell["status"], cell["accelerator"], cell["attempts"]) for cell in cells]
    assert found == [("passed", "kvm", 1), ("passed", "tcg", 2)]


@pytest.mark.parametrize("jump", [TEN_YEARS, -TEN_YEARS])
def test_a_date_that_jumps_in_the_middle_of_a_run(tmp_path: Path, objects: Path, jump: int) -> None:
    library = tmp_path / "clock_jump.so"
    source = ROOT / "tests" / "support" / "clock_jump.c"
    if not shutil.which("cc"):
        pytest.skip("needs a C compiler for this machine")
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", library, source], check=True)
    # From the moment the first guest is started; that one has the new date as well.
    when = tmp_path / "now"
    another_qemu(tmp_path, f"'--version' in words or open({str(when)!r}, 'w').close()")
    words = command(objects, "--isolate", "--jobs", "1")
    changes = {"LD_PRELOAD": str(library), "CLOCK_JUMP": str(jump), "CLOCK_JUMP_WHEN": str(when)}
    status, cells, said = run(tmp_path, words, **changes)
    assert status == 0, said
    assert [(cell["status"], cell["attempts"]) for cell in cells] == [("passed", 1)] * 2
    (stored,) = (tmp_path / "runs").glob("*/run.json")
    seconds = [json.loads(stored.read_text())["seconds"], *(cell["seconds"]["total"] for cell in cells)]
    assert all(0 <= each < 86400 for each in seconds), seconds


def linked_cache(tmp_path: Path, *without: str) -> Path:
    """A cache with the kernels and packages of the user's, by hard links, but for `without`."""
    mine, theirs = tmp_path / "cache", guests.store().root
    for name in ("blobs", "entries", "trees/kernel", "trees/modules", "trees/btf-index"):
        if (theirs / name).is_dir():
            shutil.copytree(theirs / name, mine / name, copy_function=os.link, symlinks=True)
    for name in without:
        shutil.rmtree(mine / name, ignore_errors=True)
    return mine


def test_ten_whole_runs_share_a_cache_without_a_saved_guest(tmp_path: Path, objects: Path) -> None:
    """One of them boots and saves the guest, the others wait for it; all come to the same, and nothing is left over."""
    cache = linked_cache(tmp_path)
    words = command(objects, "--jobs", "1", "--output", str(tmp_path / "runs"))
    runs = [
        subprocess.Popen(words, env=environment(tmp_path, COREMATRIX_CACHE=str(cache)), cwd=ROOT,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(10)
    ]  # fmt: skip
    said = [each.communicate() for each in runs]
    assert [each.returncode for each in runs] == [0] * 10, said
    found = [json.loads(out)["cells"] for out, _ in said]
    assert [[(cell["status"], cell["start"], cell["notes"]) for cell in cells] for cells in found] == [
        [("passed", "restored", [])] * 2
    ] * 10
    verdicts = [[[prog["verifier"]["processed_insns"] for prog in cell["progs"]] for cell in cells] for cells in found]
    assert verdicts == [verdicts[0]] * 10
    assert len(list((cache / "trees" / "guests").iterdir())) == 1
    assert not [path for path in (cache / "tmp").rglob("*") if path.is_file() and path.name != "lock"]


def test_a_guest_sees_nothing_of_its_host() -> None:
    """No network but its own loopback, no disk, no directory, no way to the hypervisor's sockets."""
    script = """
import os, _socket
print(sorted(os.listdir("/sys/class/net")))
print(sorted(name for name in os.listdir("/sys/block") if not name.startswith(("loop", "ram"))))
types = {line.split()[2] for line in open("/proc/mounts")}
print(sorted(types & {"9p", "virtiofs", "nfs", "cifs", "fuse", "ext4", "vfat", "iso9660"}))
for family, address in ((_socket.AF_INET, ("10.0.2.2", 22)), (_socket.AF_VSOCK, (2, 22))):
    try:
        _socket.socket(family, _socket.SOCK_STREAM).connect(address)
        print("connected")
    except OSError as error:
        print("refused")
"""
    kernel = guests.kernel(KERNEL)
    session = backends.open_session(kernel, guests.options(kernel))
    said = bytearray()
    try:
        todo = execution.Command(argv=("python3", "-c", script), files=())
        done = execution.run(session, todo, seconds=120, on_output=lambda _stream, data: said.extend(data))
    finally:
        session.close()
    assert done.code == 0, said
    assert said.decode().splitlines() == ["['lo']", "[]", "[]", "refused", "refused"]


def test_a_qemu_that_is_killed_says_by_what(tmp_path: Path, objects: Path) -> None:
    another_qemu(tmp_path, f"'--version' in words or os.kill(os.getpid(), {signal.SIGSEGV.value})")
    status, (cell,), _ = run(tmp_path, command(objects / "sizes.bpf.o", "--cold", "--jobs", "1"))
    assert (status, cell["status"]) == (7, "crashed")
    assert "QEMU was killed by SIGSEGV" in cell["reason"]
