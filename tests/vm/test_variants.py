"""Variants of one kernel tree, built and booted for real: the ledger shows what a switch takes away, and the report
names the switch. On demand: COREMATRIX_LINUX names a clean tree (Debian's linux-source-6.1 and -6.12 will do).

A variant takes half an hour of CPU, less where another one of the tree is built and its switch concerns few files; what
is built stays in the cache (COREMATRIX_CACHE, else the user's).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.objects import PROGRAMS, compile_object

pytestmark = [pytest.mark.vm, pytest.mark.ondemand]

ROOT = Path(__file__).parents[2]
FRAGMENTS = ["guest", "bpf", "small", "no-inet"]
FIELD = "task_struct.ioac.read_bytes"
PIDS = "cgroup_subsys_id::pids_cgrp_id"


@pytest.fixture(scope="module")
def tree() -> Path:
    named = os.environ.get("COREMATRIX_LINUX")
    if named is None:
        pytest.skip("COREMATRIX_LINUX names no kernel tree")
    return Path(named)


def version_of(tree: Path) -> str:
    """`6.12`, by the tree's Makefile."""
    words = dict(re.findall(r"^(VERSION|PATCHLEVEL) = (\d+)", (tree / "Makefile").read_text(), re.MULTILINE))
    return f"{words['VERSION']}.{words['PATCHLEVEL']}"


def run_of(tree: Path, place: Path, name: str, less: str, *more: str) -> dict[str, Any]:
    """What a user's `corematrix run` of a program on the plain variant and on one with a fragment more comes to; the
    kernels' ids are in `plain` and `less`.
    """
    version = version_of(tree)
    plain, other = f"tiny-{version}-amd64", f"tiny-{version}-{less}-amd64"
    matrix = yaml.safe_load((ROOT / "kernels.yaml").read_text())
    matrix["kernels"] = [_row(plain, tree), _row(other, tree, *more)]
    (place / "kernels.yaml").write_text(yaml.safe_dump(matrix))
    compile_object(PROGRAMS / f"{name}.bpf.c", place / f"{name}.bpf.o")
    words = ["run", f"{name}.bpf.o", "-k", "tiny-*", "--json", "run.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "harness.cli", *words], cwd=place, env=env, check=False, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((place / "run.json").read_text())
    return {**found, "said": done.stdout, "plain": plain, "less": other}


@pytest.fixture(scope="module")
def run(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_of(tree, tmp_path_factory.mktemp("noio"), "io_accounting", "noio", "no-task-io-accounting")


def _row(identity: str, tree: Path, *more: str) -> dict[str, Any]:
    source = {"kind": "tree", "tree": str(tree), "config": "tinyconfig", "fragments": [*FRAGMENTS, *more]}
    return {"id": identity, "arch": "x86_64", "variant": "tiny", "source": source}


def _relocations(run: dict[str, Any], kernel: str, program: str) -> dict[str, tuple[str, str, Any]]:
    (cell,) = (cell for cell in run["cells"] if cell["kernel"]["id"] == kernel)
    (prog,) = (prog for prog in cell["progs"] if prog["name"] == program)
    assert prog["verdict"] == "loaded"
    return {relo["kind"]: (relo["outcome"], relo["liveness"], relo["new_value"]) for relo in prog["core_relos"]
            if relo["local_spec"].count(FIELD)}  # fmt: skip


def test_with_the_switch_the_field_is_read(run: dict[str, Any]) -> None:
    for program in ("read_bytes_by_config", "read_bytes_by_field"):
        assert _relocations(run, run["plain"], program)["byte_off"][:2] == ("resolved", "live")
    assert _relocations(run, run["plain"], "read_bytes_by_field")["field_exists"] == ("resolved", "live", 1)


def test_without_it_the_guards_do_their_work(run: dict[str, Any]) -> None:
    """By the configuration, and by the field: both reads are poison, and both are dead code."""
    for program in ("read_bytes_by_config", "read_bytes_by_field"):
        assert _relocations(run, run["less"], program)["byte_off"][:2] == ("poisoned", "eliminated")
    assert _relocations(run, run["less"], "read_bytes_by_field")["field_exists"] == ("resolved", "live", 0)


def test_the_report_names_the_switch_and_the_line(run: dict[str, Any]) -> None:
    (suspicion,) = (item for item in run["config_suspects"] if item["field"] == FIELD)
    assert (suspicion["lacking"], suspicion["having"], suspicion["alike"]) == ([run["less"]], [run["plain"]], True)
    first = suspicion["suspects"][0]
    assert (first["option"], first["here"], first["there"]) == ("CONFIG_TASK_IO_ACCOUNTING", "n", "y")
    assert "include/linux/task_io_accounting.h:" in first["because"]
    said = " ".join(run["said"].split())
    assert f"{FIELD} is missing on {run['less']}: config suspect: CONFIG_TASK_IO_ACCOUNTING=n here, =y" in said


def test_an_enumerator_that_is_missing_names_its_switch(tree: Path, tmp_path: Path) -> None:
    """cgroup_subsys.h makes `pids_cgrp_id` by a macro below `#if IS_ENABLED(CONFIG_CGROUP_PIDS)`; the rest move."""
    found = run_of(tree, tmp_path, "cgroup_subsys", "nopids", "no-cgroup-pids")
    outcomes = {}
    for cell in found["cells"]:
        (prog,) = cell["progs"]
        assert prog["verdict"] == "loaded"
        outcomes[cell["kernel"]["id"]] = {
            relo["kind"]: (relo["outcome"], relo["liveness"], relo["new_value"])
            for relo in prog["core_relos"] if relo["local_spec"].count("pids_cgrp_id")
        }  # fmt: skip
    assert outcomes[found["plain"]]["enumval_exists"] == ("resolved", "live", 1)
    assert outcomes[found["plain"]]["enumval_value"][:2] == ("resolved", "live")
    assert outcomes[found["less"]]["enumval_exists"] == ("resolved", "live", 0)
    assert outcomes[found["less"]]["enumval_value"][:2] == ("poisoned", "eliminated")
    (suspicion,) = (item for item in found["config_suspects"] if item["field"] == PIDS)
    assert (suspicion["lacking"], suspicion["having"]) == ([found["less"]], [found["plain"]])
    first = suspicion["suspects"][0]
    assert (first["option"], first["here"], first["there"]) == ("CONFIG_CGROUP_PIDS", "n", "y")
