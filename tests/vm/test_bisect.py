"""`corematrix bisect` on real kernels, against the kernel's own history: task_struct.state became __state in 5.14
(2f064a59a11f), so it is 5.10 that has the one and everything younger in the matrix that has the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import guests
from tests.support.objects import PROGRAMS, compile_object

pytestmark = pytest.mark.vm

# Three kernels of the gate are asked, which every run of the vm tests has in its cache: seconds.
OLD, YOUNG = "debian-5.10-cloud-amd64", "debian-6.12-cloud-amd64"


def bisect(tmp_path: Path, good: str, bad: str, *more: str) -> subprocess.CompletedProcess[str]:
    for identity in (OLD, YOUNG):
        guests.kernel(identity)
    built = compile_object(PROGRAMS / "task_state.bpf.c", tmp_path / "task_state.bpf.o")
    command = [
        sys.executable, "-m", "harness.cli", "bisect", str(built), "--prog", "state_each", "--rows-only",
        "--good", good, "--bad", bad, "--output", str(tmp_path / "runs"), "--json", str(tmp_path / "found.json"), *more,
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        pytest.param(OLD, YOUNG, id="forwards"),
        pytest.param(YOUNG, OLD, id="backwards", marks=pytest.mark.ondemand),
    ],
)
def test_the_rename_of_5_14_is_found_among_the_rows(good: str, bad: str, tmp_path: Path) -> None:
    done = bisect(tmp_path, good, bad, "--field", "__state field_exists")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    pair = [found["last_good"], found["first_changed"]]
    if good == YOUNG:
        pair.reverse()
    assert pair[0]["kernel"] == OLD
    assert pair[1]["kernel"] == "debian-6.1-cloud-amd64"
    assert [list(end["fate"].values()) for end in pair] == [["resolved = 0"], ["resolved = 1"]]
    assert found["asked"] == 3


@pytest.mark.ondemand
def test_two_kernels_that_do_not_differ_are_no_bisection(tmp_path: Path) -> None:
    done = bisect(tmp_path, OLD, YOUNG, "--field", "task_struct.no_such_field")
    assert done.returncode == 3
    assert "take two kernels that differ" in done.stderr
