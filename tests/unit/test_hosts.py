"""Hosts that fail: a full disk, a cache that cannot be written, odd places and terminals, QEMU that is not what it
should be, no network. A run ends with the right status, says what is wrong and where, and loses nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from tests.support import fake_run, forked

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "programs" / "build"
KERNEL = "debian-6.1-cloud-amd64"


def fake(objects: Path, output: Path, *more: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A run of three cells without guests; in a process of its own where the interpreter has to start anew."""
    words = [
        os.devnull, "0", "run", str(objects), "-k", KERNEL, "-k", "debian-5.10-cloud-amd64", "--output", str(output),
        *more,
    ]  # fmt: skip
    own = {**os.environ, "PYTHONPATH": str(ROOT), "COREMATRIX_CACHE": str(objects.parent / "cache"), **environment}
    own = {name: value for name, value in own.items() if value != "-"}
    if not any(name.startswith(_AT_START) for name in environment):
        return forked.run(lambda each: fake_run.main(*each), words, cwd=objects.parent, env=own)
    return subprocess.run([sys.executable, "-m", "tests.support.fake_run", *words], cwd=objects.parent, env=own,
                          capture_output=True, check=False, timeout=120)  # fmt: skip


# What the interpreter looks at when it starts.
_AT_START = ("PYTHON", "LC_", "LANG")


@pytest.fixture
def objects(tmp_path: Path) -> Path:
    if not (PROGRAMS / "sizes.bpf.o").is_file():
        pytest.skip("programs/ is not built (make -C programs)")
    directory = tmp_path / "objects"
    directory.mkdir()
    for name in ("sizes.bpf.o", "user_read.bpf.o"):
        shutil.copy(PROGRAMS / name, directory)
    return directory


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs root, to mount a small tmpfs")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def stored(output: Path) -> dict[str, Any]:
    (path,) = output.glob("*/run.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def fill(place: Path, leave: int) -> None:
    """Take all of a file system but `leave` bytes."""
    (place / "ballast").write_bytes(b"x" * (shutil.disk_usage(place).free - leave))


@pytest.mark.parametrize("room", [0, 4096, 8192, 16384, 28672])
def test_a_disk_that_fills_up_at_any_stage_is_told_and_the_run_goes_on_when_there_is_room(
    objects: Path, small: Path, room: int
) -> None:
    fill(small, room)
    done = fake(objects, small / "runs")
    said = done.stderr.decode()
    assert done.returncode == 4, said
    assert "No space left on device" in said
    assert "Traceback" not in said
    assert "--output DIR" in said
    for path in small.rglob("*.json"):
        json.loads(path.read_bytes())  # what has a name is whole
    (small / "ballast").unlink()
    begun = list(small.glob("runs/*/plan.json"))
    if begun:
        assert b"passed" in done.stdout or b"loaded" in done.stdout, "the table comes although nothing can be stored"
        assert fake(objects, small / "runs", "--resume", "latest").returncode == 0
        assert len(stored(small / "runs")["cells"]) == 4


def test_a_full_cache_does_not_cost_what_was_found_out(objects: Path, small: Path) -> None:
    fill(small, 0)
    done = fake(objects, objects.parent / "runs", COREMATRIX_CACHE=str(small / "cache"))
    assert done.returncode in {0, 6}, done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0 or b"No space left" in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "latin-1"},
        {"COLUMNS": "20"},
        {"COLUMNS": "1"},
        {"COLUMNS": "0"},
        {"TERM": "-", "LANG": "-", "LC_ALL": "-"},
        {"HOME": "-"},
        {"HOME": "/nonexistent"},
        {"TZ": "Pacific/Kiritimati"},
        {"PATH": "/nonexistent"},
    ],
    ids=str,
)
def test_odd_surroundings_change_nothing(objects: Path, environment: dict[str, str]) -> None:
    done = fake(objects, objects.parent / "runs", **environment)
    assert done.returncode == 0, done.stderr.decode()
    assert stored(objects.parent / "runs")["cells"][0]["status"] == "passed"
    assert b"sizes" in done.stdout or "COLUMNS" in environment


