"""Functional tests of an object: how they are read, prepared, run and reported; no guest."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness import report
from harness.backends.execution import Command, Exit, OnOutput
from harness.commands import resume
from harness.errors import ConfigError, GuestLostError, Interrupted
from harness.executor import functional
from harness.model.cell import Cell
from harness.model.expectation import Expectations, expectations_from
from harness.model.plain_json import to_json
from harness.model.result import CellResult, KernelResult, ObjectResult, ProgResult, RunResult, run_from_json
from harness.model.verdict import CellStatus, Verdict
from harness.rundir import RunDirectory
from tests.support import cells as make

HOSTILE = "\x1b[31mred\x1b[0m \u202eevil <script>"


def expectations(*tests: dict[str, Any], where: str = "task_state.yaml") -> Expectations:
    return expectations_from({"tests": list(tests)}, where)


@pytest.fixture
def cell(tmp_path: Path) -> Cell:
    path = tmp_path / "task_state.bpf.o"
    path.write_bytes(b"object")
    found = make.cell()
    return Cell(kernel=found.kernel, object=type(found.object)(name="task_state", path=path, sha256="1" * 64, size=6))


def judged(cell: Cell, verdict: Verdict = Verdict.LOADED, status: CellStatus = CellStatus.PASSED) -> CellResult:
    kernel = KernelResult(id=cell.kernel.id, arch="x86_64", release="6.1.0-50-cloud-amd64")
    of = ObjectResult(name="task_state", path="x", sha256="1" * 64)
    progs = (ProgResult(name="state_each", verdict=verdict, met=True),)
    return CellResult.begin(cell.id, kernel, of, status=status, progs=progs)


class Session:
    """Answers with what it was given, and remembers what it was asked."""

    def __init__(self, *answers: Exit | Exception, output: bytes = b"") -> None:
        self._answers = list(answers)
        self._output = output
        self.commands: list[Command] = []
        self.ended = 0

    def execute(self, command: Command, *, seconds: float, on_output: OnOutput) -> Exit:
        assert seconds == 7
        self.commands.append(command)
        on_output("stdout", self._output)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        self.ended += 1


def run(
    cell: Cell, session: Session, directory: Path, *tests: dict[str, Any], result: CellResult | None = None,
    refuse: str | None = None,
) -> CellResult:  # fmt: skip
    known = {"task_state": expectations(*({"timeout": 7, **test} for test in tests), where=f"{directory}/x.yaml")}
    prepared = functional.prepare([cell], known)
    return functional.run_tests(
        prepared, cell, result or judged(cell), session=lambda: session, end=session.end,
        directory=RunDirectory(directory / "run"), refuse=refuse, on_progress=lambda _message: None,
    )  # fmt: skip


def done(status: int | None, signal: int | None = None) -> Exit:
    return Exit(status=status, signal=signal)


def test_a_test_is_read(tmp_path: Path) -> None:
    (test,) = expectations(
        {"run": "tool --load 'a b'", "files": "tool", "env": {"N": 3, "ON": True}, "kernels": "debian-6.*", "status": 4}
    ).tests
    assert (test.name, test.run, test.files) == ("tool", ("tool", "--load", "a b"), ("tool",))
    assert (test.env, test.timeout, test.status) == ((("N", "3"), ("ON", "true")), 60, 4)
    assert test.covers(make.cell().id, "x86_64")
    assert not test.covers(make.cell("debian-5.10-cloud-amd64").id, "x86_64")


@pytest.mark.parametrize(
    ("entry", "where"),
    [
        ({}, r"x.yaml: tests\[0\].run: a command"), ({"run": []}, "a command or a list"),
        ({"run": "a 'b"}, r"tests\[0\].run: No closing quotation"), ({"run": [1]}, "a list of its words"),
        ({"run": "a", "timeout": 0}, r"tests\[0\].timeout: a whole number of at least 1"),
        ({"run": "a", "status": True}, "tests.0..status: a whole number"),
        ({"run": "a", "cmd": "b"}, r"tests\[0\].cmd: unknown key"), ({"run": "a", "arches": "mips"}, "none of"),
        ({"run": "a", "env": ["x"]}, "env: a mapping"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(entry: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        expectations(entry, where="x.yaml")


def test_two_of_one_name() -> None:
    with pytest.raises(ConfigError, match="two tests are called 'a'"):
        expectations({"run": "a 1"}, {"run": "a 2"})


def test_a_file_that_is_not_there_is_found_before_anything_boots(cell: Cell, tmp_path: Path) -> None:
    known = {"task_state": expectations({"run": "tool", "files": ["tool"]}, where=str(tmp_path / "x.yaml"))}
    with pytest.raises(ConfigError, match=r"x.yaml: tests\[0\].files: --file .*/tool: No such file"):
        functional.prepare([cell], known)


def test_the_command_gets_its_files_the_object_and_where_it_is(cell: Cell, tmp_path: Path) -> None:
    (tmp_path / "tool-x86_64").write_text("#!/bin/sh\n")
    session = Session(done(0), output=b"fine\n")
    entry = {"run": "tool {arch}", "files": ["tool-{arch}:tool"], "env": {"MINE": "yes"}}
    result = run(cell, session, tmp_path, entry)
    (command,) = session.commands
    assert command.argv == ("tool", "x86_64")
    assert {item.path: item.data for item in command.files} == {"tool": b"#!/bin/sh\n", "task_state.bpf.o": b"object"}
    assert dict(command.env) == {
        "COREMATRIX_KERNEL": cell.kernel.id, "COREMATRIX_RELEASE": "6.1.0-50-cloud-amd64",
        "COREMATRIX_OBJECT": "task_state.bpf.o", "COREMATRIX_SETTINGS": "", "MINE": "yes",
    }  # fmt: skip
    (found,) = result.functional
    assert (found.outcome, found.status, found.output, result.status) == ("passed", 0, "fine\n", CellStatus.PASSED)
    assert found.log is not None
    assert (tmp_path / "run" / found.log).read_text() == "fine\n"
    assert session.ended == 1  # whatever it left behind goes with its guest


@pytest.mark.parametrize(
    ("answer", "outcome", "status", "reason"),
    [
        (done(3), "failed", CellStatus.FAILED, "functional test t: exit status 3"),
        (done(None, 11), "failed", CellStatus.FAILED, "functional test t: killed by signal 11"),
        (GuestLostError("", status="timeout"), "timeout", CellStatus.TIMEOUT, "functional test t: not done within 7 s"),
        (GuestLostError("it died", status="crashed"), "crashed", CellStatus.CRASHED, "functional test t: it died"),
        (GuestLostError("nonsense", status="error"), "error", CellStatus.ERROR, "functional test t: nonsense"),
    ],
)  # fmt: skip
def test_only_the_exit_status_wanted_is_a_pass(
    answer: Exit | Exception, outcome: str, status: CellStatus, reason: str, *, cell: Cell, tmp_path: Path
) -> None:
    result = run(cell, Session(answer, output=b"so far"), tmp_path, {"name": "t", "run": "x"})
    assert (result.functional[0].outcome, result.status, result.reason) == (outcome, status, reason)
    assert result.functional[0].output == "so far"
    assert result.progs == judged(cell).progs  # the verdicts stand apart


def test_another_exit_status_may_be_the_one_wanted(cell: Cell, tmp_path: Path) -> None:
    found = run(cell, Session(done(4), done(0)), tmp_path, {"run": "a", "status": 4}, {"run": "b", "status": 4})
    assert [(test.outcome, test.reason) for test in found.functional] == [
        ("passed", None), ("failed", "exit status 0, 4 is expected"),
    ]  # fmt: skip


def test_a_failure_outweighs_trouble_and_trouble_no_failure(cell: Cell, tmp_path: Path) -> None:
    lost = GuestLostError("it died", status="crashed")
    for answers in ((lost, done(1)), (done(1), lost)):
        found = run(cell, Session(*answers), tmp_path, {"run": "a"}, {"run": "b"})
        assert found.status is CellStatus.FAILED
    broken = judged(cell, status=CellStatus.FAILED)
    assert run(cell, Session(lost), tmp_path, {"run": "a"}, result=broken).status is CellStatus.FAILED


@pytest.mark.parametrize(
    ("result", "entry", "refuse", "reason"),
    [
        (Verdict.REJECTED, {}, None, "no program of it is loaded here (state_each rejected)"),
        (Verdict.LOADED, {"program": "other"}, None, "no program matches other"),
        (Verdict.LOADED, {}, "not here", "not here"),
    ],
)
def test_what_there_is_nothing_to_test_of_is_skipped_and_says_why(
    result: Verdict, entry: dict[str, Any], refuse: str | None, reason: str, *, cell: Cell,
    tmp_path: Path,
) -> None:  # fmt: skip
    session = Session()
    found = run(cell, session, tmp_path, {"run": "x", **entry}, result=judged(cell, result), refuse=refuse)
    assert (found.functional[0].outcome, found.functional[0].reason) == ("skipped", reason)
    assert found.status is CellStatus.PASSED
    assert not session.commands


def test_a_stopped_run_stays_stopped(cell: Cell, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run(cell, Session(Interrupted("stopped")), tmp_path, {"run": "x"})


def test_a_talkative_command_is_kept_within_bounds(cell: Cell, tmp_path: Path) -> None:
    found = run(cell, Session(done(0), output=b"x" * (3 << 20)), tmp_path, {"run": "x"}).functional[0]
    assert len(found.output) == 4000
    assert found.log is not None
    log = (tmp_path / "run" / found.log).read_text()
    assert log.startswith("[2097152 bytes before this were dropped]\n")
    assert len(log) < (1 << 20) + 100


def test_every_format_escapes_what_a_command_said(cell: Cell, tmp_path: Path) -> None:
    session = Session(done(1), output=HOSTILE.encode())
    result = run(cell, session, tmp_path, {"name": "t\x1b[2J", "run": "x"})
    whole = RunResult(tool={}, host={}, started="2026-01-01T00:00:00+00:00", seconds=1.0, cells=(result,))
    shown = {name: report.render(name, whole) for name in ("terminal", "text", "junit", "html", "markdown")}
    for name, text in shown.items():
        assert "\x1b" not in text, name
        assert "\u202e" not in text, name
    for name in ("terminal", "text"):
        assert "── Functional tests" in shown[name]
        assert "\\x1b[31mred" in shown[name]
    assert "functional test t\\\\x1b[2J: failed, exit status 1" in shown["html"]  # JSON in a page: escaped twice
    assert 'type="functional-failed"' in shown["junit"]
    assert "<script>" not in shown["junit"]


def test_the_json_is_of_the_schema_and_read_again(cell: Cell, tmp_path: Path) -> None:
    result = run(cell, Session(done(0), output=b"ok"), tmp_path, {"run": "x"})
    whole = RunResult(tool={}, host={}, started="2026-01-01T00:00:00+00:00", seconds=1.0, cells=(result,))
    data = json.loads(json.dumps(to_json(whole)))
    schema = json.loads((Path(report.__file__).parent / "schema.json").read_text())
    jsonschema.validate(data["cells"][0]["functional"][0], {**schema, "$ref": "#/$defs/functional_result"} | _BARE)
    assert run_from_json(data) == whole
    del data["cells"][0]["functional"]
    assert run_from_json(data).cells[0].functional == ()


# Only the definitions of the schema are wanted, none of what it says of a whole run.
_BARE = {"type": "object", "properties": {}, "required": []}


@pytest.mark.parametrize("change", [lambda path: path.write_text("two"), lambda path: path.chmod(0o700)])
def test_a_file_that_changed_is_tested_again_when_resumed(
    change: Callable[[Path], object], cell: Cell, tmp_path: Path
) -> None:
    tool = tmp_path / "tool"
    tool.write_text("one")
    tool.chmod(0o755)
    known = {"task_state": expectations({"run": "tool", "files": "tool"}, where=str(tmp_path / "x.yaml"))}

    def digest() -> str:
        (prepared,) = functional.prepare([cell], known)["task_state", "x86_64"]
        return resume._digest(cell, known["task_state"], None, [prepared.digest])

    before = digest()
    assert digest() == before
    change(tool)
    assert digest() != before


def test_a_dynamic_executable_brings_its_libraries(cell: Cell, tmp_path: Path) -> None:
    if platform.machine() != "x86_64":
        pytest.skip("the cell is of another architecture than this machine")
    session = Session(done(0))
    run(cell, session, tmp_path, {"run": "grep x", "files": ["/bin/grep"]})
    names: Sequence[str] = [item.path for item in session.commands[0].files]
    assert any(name.startswith("libraries/libc.so") for name in names)
    assert session.commands[0].argv[0].startswith("./libraries/ld-linux")
