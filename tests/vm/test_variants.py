"""Two variants of one kernel tree, built and booted for real: the ledger shows what the switch takes away, and the
report names the switch. On demand: COREMATRIX_LINUX names a clean tree of 6.1 (Debian's linux-source-6.1 will do).

A variant takes half an hour of CPU; what is built stays in the cache (COREMATRIX_CACHE, else the user's).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.objects import PROGRAMS, compile_object

pytestmark = [pytest.mark.vm, pytest.mark.ondemand]

ROOT = Path(__file__).parents[2]
WITH, WITHOUT = "tiny-6.1-amd64", "tiny-6.1-noio-amd64"
FRAGMENTS = ["guest", "bpf", "small", "no-inet"]
FIELD = "task_struct.ioac.read_bytes"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a user's `corematrix run` of io_accounting on both variants comes to."""
    tree = os.environ.get("COREMATRIX_LINUX")
    if tree is None:
        pytest.skip("COREMATRIX_LINUX names no kernel tree")
    place = tmp_path_factory.mktemp("variants")
    matrix = yaml.safe_load((ROOT / "kernels.yaml").read_text())
    matrix["kernels"] = [_row(WITH, tree), _row(WITHOUT, tree, "no-task-io-accounting")]
    (place / "kernels.yaml").write_text(yaml.safe_dump(matrix))
    compile_object(PROGRAMS / "io_accounting.bpf.c", place / "io_accounting.bpf.o")
    words = ["run", "io_accounting.bpf.o", "-k", "tiny-*", "--json", "run.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "harness.cli", *words], cwd=place, env=env, check=False, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = {**json.loads((place / "run.json").read_text()), "said": done.stdout}
    return found


def _row(identity: str, tree: str, *more: str) -> dict[str, Any]:
    source = {"kind": "tree", "tree": tree, "config": "tinyconfig", "fragments": [*FRAGMENTS, *more]}
    return {"id": identity, "arch": "x86_64", "variant": "tiny", "source": source}


def _relocations(run: dict[str, Any], kernel: str, program: str) -> dict[str, tuple[str, str, Any]]:
    (cell,) = (cell for cell in run["cells"] if cell["kernel"]["id"] == kernel)
    (prog,) = (prog for prog in cell["progs"] if prog["name"] == program)
    assert prog["verdict"] == "loaded"
    return {relo["kind"]: (relo["outcome"], relo["liveness"], relo["new_value"]) for relo in prog["core_relos"]
            if relo["local_spec"].count(FIELD)}  # fmt: skip


def test_with_the_switch_the_field_is_read(run: dict[str, Any]) -> None:
    for program in ("read_bytes_by_config", "read_bytes_by_field"):
        assert _relocations(run, WITH, program)["byte_off"][:2] == ("resolved", "live")
    assert _relocations(run, WITH, "read_bytes_by_field")["field_exists"] == ("resolved", "live", 1)


def test_without_it_the_guards_do_their_work(run: dict[str, Any]) -> None:
    """By the configuration, and by the field: both reads are poison, and both are dead code."""
    for program in ("read_bytes_by_config", "read_bytes_by_field"):
        assert _relocations(run, WITHOUT, program)["byte_off"][:2] == ("poisoned", "eliminated")
    assert _relocations(run, WITHOUT, "read_bytes_by_field")["field_exists"] == ("resolved", "live", 0)


def test_the_report_names_the_switch_and_the_line(run: dict[str, Any]) -> None:
    (suspicion,) = (item for item in run["config_suspects"] if item["field"] == FIELD)
    assert (suspicion["lacking"], suspicion["having"], suspicion["alike"]) == ([WITHOUT], [WITH], True)
    first = suspicion["suspects"][0]
    assert (first["option"], first["here"], first["there"]) == ("CONFIG_TASK_IO_ACCOUNTING", "n", "y")
    assert "include/linux/task_io_accounting.h:" in first["because"]
    said = " ".join(run["said"].split())
    assert f"{FIELD} is missing on {WITHOUT}: config suspect: CONFIG_TASK_IO_ACCOUNTING=n here, =y" in said
