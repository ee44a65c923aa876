"""`run --loader both` in a real guest: libbpf itself and our loader on one kernel, and one byte of libbpf's altered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness.model.arch import by_debian_name
from tests.support import guests

pytestmark = [pytest.mark.vm, pytest.mark.network]

ROOT = Path(__file__).resolve().parents[2]
KERNEL = "debian-6.1-cloud-amd64"
OBJECT = ROOT / "programs" / "build" / "task_state.bpf.o"


def run(module: str, directory: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Exit status, what was shown, and the JSON."""
    if not OBJECT.is_file():
        pytest.skip("programs/ is not built (make -C programs)")
    stored = directory / "run.json"
    done = subprocess.run(
        [sys.executable, "-m", module, "run", str(OBJECT), "-k", KERNEL, "--loader", "both", "--jobs", "1",
         "--output", str(directory), "--json", str(stored), *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert stored.is_file(), done.stderr
    result: dict[str, Any] = json.loads(stored.read_text())
    jsonschema.validate(result, json.loads((ROOT / "harness" / "report" / "schema.json").read_text()))
    return done.returncode, done.stdout, result


def packaged_libbpf() -> str:
    """The upstream version of the libbpf package that x86_64 guests get: `1:1.1.2-0+deb12u1` -> `1.1.2`."""
    packages = guests.packages(by_debian_name("amd64")).provenance
    (version,) = [package["version"] for package in packages if package["name"] == "libbpf1"]
    return str(version).partition(":")[2].rpartition("-")[0]


def test_both_loaders_judge_and_agree(tmp_path: Path) -> None:
    status, shown, result = run("harness.cli", tmp_path)
    cells = {cell["loader"]: cell for cell in result["cells"]}
    assert status == 0 and set(cells) == {"libbpf", "python"}
    assert {cell["status"] for cell in cells.values()} == {"passed"}
    assert [cell["disagreements"] for cell in cells.values()] == [[], []]
    judge = cells["libbpf"]["loader_version"]
    assert judge == f"libbpf {packaged_libbpf()}"  # with the patch level, which libbpf itself does not tell
    assert cells["python"]["comparison"] == {"loader_version": judge, "reason": None}
    assert f"python and {judge} compared in 1 cells: no disagreement" in shown
    assert all(relo["evidence"] for prog in cells["libbpf"]["progs"] for relo in prog["core_relos"])


def test_one_byte_of_difference_is_shown_and_is_no_pass(tmp_path: Path) -> None:
    status, shown, result = run("tests.support.tampered_run", tmp_path, "--only", f"{KERNEL}/task_state@python")
    (cell,) = result["cells"]
    (row,) = cell["disagreements"]
    assert status == 4
    assert (cell["status"], cell["reason"], row["field"]) == ("error", "loaders_disagree", "after")
    assert row["python"] in shown and row["libbpf"] in shown
