"""SARIF, GitHub and GitLab annotations, the badge: findings on source lines, each said once."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree as ET

import pytest

from harness.commands.source_paths import source_path
from harness.errors import GuestLostError
from harness.judge import lost
from harness.report import render
from harness.report.findings import RULES, collect
from tests.support.facts import begun, evidence, facts, judged, poisoned, prog, run_of

KERNELS = ["debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64", "debian-7.2-amd64"]
EXPECTED = {"rules": [{"verdict": "rejected", "reason": "known"}]}


def broken(kernel, rules=None, line=31):
    # The BTF id in the reason differs from kernel to kernel.
    reason = f"struct thread_struct [{len(kernel)}] has no member fs"
    relos = [poisoned(0, "thread_struct.fs", line=line, text="BPF_CORE_READ(t, fs)", reason=reason)]
    refused = prog(loaded=False, relos=[(0, 3)], evidence=evidence(None, [[0, 4]]))
    return judged(facts([refused], relos), rules, cell=begun(kernel))


def test_one_finding_for_a_line_however_many_kernels_see_it():
    (finding,) = collect(run_of(*(broken(kernel) for kernel in KERNELS)))
    assert finding.rule.id == "live-poison"
    assert finding.source is not None and finding.source.line == 31
    assert "on every kernel" in finding.text and "struct thread_struct has no member fs" in finding.text


def test_what_is_expected_is_a_note():
    found = collect(run_of(broken(KERNELS[0], EXPECTED), broken(KERNELS[1])))
    assert [(finding.rule.id, finding.rule.level) for finding in found] == [
        ("known-poison", "note"),
        ("live-poison", "error"),
    ]


def test_a_refusal_without_poison_is_a_broken_expectation():
    cell = judged(facts([prog(loaded=False, stage="pre_verifier", errno=22, error="unknown type")]))
    (finding,) = collect(run_of(cell))
    assert finding.rule.id == "broken-expectation" and "rejected at pre_verifier" in finding.text


def test_poison_of_unknown_liveness_and_trouble_are_warnings():
    unknown = judged(facts([prog(relos=[(0, 1)])], [poisoned(0)]))
    found = collect(run_of(unknown, lost(begun(KERNELS[0]), GuestLostError("panic"))))
    assert [(finding.rule.id, finding.rule.level) for finding in found] == [
        ("unproven", "warning"),
        ("trouble", "warning"),
    ]


def test_a_clean_run_has_no_findings():
    clean = run_of(judged(facts([prog()])))
    assert collect(clean) == []
    assert render("github", clean) == "" and json.loads(render("gitlab", clean)) == []
    assert json.loads(render("sarif", clean))["runs"][0]["results"] == []


def test_sarif_points_at_the_line_and_keeps_its_fingerprint_when_lines_move():
    logs = [json.loads(render("sarif", run_of(broken(KERNELS[0], line=line)))) for line in (31, 99)]
    results = [log["runs"][0]["results"][0] for log in logs]
    assert logs[0]["version"] == "2.1.0"
    location = results[0]["locations"][0]["physicalLocation"]
    assert location["artifactLocation"]["uri"] == "x.bpf.c"
    assert location["region"] == {"startLine": 31, "snippet": {"text": "BPF_CORE_READ(t, fs)"}}
    assert results[0]["partialFingerprints"] == results[1]["partialFingerprints"]
    rules = logs[0]["runs"][0]["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    assert rules[results[0]["ruleIndex"]]["id"] == results[0]["ruleId"] == "live-poison"


def test_sarif_without_a_line_names_the_object():
    cell = judged(facts([prog(loaded=False)]))
    place = json.loads(render("sarif", run_of(cell)))["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "x.bpf.o"}}


def test_github_commands():
    (command,) = render("github", run_of(broken(KERNELS[0]))).splitlines()
    assert command.startswith("::error file=x.bpf.c,line=31,title=corematrix%3A live-poison::x/prog: thread_struct.fs")


@pytest.mark.parametrize("evil", ["a\n::error::owned", "b%0A::warning::", "c\r\n::stop-commands::x", "d,line=9::"])
def test_no_guest_can_issue_a_github_command(evil):
    relos = [poisoned(0, evil, reason=evil, text=evil)]
    relos[0]["source"]["file"] = evil
    cell = judged(facts([prog(evil, loaded=False, relos=[(0, 3)], evidence=evidence(None, [[0, 4]]))], relos))
    for command in render("github", run_of(cell)).splitlines():
        parsed = re.fullmatch(r"::(error|warning|notice) ([^:]*)::(.*)", command)
        assert parsed is not None
        fields = dict(part.split("=", 1) for part in parsed[2].split(","))
        assert set(fields) == {"file", "line", "title"} and fields["line"] == "10"


def test_gitlab_code_quality_has_what_gitlab_asks_for():
    issues = json.loads(
        render("gitlab", run_of(*(broken(kernel) for kernel in KERNELS), judged(facts([prog(loaded=False)]))))
    )
    assert len({issue["fingerprint"] for issue in issues}) == len(issues) == 2
    for issue in issues:
        assert {"description", "check_name", "fingerprint", "severity", "location"} <= set(issue)
        assert issue["severity"] in {"info", "minor", "major", "critical", "blocker"}
        assert isinstance(issue["location"]["lines"]["begin"], int) and issue["location"]["path"]


@pytest.mark.parametrize(
    ("cells", "text", "colour"),
    [
        ([judged(facts([prog()]))], "1/1 cells", "#2da44e"),
        ([judged(facts([prog()])), broken(KERNELS[0])], "1/2 cells", "#cf222e"),
        ([judged(facts([prog()])), lost(begun(KERNELS[0]), GuestLostError("x"))], "1/2 cells", "#bf8700"),
        ([judged(facts([]))], "nothing judged", "#6e7781"),
        ([], "nothing judged", "#6e7781"),
    ],
)
def test_the_badge_is_green_only_when_all_is_well(cells, text, colour):
    svg = ET.fromstring(render("badge", run_of(*cells)))
    name = "{http://www.w3.org/2000/svg}"
    assert svg.find(f"{name}title").text == f"CO-RE: {text}"
    assert [rect.get("fill") for rect in svg.findall(f"{name}rect")][1] == colour


@pytest.mark.parametrize(
    ("object_path", "file", "expected"),
    [
        ("programs/build/x.bpf.o", "x.bpf.c", "programs/x.bpf.c"),  # make -C programs
        ("programs/build/x.bpf.o", "programs/x.bpf.c", "programs/x.bpf.c"),
        ("programs/build/x.bpf.o", "{root}/programs/x.bpf.c", "programs/x.bpf.c"),
        ("programs/build/x.bpf.o", "../outside.c", "../outside.c"),
        ("programs/build/x.bpf.o", "{root}/../outside.c", "{root}/../outside.c"),
        ("programs/build/x.bpf.o", "gone.c", "gone.c"),
        ("/elsewhere/x.bpf.o", "x.bpf.c", "x.bpf.c"),
        ("programs/build/x.bpf.o", "link.c", "link.c"),  # leads out of the tree
        ("programs/build/x.bpf.o", "a\0b", "a\0b"),
        ("programs/build/x.bpf.o", "n" * 5000, "n" * 5000),
    ],
)
def test_a_source_is_named_as_the_annotated_tree_names_it(tmp_path, object_path, file, expected):
    root = tmp_path / "tree"
    (root / "programs" / "build").mkdir(parents=True)
    (root / "programs" / "x.bpf.c").touch()
    (tmp_path / "outside.c").touch()
    (root / "programs" / "link.c").symlink_to(tmp_path / "outside.c")
    file, expected = (text.replace("{root}", str(root)) for text in (file, expected))
    assert source_path(root, object_path, file) == expected


@pytest.mark.parametrize("format", ["sarif", "github", "gitlab"])
def test_every_annotation_has_the_trees_path(format):
    run = run_of(broken(KERNELS[0]))
    assert "src/here.c" in render(format, run, source_path=lambda _object, _file: "src/here.c")