@pytest.mark.parametrize("home", ["-", "/nonexistent/home"])
def test_without_a_home_the_cache_says_where_it_wants_to_be(objects: Path, home: str) -> None:
    done = fake(objects, objects.parent / "runs", HOME=home, COREMATRIX_CACHE="-", XDG_CACHE_HOME="-")
    assert b"Traceback" not in done.stderr
    assert done.returncode in {0, 6}, done.stderr.decode()


@pytest.mark.parametrize("name", ["with space", "grün ☃", "new\nline", "quote'\"", "-dash", "\udcff"], ids=ascii)
def test_paths_of_any_name(tmp_path: Path, objects: Path, name: str) -> None:
    place = tmp_path / name
    shutil.copytree(objects, place / "objects")
    done = fake(place / "objects", place / "runs")
    assert done.returncode == 0, done.stderr.decode()
    run = stored(place / "runs")
    assert {cell["status"] for cell in run["cells"]} == {"passed"}


@pytest.mark.parametrize("columns", [20, 1])
def test_a_terminal_of_few_columns(objects: Path, columns: int) -> None:
    """A real one, with its progress redrawn: nothing is wider than it, and every name can still be put together."""
    words = [sys.executable, "-m", "tests.support.fake_run", os.devnull, "0", "run", str(objects), "-k", KERNEL,
             "--output", str(objects.parent / "runs")]  # fmt: skip
    own = {**os.environ, "PYTHONPATH": str(ROOT), "COREMATRIX_CACHE": str(objects.parent / "cache"), "TERM": "xterm"}
    own.pop("COLUMNS", None)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with subprocess.Popen(words, env=own, cwd=objects.parent, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        said = bytearray()
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while data := os.read(ours, 1 << 16):
                said += data
    os.close(ours)
    assert process.returncode == 0, said
    assert b"Traceback" not in said
    assert len(stored(objects.parent / "runs")["cells"]) == 2
    if columns == 20:
        assert b"sizes" in said
        assert b"2 passed" in said.replace(b"\r\n", b" ")


def test_output_that_goes_nowhere(objects: Path) -> None:
    """`> /dev/full`: what was found out is stored all the same, and the status says that something is wrong."""
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "tests.support.fake_run", os.devnull, "0", "run", str(objects), "-k", KERNEL,
                   "--output", str(objects.parent / "runs"), "--quiet"]  # fmt: skip
        own = {**os.environ, "PYTHONPATH": str(ROOT), "COREMATRIX_CACHE": str(objects.parent / "cache")}
        done = subprocess.run(command, env=own, stdout=full, stderr=subprocess.PIPE, check=False, cwd=objects.parent)
    assert b"Traceback" not in done.stderr
    assert done.returncode != 0
    assert len(stored(objects.parent / "runs")["cells"]) == 2


# --- QEMU that is not what it should be


def real(tmp_path: Path, path: str, *more: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[bytes]:
    """A run with the cache of this machine and whatever QEMU `path` has."""
    if not PROGRAMS.joinpath("sizes.bpf.o").is_file():
        pytest.skip("programs/ is not built (make -C programs)")
    words = ["run", str(PROGRAMS / "sizes.bpf.o"), "-k", KERNEL, "--output", str(tmp_path / "runs"), "--timeout", "5",
             "--cold", *more]  # fmt: skip
    own = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    if not prefix:
        return forked.run(cli.main, words, cwd=tmp_path, env=own)
    command = [*prefix, sys.executable, "-m", "harness.cli", *words]
    return subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, check=False, timeout=200)


def cached() -> None:
    """Skips unless the kernel and the guest's packages are in the cache already."""
    from harness import config, kernels
    from harness.apt.guest import fetch_guest
    from harness.apt.repository import AptOptions
    from harness.errors import CorematrixError
    from harness.store import Store

    matrix = config.load_matrix(ROOT / "kernels.yaml")
    spec = next(kernel for kernel in matrix.kernels if kernel.id == KERNEL)
    offline = AptOptions(offline=True)
    try:
        with Store.default() as store:
            kernels.provide(spec, store, matrix.lock, lambda _line: None, options=offline)
            fetch_guest(matrix.guest, spec.arch, store, matrix.lock, lambda _line: None, options=offline)
    except CorematrixError as error:
        pytest.skip(f"{KERNEL} is not in the cache ({error.message})")


