"""Load without guests: hundreds of cells, objects of 20 MB, a thousand programs. Memory stays what docs/reliability.md
says, nothing is lost, the order is the plan's.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.guest.bpf_object import BpfObject
from tests.unit.test_fuzz import cost, elf_file, symbols

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "programs" / "build" / "sizes.bpf.o"
KERNELS = ("debian-6.1-cloud-amd64", "debian-5.10-cloud-amd64")

pytestmark = pytest.mark.skipif(not SOURCE.is_file(), reason="programs/ is not built (make -C programs)")


_BETWEEN = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def run(place: Path, *kernels: str) -> tuple[list[dict[str, Any]], int]:
    """The cells of a run without guests over place/objects, and the most memory its process had, in MiB."""
    chosen = [word for kernel in kernels for word in ("-k", kernel)]
    command = [sys.executable, "-m", "tests.support.fake_run", os.devnull, "0", "run", str(place / "objects"), *chosen,
               "--quiet", "--output", str(place / "runs")]  # fmt: skip
    own = {**os.environ, "PYTHONPATH": str(ROOT), "COREMATRIX_CACHE": str(place / "cache")}
    # A process counts what its parent held when it was forked: a small one stands between pytest's worker and the run.
    between = [sys.executable, "-c", _BETWEEN, *command]
    done = subprocess.run(between, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (stored,) = (place / "runs").glob("*/run.json")
    return json.loads(stored.read_text())["cells"], int(done.stdout) // 1024


def test_five_hundred_objects_are_all_there_in_order_and_cost_little(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    for number in range(500):
        shutil.copy(SOURCE, tmp_path / "objects" / f"o{number:03}.bpf.o")
    cells, memory = run(tmp_path, *KERNELS)
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids) == 1000
    by_kernel = [[name for name in ids if name.startswith(kernel)] for kernel in KERNELS]
    assert all(names == sorted(names) for names in by_kernel)
    assert {cell["status"] for cell in cells} == {"passed"}
    assert memory < 150


def test_objects_of_twenty_megabytes_are_held_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "objects").mkdir()
    for number in range(6):
        (tmp_path / "objects" / f"o{number}.bpf.o").write_bytes(SOURCE.read_bytes() + bytes(20 << 20))
    cells, memory = run(tmp_path, KERNELS[0])
    assert len(cells) == 6
    assert memory < 150


def test_a_thousand_programs_in_one_object() -> None:
    code = struct.pack("<BBhi", 0xB7, 0, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    names = b"\0" + b"".join(b"p%04d\0" % number for number in range(1000))
    rows = [(0, 0, 0, 0, 0), *((1 + 6 * number, 0x12, 4, 16 * number, 16) for number in range(1000))]
    data = elf_file([(".strtab", 3, 0, b"", 0, 0, 0), (".names", 3, 0, names, 0, 0, 0),
                     (".symtab", 2, 0, symbols(rows), 2, 1, 24), ("tc", 1, 6, code * 1000, 0, 0, 0)])  # fmt: skip
    assert [prog.name for prog in BpfObject(data, "x", None).entry_progs] == [f"p{number:04}" for number in range(1000)]
    memory, seconds, error = cost(lambda: BpfObject(data, "x", None))
    assert (error, seconds < 2, memory < 20 << 20) == ("", True, True)
