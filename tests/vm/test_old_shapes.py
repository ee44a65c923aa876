"""Old kernels that we do not have, told by a real one shaped like them: Linux 6.1 with old_shapes/bpf_shape.patch,
whose bpf(2) and verifier answer as 4.4's, 4.6's, ... do (`bpf_shape=4.4` on its command line). On demand.

COREMATRIX_LINUX names a clean tree of 6.1 (Debian's linux-source-6.1 will do): it is copied beside itself, patched and
built there, once (half an hour of CPU). The expected verdicts are those of booted 4.4.178, 4.6.2, 4.9.154 and 4.19.48,
and of 4.15.18's source; docs/old-kernels.md says what the stand-in shows and what it cannot.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import old_types
from tests.support.objects import PROGRAMS, compile_object

pytestmark = [pytest.mark.vm, pytest.mark.ondemand]

ROOT = Path(__file__).parents[2]
PATCH = Path(__file__).parent / "old_shapes" / "bpf_shape.patch"
FRAGMENTS = ("guest", "bpf", "small", "no-inet", "btf")
OBJECTS = ("cpu_time", "start_time", "task_state", "thread_fsbase", "thread_fsbase_else")
GONE, THERE = ("poisoned", "eliminated"), ("resolved", "live")
L, R, C = "loaded", "rejected", "crashed"
# What the kernels themselves made of: a guard for every access; `if (new) ... else`; `if (old) ... else`.
VERDICTS = {
    "4.4": (L, L, R), "4.6": (C, C, R), "4.8": (C, R, C), "4.9": (L, R, L), "4.15": (L, R, L), "4.19": (L, L, L),
    "5.4": (L, L, L),
}  # fmt: skip
KEEP_DEAD_CODE = {"4.6", "4.8"}  # 4.8 was not booted: as 4.6, with the field's new name


def _run(*words: object, cwd: Path | None = None) -> None:
    subprocess.run([str(word) for word in words], cwd=cwd, check=True, capture_output=True)


def _shaped() -> Path:
    """The patched kernel's vmlinux, built beside the tree if it is not there."""
    given = os.environ.get("COREMATRIX_LINUX")
    if given is None:
        pytest.skip("COREMATRIX_LINUX names no kernel tree")
    tree = Path(f"{given.rstrip('/')}-old-shapes")
    vmlinux = tree / "vmlinux"
    if not vmlinux.exists() or vmlinux.stat().st_mtime < PATCH.stat().st_mtime:
        shutil.rmtree(tree, ignore_errors=True)
        _run("cp", "-a", "--reflink=auto", given, tree)
        _run("patch", "-p1", "-i", PATCH, cwd=tree)
        _run("make", "-s", "tinyconfig", cwd=tree)
        with (tree / ".config").open("a") as config:
            config.writelines((ROOT / "kernels.d" / f"{name}.config").read_text() for name in FRAGMENTS)
        _run("make", "-s", "olddefconfig", cwd=tree)
        _run("nice", "-n", 10, "make", "-s", f"-j{os.cpu_count()}", "vmlinux", cwd=tree)
    return vmlinux


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a user's `corematrix run` of the programs for old kernels comes to, on each shape."""
    vmlinux, place = _shaped(), tmp_path_factory.mktemp("shapes")
    # Such kernels have no BTF: the section is called otherwise, so that nobody finds it.
    _run("objcopy", "-g", "--rename-section", ".BTF=.none", vmlinux, place / "vmlinux")
    (place / "config").write_bytes((vmlinux.parent / ".config").read_bytes())
    matrix = yaml.safe_load((ROOT / "kernels.yaml").read_text())
    matrix["kernels"] = [_row(version, place) for version in VERDICTS]
    (place / "kernels.yaml").write_text(yaml.safe_dump(matrix))
    for name in OBJECTS:
        compile_object(PROGRAMS / f"{name}.bpf.c", place / f"{name}.bpf.o", "-D__TARGET_ARCH_x86", "-mcpu=v1")
    words = ["run", *(f"{name}.bpf.o" for name in OBJECTS), "--json", "run.json"]
    words += [word for version in VERDICTS for word in ("-k", _id(version))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "harness.cli", *words], cwd=place, env=env, check=False, text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, Any] = {**json.loads((place / "run.json").read_text()), "said": done.stdout}
    return found


def _id(version: str) -> str:
    return f"shape-{version}-amd64"


def _row(version: str, place: Path) -> dict[str, Any]:
    (place / f"{version}.btf.o").write_bytes(old_types.btf_of(version))
    source = {"kind": "path", "vmlinuz": "vmlinux", "config": "config"}
    return {"id": _id(version), "arch": "x86_64", "variant": "shape", "source": source, "btf": f"{version}.btf.o",
            "kernel_args": [f"bpf_shape={version}"]}  # fmt: skip


