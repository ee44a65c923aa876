"""Our files, read by those who define what such a file is (tests/support/oracles.py)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import jsonschema
import pytest

from harness.model.result import RunResult
from harness.report import render
from tests.support import oracles
from tests.support.facts import begun, facts, judged, prog, run_of
from tests.unit.test_report import KERNELS, broken, evil_run, guarded

NASTY = ["plain", "evil", "empty"]
KERNEL = KERNELS[0]


def a_run(which: str) -> RunResult:
    if which == "evil":
        return evil_run()
    return run_of() if which == "empty" else run_of(*(guarded(kernel, 1) for kernel in KERNELS), broken(KERNEL))


@pytest.mark.network
@pytest.mark.parametrize("which", NASTY)
def test_junit_is_valid_by_jenkins_own_schema(tmp_path: Path, which: str) -> None:
    if shutil.which("xmllint") is None:
        pytest.skip("xmllint is not installed (apt-get install libxml2-utils)")
    file = tmp_path / "junit.xml"

    def xmllint(text: str) -> subprocess.CompletedProcess[str]:
        file.write_text(text)
        command = ["xmllint", "--noout", "--schema", oracles.junit_xsd(), file]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    text = render("junit", a_run(which))
    said = xmllint(text)
    assert said.returncode == 0, said.stderr
    assert xmllint(text.replace("<testsuites", "<testsuites nonsense='1'")).returncode == 3  # it can say no


@pytest.mark.network
@pytest.mark.parametrize("which", NASTY)
def test_sarif_is_valid_by_its_schema(which: str) -> None:
    schema = jsonschema.Draft202012Validator(json.loads(oracles.sarif_schema().read_text()))
    log = json.loads(render("sarif", a_run(which)))
    schema.validate(log)
    log["runs"][0]["tool"]["driver"].pop("name")
    assert not schema.is_valid(log)


def figures(insns: int, *, loaded: bool = True) -> RunResult:
    stats = {"processed_insns": insns, "total_states": 3, "peak_states": 2, "max_states_per_insn": 1, "stack_depth": 24,
             "verification_usec": 99}  # fmt: skip
    answer = facts([prog("first", verifier=stats), prog("second", loaded=loaded, verifier=stats)])
    settings = (("a", "1"), ("b", "x,y z"))
    return run_of(*(judged(answer, cell=begun(kernel, "tool", settings=settings)) for kernel in KERNELS[:2]))


def compared(tmp_path: Path, base: RunResult, new: RunResult) -> list[list[str]]:
    """Rows of `veristat -C`, as it prints CSV itself."""
    for name, run in (("base.csv", base), ("new.csv", new)):
        (tmp_path / name).write_text(render("csv", run))
    columns = "file,prog,verdict,insns,states,max_states_per_insn"
    command = [oracles.veristat(), "-o", "csv", "-e", columns, "-C", "base.csv", "new.csv"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    header, *rows = [line.split(",") for line in done.stdout.splitlines()]
    assert header[:2] == ["file_name", "prog_name"]
    return rows


def test_the_real_veristat_compares_two_of_ours(tmp_path: Path) -> None:
    rows = compared(tmp_path, figures(100), figures(150, loaded=False))
    assert [row[:5] for row in rows if "5.10" in row[0]] == [
        ["debian-5.10-cloud-amd64/tool[a=1_b=x_y_z]@python", "first", "success", "success", "MATCH"],
        ["debian-5.10-cloud-amd64/tool[a=1_b=x_y_z]@python", "second", "success", "failure", "MISMATCH"],
    ]
    assert {tuple(row[5:8]) for row in rows} == {("100", "150", "+50 (+50.00%)")}
    assert len(rows) == 4


@pytest.mark.ondemand
@pytest.mark.network
def test_veristat_can_be_built(tmp_path: Path) -> None:
    oracles.build_veristat()
    test_the_real_veristat_compares_two_of_ours(tmp_path)
