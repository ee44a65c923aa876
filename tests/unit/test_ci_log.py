"""What ends in a CI server's log: no text of a guest, an object or a file may be taken for a command there.

The judges are written after the programs that read such logs: GitHub's runner (actions/runner, ActionCommand.cs: a
line that starts with `::` after trimming, and `##[` anywhere), GitLab (a section is a marker that ends in CR, ESC),
Azure Pipelines (`##vso[` anywhere), TeamCity (`##teamcity[`).
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from xml.etree import ElementTree as ET

import pytest

from harness import ci_log, cli, report
from harness.errors import GuestLostError, UsageError
from harness.judge import lost
from harness.progress import PlainProgress
from harness.report import kernel_diff, kernel_diff_format
from tests.support.facts import begun, evidence, facts, guard, judged, poisoned, prog, relo, run_of

EVIL = (
    "::error::owned",
    "\n  ::add-mask::owned",
    "x\r\n\t::warning file=a::owned",
    "\u2003::stop-commands::x",
    ":\u034f:error::owned",
    "a \u2029::debug::owned",
    "##[error]owned",
    "x ##[add-path]/tmp",
    "##vso[task.setvariable variable=x]owned",
    "##teamcity[buildProblem description='x']",
    "section_start:1:x[collapsed=true]\r\x1b[0Kowned",
    "\x1b[31m::error::owned",
    "a word ::error::b",  # on a line of its own once it is wrapped
)


WEIGHTLESS = "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2060-\u206f\ufe00-\ufe0f]"
WRAPPED = ("terminal", "text", "audit")


def commands(text: str) -> list[str]:
    """The lines that one of the servers would take for a command."""
    found = []
    for line in re.split(r"\r\n|[\n\r\x0b\x0c\x85\u2028\u2029]", text):
        # .NET's StartsWith(string) compares by culture: characters that have no weight do not count.
        weighed = re.sub(WEIGHTLESS, "", line)
        plain = re.sub(r"\x1b\[[0-9;]*m", "", weighed)
        starts = any(one.strip().startswith("::") and "::" in one.strip()[2:] for one in (line, weighed, plain))
        if starts or re.search(r"##\[[^\]]*\]|##vso\[|##teamcity\[", weighed):
            found.append(line)
    if re.search(r"section_(start|end):\d+:\S+\r\x1b\[0K", text):
        found.append("a section")
    return found


def run_with(text: str):
    """Every free text of a run is `text`; one program is broken, one guarded, one was lost with its guest."""
    relos = [
        poisoned(0, f"{text}.x", text=text, reason=text, candidates=[{"name": text, "id": 1, "why_not": text}],
                 function=text),
        guard(1, f"a___x.{text}", 0, text=text), relo(2, text="x"),
    ]  # fmt: skip
    relos[0]["source"]["file"] = relos[1]["source"]["file"] = text
    found = evidence(None, [[0, 4]])
    bad = prog(text, loaded=False, section=text, log=text, error=text, relos=[(0, 3)], evidence=found)
    good = prog("good", section=text, relos=[(1, 1), (2, 2)], evidence=evidence([[0, 9]]))
    answer = facts([bad, good], relos, externs=[{"name": text, "kind": "kconfig", "value": text, "weak": False,
                                                 "outcome": "resolved"}])  # fmt: skip
    gone = lost(begun("debian-5.10-cloud-amd64", text), GuestLostError(text, console_tail=f"boot\n{text}\n{text}"))
    cell = judged(answer, cell=begun(object_=text))
    return run_of(cell, dataclasses.replace(gone, substituted=text), notes=(text,))


def test_the_judge_sees_what_it_is_for() -> None:
    seen = [text for text in EVIL if not commands(text)]
    assert seen == ["a word ::error::b"]
    assert commands("a word\n    ::error::b") and not commands("enum a::B, x::y\n a ::error") and not commands("## [x]")


@pytest.mark.parametrize("text", EVIL)
@pytest.mark.parametrize("format", [name for name in report.FORMATS if name != "github"])
def test_no_report_holds_a_command(format: str, text: str) -> None:
    run = run_with(text)
    shapes = [(20, False), (30, True), (44, False), (100, True)] if format in WRAPPED else [(100, False)]
    for width, colour in shapes:
        assert commands(report.render(format, run, width=width, colour=colour, baseline=run, verbose=True)) == []


@pytest.mark.parametrize("text", EVIL)
def test_githubs_own_annotations_are_one_command_a_line(text: str) -> None:
    for line in report.render("github", run_with(text)).splitlines():
        assert re.match(r"::(error|warning|notice) ", line)
        assert not commands(line.replace("::", "", 1).lstrip(":"))[1:]


@pytest.mark.parametrize("text", EVIL)
def test_what_changed_holds_no_command(text: str) -> None:
    run = run_with(text)
    cells = tuple(dataclasses.replace(cell, progs=()) for cell in run.cells)
    for format in ("terminal", "text", "json"):
        for width in (20, 44, 100):
            found = report.diff(dataclasses.replace(run, cells=cells), run)
            assert commands(report.render_diff(format, found, width=width)) == []
    found_kernels = kernel_diff.compare(
        run_of(run.cells[0], dataclasses.replace(
            run.cells[0], progs=(), kernel=dataclasses.replace(run.cells[0].kernel, id=text))),
        run.cells[0].kernel.id, text, lambda _sha256: None,
    )  # fmt: skip
    assert found_kernels.steps
    assert commands(kernel_diff_format.render("text", [found_kernels], width=30)) == []


def test_what_is_read_by_machines_says_the_same_as_before() -> None:
    """The escapes of JSON and XML, so that a reader gets the very text back."""
    run = run_with("a ##[error]b")
    stored = report.render("json", run)
    assert "##[" not in stored and json.loads(stored)["notes"] == ["a ##[error]b"]
    junit = report.render("junit", run)
    assert "##[" not in junit and "##[error]b" in "".join(ET.fromstring(junit).itertext())


@pytest.mark.parametrize("text", EVIL)
def test_progress_and_errors_hold_no_command(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream, 2)
    progress.on_kernel(text, text)
    progress.on_result(run_with(text).cells[0])
    assert commands(stream.getvalue()) == []
    errors = io.StringIO()
    monkeypatch.setattr(cli.sys, "stderr", errors)

    def fail(_arguments: object) -> int:
        raise UsageError(text, remedy=text)

    monkeypatch.setattr(cli, "_dispatch", fail)
    assert cli.main(["run"]) == 2
    assert "owned" in errors.getvalue() or "x" in errors.getvalue()
    assert commands(errors.getvalue()) == []


def test_a_commands_streams_are_safe_unless_commands_were_asked_for(tmp_path, capsys) -> None:
    stored = tmp_path / "run.json"
    stored.write_text(report.render("json", run_with("::error::owned")))
    for format, wanted in (("terminal", 0), ("audit", 0), ("markdown", 0), ("github", 1)):
        assert cli.main(["report", str(stored), "--format", format]) == 0
        assert (len(commands(capsys.readouterr().out)) > 0) == wanted, format


def test_a_stream_spells_out_commands_and_passes_the_rest_on() -> None:
    below = io.StringIO()
    stream = ci_log.SafeStream(below)
    stream.write("ok a::b ## x\n  ::error::x\n")
    stream.writelines(["::group::y\n", "z ##[error]\n"])
    assert below.getvalue() == "ok a::b ## x\n  \\x3a:error::x\n\\x3a:group::y\nz \\x23#[error]\n"
    assert not stream.isatty()
    assert ci_log.plain(below.getvalue()) == below.getvalue()


