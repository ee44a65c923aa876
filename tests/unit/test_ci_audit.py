"""ci/audit: a package that was not looked up is never said to be safe."""

from __future__ import annotations

import base64
import hashlib
import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCK = "good==1.0 \\\n    --hash=sha256:00\nother-one==2.5 ; python_version < '3.12' \\\n    --hash=sha256:11\n"
GOOD = {"name": "good", "version": "1.0", "vulns": []}
OTHER = {"name": "other-one", "version": "2.5", "vulns": []}
BAD = {**OTHER, "vulns": [{"id": "PYSEC-2099-1", "fix_versions": ["2.6"], "aliases": [], "description": ""}]}
SKIPPED = {"name": "other-one", "skip_reason": "Dependency not found on PyPI and could not be audited"}


def audited(tmp_path: Path, answer: str, status: int = 0) -> subprocess.CompletedProcess[str]:
    """ci/audit over LOCK with a pip-audit that answers this."""
    lock, tool = tmp_path / "some.lock", tmp_path / "pip-audit"
    lock.write_text(LOCK)
    (tmp_path / "answer").write_text(answer)
    tool.write_text(f"#!/bin/sh\ncat {tmp_path / 'answer'}; echo 'no route to host' >&2; exit {status}\n")
    tool.chmod(0o755)
    return subprocess.run([sys.executable, ROOT / "ci" / "audit", lock], env={"PIP_AUDIT": str(tool)},
                          capture_output=True, text=True, check=False)  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "status", "said"),
    [
        ([GOOD, OTHER], 0, "2 pinned packages, 0 wrong, all looked up"),
        ([GOOD, BAD], 1, "WRONG: other-one 2.5: PYSEC-2099-1, mended in 2.6"),
        ([GOOD, SKIPPED], 3, "not checked: other-one: Dependency not found on PyPI"),
        ([GOOD], 3, "not checked: other-one: pip-audit says nothing about it"),
        ([SKIPPED, {**GOOD, "vulns": BAD["vulns"]}], 1, "not checked: other-one"),
    ],
)
def test_what_was_looked_up_and_what_was_not(tmp_path: Path, rows: list[object], status: int, said: str) -> None:
    done = audited(tmp_path, json.dumps({"dependencies": rows, "fixes": []}))
    assert done.returncode == status, done.stdout + done.stderr
    assert said in done.stdout
    assert ("all looked up" in done.stdout) == (SKIPPED not in rows and len(rows) == 2)


def test_a_service_that_cannot_be_reached_is_no_clean_bill(tmp_path: Path) -> None:
    done = audited(tmp_path, "", status=1)
    assert done.returncode == 3
    assert "not checked: some.lock: pip-audit has failed (status 1): no route to host" in done.stdout


def test_without_pip_audit(tmp_path: Path) -> None:
    (tmp_path / "some.lock").write_text(LOCK)
    words = [sys.executable, ROOT / "ci" / "audit", tmp_path / "some.lock"]
    done = subprocess.run(words, env={"PATH": "/nonexistent"}, capture_output=True, text=True, check=False)
    assert (done.returncode, "pip install pip-audit" in done.stdout) == (3, True)


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("ci_audit", str(ROOT / "ci" / "audit"))
    spec = importlib.util.spec_from_loader("ci_audit", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_an_installed_file_that_was_changed_is_found(script: ModuleType, tmp_path: Path) -> None:
    digest = base64.urlsafe_b64encode(hashlib.sha256(b"x = 1\n").digest()).decode().rstrip("=")
    (tmp_path / "good.py").write_text("x = 1\n")
    info = tmp_path / "good-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: good\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"good.py,sha256={digest},6\ngood-1.0.dist-info/RECORD,,\n")
    assert list(script.changed({"good": "1.0"}, [str(tmp_path)])) == []
    assert list(script.changed({"good": "1.1"}, [str(tmp_path)])) == ["good: 1.0 is installed, 1.1 is pinned"]
    (tmp_path / "good.py").write_text("x = 2\n")
    assert list(script.changed({"good": "1.0"}, [str(tmp_path)])) == [
        "good: good.py is not what its wheel came with"
    ]


def test_what_runs_these_tests_is_what_its_wheels_came_with(script: ModuleType) -> None:
    """All that is installed of the locks, here and now; its versions are a question of who made this environment."""
    found = script.metadata.distributions()
    pins = {one.metadata["Name"].lower().replace("_", "-"): one.version for one in found}
    names = [name.lower() for lock in script.LOCKS for name, _ in script._PIN.findall((ROOT / lock).read_text())]
    assert list(script.changed({name: pins[name] for name in names if name in pins})) == []
    assert len(set(names) & set(pins)) > 10
