"""A run in two shards, merged, against the same run in one piece, with real guests; and what else such a run leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.errors import GuestLostError
from harness.session import JudgeRequest, Session
from tests.support import guests

pytestmark = [pytest.mark.vm, pytest.mark.network]

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ("debian-6.1-cloud-amd64", "debian-5.10-cloud-amd64")
OBJECTS = ("task_state", "exe_name")
CIRCUMSTANCES = {"seconds", "started", "verification_usec", "log_excerpt", "notes", "attempts"}


@pytest.fixture
def objects() -> list[str]:
    paths = [ROOT / f"programs/build/{name}.bpf.o" for name in OBJECTS]
    if not all(path.is_file() for path in paths):
        pytest.skip("programs/ is not built (make -C programs)")
    return [str(path) for path in paths]


def start(*words: str, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "harness.cli", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def run(*words: str, cwd: Path) -> None:
    process = start(*words, cwd=cwd)
    said, _ = process.communicate(timeout=500)
    assert process.returncode == 0, said


def guests_of(parent: int) -> int:
    """How many QEMUs this process has started and not seen end."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
        except OSError:
            continue
        fields = rest.split()
        count += name.startswith("qemu-system") and fields[0] != "Z" and int(fields[1]) == parent
    return count


def essence(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: essence(item) for name, item in value.items() if name not in CIRCUMSTANCES}
    return [essence(item) for item in value] if isinstance(value, list) else value


def test_two_shards_merged_are_the_run_in_one_piece(objects: list[str], tmp_path: Path) -> None:
    kernels = [word for kernel in KERNELS for word in ("-k", kernel)]
    words = ["run", *objects, *kernels, "--matrix", str(ROOT / "kernels.yaml"), "--cold", "--quiet"]
    whole = start(*words, "--output", "whole", "--json", "whole.json", cwd=tmp_path)
    most = 0
    while whole.poll() is None:
        most = max(most, guests_of(whole.pid))
        time.sleep(0.05)
    said, _ = whole.communicate()
    assert whole.returncode == 0, said
    assert most == min(2, len(os.sched_getaffinity(0)))  # --jobs is as many as there are cores, and no more
    for number in ("1", "2"):
        run(*words, "--shard", f"{number}/2", "--output", f"shard-{number}", cwd=tmp_path)
    shards = [str(path) for path in sorted(tmp_path.glob("shard-*/*Z"))]
    run("merge", *shards, "--output", "merged", "--json", "merged.json", cwd=tmp_path)
    found, expected = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("merged", "whole"))
    assert essence(found) == essence(expected)
    assert found["notes"] == expected["notes"]
    (stored,) = (tmp_path / "merged").iterdir()
    for cell in found["cells"]:
        assert all((stored / prog["verifier"]["log"]).is_file() for prog in cell["progs"])


def test_what_a_dying_guest_said_is_handed_on_once() -> None:
    """Guests are booted `quiet`: a console has something to keep when a kernel has something to say."""
    kernel = guests.kernel(KERNELS[0])
    said: list[str] = []
    options = guests.options(kernel, cold=True, sources=guests.faulty_sources(), on_console=said.append)
    with Session(kernel, options) as session, pytest.raises(GuestLostError) as lost:
        session.judge(JudgeRequest(name="panic"), b"", lambda _message: None)
    (console,) = said
    assert "Kernel panic" in console
    assert lost.value.console_tail in console
