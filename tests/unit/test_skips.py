"""A test that skips says why; where ci/test has provided what it lacks, that is a failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TESTS = """
import pytest

def test_there(): pass

@pytest.mark.skipif(True, reason="qemu-system-x86_64 is not installed")
def test_tool(): pass

def test_kernel():
    pytest.skip("debian-6.1-cloud-amd64 cannot be had: 404 Not Found")

def test_material():
    pytest.skip("/work/shared is not there")

@pytest.mark.xfail(reason="not installed")
def test_expected(): assert 0
"""


@pytest.mark.parametrize(
    ("everything", "counts"),
    [("", "1 passed, 3 skipped, 1 xfailed"), ("1", "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error")],
)
def test_what_ci_provides_is_no_reason_to_skip(tmp_path: Path, everything: str, counts: str) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (tmp_path / "test_it.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:corematrix", str(tmp_path)]
    environment = {**os.environ, "COREMATRIX_EVERYTHING": everything}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    assert f"{counts} in" in done.stdout
    if everything:
        assert "skipped, though ci/test provides that: debian-6.1-cloud-amd64 cannot be had: 404" in done.stdout