def _prog(run: dict[str, Any], version: str, name: str) -> dict[str, Any]:
    progs = [prog for cell in run["cells"] if cell["kernel"]["id"] == _id(version) for prog in cell["progs"]]
    (prog,) = (prog for prog in progs if prog["name"] == name)
    return dict(prog)


def _ledger(prog: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Field -> (outcome, liveness) of what is read."""
    return {relo["local_spec"].partition("struct ")[2].split(" ")[0]: (relo["outcome"], relo["liveness"])
            for relo in prog["core_relos"] if relo["kind"] == "byte_off"}  # fmt: skip


@pytest.mark.parametrize("version", VERDICTS)
def test_the_verdicts_are_those_of_the_kernels(run: dict[str, Any], version: str) -> None:
    names = ("thread_fsbase", "fsbase_first", "fs_first")
    assert tuple(_prog(run, version, name)["verdict"] for name in names) == VERDICTS[version]


@pytest.mark.parametrize("version", [version for version in VERDICTS if version not in KEEP_DEAD_CODE])
def test_the_ledger_is_that_of_the_types(run: dict[str, Any], version: str) -> None:
    for program, was, now in (
        ("thread_fsbase", "task_struct___before_4_7.thread.fs", "task_struct.thread.fsbase"),
        ("start_time", "task_struct___before_5_5.real_start_time", "task_struct.start_boottime"),
        ("state_each", "task_struct___before_5_14.state", "task_struct.__state"),
    ):
        found = _ledger(_prog(run, version, program))
        names = was.rpartition(".")[2], now.rpartition(".")[2]
        renamed = old_types.release(version) >= old_types.RENAMES[names]
        assert (found[was], found[now]) == ((GONE, THERE) if renamed else (THERE, GONE)), program


def test_a_kernel_that_keeps_dead_code_dies_of_guarded_poison(run: dict[str, Any]) -> None:
    """And says so, program by program; the others are judged."""
    prog = _prog(run, "4.6", "thread_fsbase")
    advice, *report = prog["explanation"]
    assert "task_struct.thread.fsbase is poisoned here" in advice
    assert report[0].startswith("BUG: kernel NULL pointer dereference")
    assert any("do_misc_fixups" in line for line in report)
    assert {relo["outcome"] for relo in prog["core_relos"]} == {"resolved", "poisoned"}
    assert _prog(run, "4.6", "fs_first")["verdict"] == R


def test_a_kernel_that_dies_of_the_object_it_is_warmed_with_is_saved_without(run: dict[str, Any]) -> None:
    """4.8 has the helper that the object calls, and 4.6 refuses it for that. Restored, it was saved; the note on how
    is the run's that saved it, which may be an earlier one's.
    """
    cells = [cell for cell in run["cells"] if cell["kernel"]["id"] == _id("4.8")]
    assert {cell["start"] for cell in cells} == {"restored"}


@pytest.mark.parametrize(
    ("version", "program"), [("4.4", "fs_first"), ("4.9", "fsbase_first"), ("4.15", "fsbase_first")]
)
def test_the_textbook_form_is_refused_with_the_reason(run: dict[str, Any], version: str, program: str) -> None:
    said = " ".join(_prog(run, version, program)["explanation"])
    assert "this verifier walks both sides of a comparison of constants" in said
    assert "else if (bpf_core_field_exists(" in said


def test_what_was_done_without_is_listed(run: dict[str, Any]) -> None:
    progs = {version: _prog(run, version, "thread_fsbase") for version in VERDICTS}
    done = {version: {item["name"] for item in prog["adaptations"]} for version, prog in progs.items()}
    assert done["4.4"] == done["4.9"] == {"no_btf_load", "no_prog_name", "no_probe_read_kernel"}
    assert done["4.15"] == {"no_btf_load", "no_probe_read_kernel"}
    assert done["4.19"] == {"btf_sanitised", "no_probe_read_kernel"}
    assert done["5.4"] == {"btf_sanitised", "no_probe_read_kernel"}
    assert "constants_folded" in {item["name"] for item in _prog(run, "4.4", "cpu_time_by_version")["adaptations"]}


def test_no_prediction_is_contradicted(run: dict[str, Any]) -> None:
    """The verifier was asked how it decides branches: what its BTF suggests does not count. The 5.4 shape reads frozen
    maps as 6.1 does and 5.4 did not: not compared.
    """
    cells = [cell for cell in run["cells"] if cell["kernel"]["id"] != _id("5.4")]
    assert sum(cell["prediction"]["compared"] for cell in cells) > 100
    assert [row for cell in cells for row in cell["prediction"]["disagreements"]] == []