_VERSION = "case $* in *--version*) echo 'QEMU emulator version 9.9.{}';; *)"
QEMUS = {
    # what it does | cell status, exit status, what the reason says
    "echo 'QEMU emulator version 0.14.0'; exit 0": ("crashed", 7, "QEMU 5.0 or newer is needed, this is 0.14.0"),
    f"{_VERSION.format(1)} echo 'cannot allocate memory' >&2; exit 1;; esac": ("crashed", 7, "cannot allocate memory"),
    f"{_VERSION.format(2)} kill -9 $$;; esac": ("crashed", 7, "QEMU ended"),
    f"{_VERSION.format(3)} kill -SEGV $$;; esac": ("crashed", 7, "QEMU ended"),
    "echo nonsense": ("error", 4, "says no version"),
    "exit 127": ("error", 4, "qemu-system-x86_64"),
}  # fmt: skip


@pytest.mark.parametrize("script", QEMUS)
def test_a_qemu_that_is_too_old_crashes_or_is_killed(script: str, tmp_path: Path) -> None:
    cached()
    status, exit_status, said = QEMUS[script]
    binary = tmp_path / "bin" / "qemu-system-x86_64"
    binary.parent.mkdir()
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    done = real(tmp_path, f"{binary.parent}:/usr/bin:/bin")
    assert b"Traceback" not in done.stderr
    assert done.returncode == exit_status, done.stderr
    (cell,) = stored(tmp_path / "runs")["cells"]
    assert (cell["status"], said in cell["reason"]) == (status, True), cell["reason"]


@pytest.fixture
def complaining_qemu(tmp_path: Path) -> str:
    """A path with a QEMU that complains for ever."""
    cached()
    binary = tmp_path / "bin" / "qemu-system-x86_64"
    binary.parent.mkdir()
    binary.write_text(f"#!/bin/sh\n{_VERSION.format(4)} exec yes 'no good' >&2;; esac\n")
    binary.chmod(0o755)
    return f"{binary.parent}:/usr/bin:/bin"


def test_without_a_directory_for_temporary_files_and_with_a_qemu_that_complains_for_ever(
    tmp_path: Path, complaining_qemu: str
) -> None:
    """/tmp full, and more: a run needs none. What QEMU says is kept in memory, and no more than 64 KiB of it."""

    def without_tmp(words: list[str]) -> int:
        tempfile.tempdir = "/nonexistent"
        return cli.main(words)

    words = ["run", str(PROGRAMS / "sizes.bpf.o"), "-k", KERNEL, "--output", str(tmp_path / "runs"), "--cold"]
    done = forked.run(without_tmp, words, cwd=tmp_path, env={**os.environ, "PATH": complaining_qemu})
    assert b"Traceback" not in done.stderr
    assert done.returncode == 7, done.stderr
    (cell,) = stored(tmp_path / "runs")["cells"]
    assert "QEMU: no good; no good" in cell["reason"]
    assert len(cell["reason"]) < 4000


def test_without_qemu_the_package_is_named(tmp_path: Path) -> None:
    cached()
    (tmp_path / "bin").mkdir()
    done = real(tmp_path, str(tmp_path / "bin"))
    assert done.returncode == 4
    (cell,) = stored(tmp_path / "runs")["cells"]
    assert "qemu-system-x86_64 is not installed" in cell["reason"]
    assert "apt-get install qemu-system-x86" in cell["reason"]


@pytest.mark.vm
def test_with_everything_cached_no_network_is_needed(tmp_path: Path) -> None:
    """In a network namespace without even a route: a whole run, from the command to the verdict."""
    if os.geteuid() or subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs root, for a network namespace")
    cached()
    done = real(tmp_path, os.environ["PATH"], "--timeout", "200", prefix=("unshare", "-n"))
    assert done.returncode == 0, done.stderr
    (cell,) = stored(tmp_path / "runs")["cells"]
    assert cell["status"] == "passed"


def test_an_object_that_changes_during_a_run_is_noticed(objects: Path) -> None:
    from harness.errors import InfrastructureError
    from harness.executor.judging import bytes_of
    from harness.objects import find_objects

    (found,) = find_objects([objects / "sizes.bpf.o"])
    assert bytes_of(found) == found.path.read_bytes()
    shutil.copy(PROGRAMS / "user_read.bpf.o", found.path)
    with pytest.raises(InfrastructureError, match="has changed since the run began"):
        bytes_of(found)
