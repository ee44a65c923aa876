"""The formats: what they say, that they are what they claim to be, and that no guest can write into them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from xml.etree import ElementTree as ET

import pytest

from harness.errors import GuestLostError, UsageError
from harness.judge import lost
from harness.model.reading import matches
from harness.model.verdict import CellStatus
from harness.report import FORMATS, markdown, render, untrusted
from harness.report.kernels import common_words, describe
from tests.support.facts import begun, evidence, facts, guard, judged, poisoned, prog, relo, run_of

KERNELS = ["debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64", "debian-6.1-generic-amd64", "debian-6.1-cloud-arm64"]
LOG = "3: (85) call unknown#195896080\ninvalid func unknown#195896080\n"


def guarded(kernel, value):
    relos = [
        guard(0, "task_struct.__state", value, line=22, text="if (bpf_core_field_exists(t->__state))"),
        (relo if value else poisoned)(1, "task_struct.__state", line=23, text="BPF_CORE_READ(t, __state)"),
    ]
    survived = [[0, 9]] if value else [[0, 3], [4, 9]]
    flip = {
        "relo": 0,
        "insn": 1,
        "value": 1 - value,
        "loaded": True,
        "errno": None,
        "survived": [[0, 3], [4, 9]] if value else [[0, 9]],
        "visited": None,
    }
    return judged(facts([prog("handle", relos=[(0, 1), (1, 3)], evidence=evidence(survived, flips=[flip]))], relos),
                  cell=begun(kernel, "task_state", arch="arm64" if "arm64" in kernel else "x86_64"))  # fmt: skip


def broken(kernel, rules=None):
    why_not = [{"name": "struct thread_struct", "id": len(kernel), "why_not": "no member named fs"}]
    relos = [poisoned(0, "thread_struct.fs", line=31, text="BPF_CORE_READ(t, fs)", candidates=why_not)]
    refused = prog("trace", loaded=False, log=LOG, relos=[(0, 3)], evidence=evidence(None, [[0, 4]]))
    return judged(facts([refused], relos), rules, cell=begun(kernel, "published"))


@pytest.fixture
def run():
    cells = [guarded(kernel, 0 if "5.10" in kernel else 1) for kernel in KERNELS]
    cells += [broken(kernel) for kernel in KERNELS[:2]]
    cells.append(
        lost(begun(KERNELS[2], "published"), GuestLostError("the kernel panicked", console_tail="Kernel panic"))
    )
    return run_of(*cells)


def test_the_table_shows_every_program_on_every_kernel(run):
    lines = render("text", run).splitlines()
    table = lines[lines.index(next(line for line in lines if line.startswith("debian"))) :]
    assert [line.replace("─", "").split() for line in table[:3]] == [
        ["debian", "amd64", "arm64"],
        ["5.10", "6.1", "6.1", "6.1"],
        ["cloud", "cloud", "generic", "cloud"],
    ]
    assert table[3].split() == ["task_state/handle", "guard", "ok", "ok", "ok"]
    assert table[4].split() == ["published/trace", "REJECT", "REJECT", "lost"]


def wide_run():
    """What the gate has: eleven kernels of two architectures, an object of one program, one of two."""
    versions = ["5.10-cloud", "6.1-cloud", "6.1-generic", "6.12-cloud", "6.12-rt", "6.18-cloud", "7.2-cloud"]
    kernels = [f"debian-{version}-amd64" for version in versions]
    kernels += [f"debian-{version}-arm64" for version in ("5.10-cloud", "6.1-cloud", "6.12-16k", "7.2-cloud")]
    cells = []
    for kernel in kernels:
        refused = facts([prog("alone", loaded="5.10" not in kernel)])
        cells.append(judged(refused, cell=begun(kernel, "alone")))
        cells.append(judged(facts([prog("first"), prog("second_of_them")]), cell=begun(kernel, "a_pair_of_programs")))
    return run_of(*cells)


def table_of(run, width):
    return render("terminal", run, width=width).split("\n\n")[1].splitlines()


def test_eleven_kernels_stand_side_by_side_in_100_columns():
    table = table_of(wide_run(), 100)
    assert len(table) == 6 and max(map(len, table)) <= 100
    assert table[0].split("arm64")[0].split() == ["debian", "amd64", "─" * table[0].split("arm64")[0].count("─")]
    assert table[3].split() == ["alone", "REJ", *["ok"] * 6, "REJ", *["ok"] * 3]
    assert table[4].split()[0] == "a_pair_of_programs/first" and table[5].endswith("ok")
    # Every field begins in the column of its head.
    places = [match.start() for match in re.finditer(r"\S+", table[2])]
    assert [match.start() for match in re.finditer(r"\S+", table[3])][1:] == places


@pytest.mark.parametrize(("width", "blocks"), [(80, 1), (60, 1), (34, 1), (20, 2)])
def test_narrow_terminals_get_letters_under_upright_heads(width, blocks):
    text = render("terminal", wide_run(), width=width)
    rows = [line for line in text.splitlines() if line.startswith("alone ")][:blocks]
    assert [mark for row in rows for mark in row.split()[1:]] == ["R", *"······", "R", *"···"]
    assert max(map(len, rows)) <= width
    assert "· loaded R rejected" in " ".join(text.split())
    heads = text.split("\n\n")[1].splitlines()
    column = [line[rows[0].index("R")] for line in heads[1 : heads.index(rows[0])]]
    assert "".join(column).strip() == "5.10-cloud"


def test_a_broken_program_names_line_field_reason_and_kernels(run):
    text = render("text", run)
    assert "x.bpf.c:31" in text and "BPF_CORE_READ(t, fs)" in text
    assert re.search(r"thread_struct.fs  byte_off  poisoned, live  every kernel", text)
    assert "nearest candidate struct thread_struct: no member named fs" in text
    assert "✗ expected loaded, was rejected at verifier" in text


def test_guards_show_their_value_per_kernel_and_what_they_protect(run):
    text = render("text", run)
    assert re.search(r"field_exists +(= 0) +debian-5.10-cloud-amd64", text)
    assert re.search(r"= 1 +debian-6.1-\*", text)
    assert "protects task_struct.__state" in text and "guarded by the check on task_struct.__state" in text
    assert re.search(r"poisoned, eliminated +debian-5.10-cloud-amd64", text)


def test_what_is_broken_comes_first_and_what_is_not_is_brief(run):
    expected = broken(KERNELS[3], {"rules": [{"verdict": "rejected", "reason": "known since 4.7"}]})
    run = dataclasses.replace(run, cells=(*run.cells, dataclasses.replace(expected, id="x", settings={"a": "1"})))
    brief, full = render("terminal", run), render("terminal", run, verbose=True)
    for text in (brief, full):
        places = [text.index(title) for title in ("── Broken", "── Trouble", "── As expected", "── Guards")]
        assert places == sorted(places)
    tail = brief.partition("── As expected")[2]
    assert "known since 4.7" in tail and "x.bpf.c:31" in tail, "what a program is refused for is named, expected or not"
    assert "thread_struct.fs" in tail and "poisoned, live" in tail
    assert ("task_state checks: 1 taken both ways (task_struct.__state); "
            "1 poisoned relocation eliminated on debian-5.10-cloud-amd64") in " ".join(tail.split())  # fmt: skip
    assert "guarded by the check on task_struct.__state" in full and "guarded by" not in brief


def test_refusals_that_differ_in_addresses_only_are_one():
    cells = [
        judged(facts([prog(loaded=False, log=f"0: (18) r1 = 0x{n}\n8: (85) call unknown#208\ninvalid func unknown#208\n"
                                             "processed 9 insns (limit 1000000) max_states_per_insn 0\n")]),
               cell=begun(kernel))
        for n, kernel in enumerate(KERNELS)
    ]  # fmt: skip
    text = render("text", run_of(*cells))
    assert text.count("rejected at verifier, EACCES (13) on every kernel") == 1
    assert text.count("│ invalid func unknown#208") == 1


def test_what_stopped_the_verifier_is_no_statistics():
    log = (
        "; value = bpf_ktime_get_tai_ns() + BPF_CORE_READ(task, pid);\n8: (85) call unknown#208\n"
        "invalid func unknown#208\nverification time 82 usec\nstack depth 12\n"
        "processed 8 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0\n"
    )
    line = relo(0, "task_struct.pid", line=40, text="value = bpf_ktime_get_tai_ns() + BPF_CORE_READ(task, pid);")
    refused = prog(loaded=False, log=log, relos=[(0, 9), (1, 12)], evidence=evidence(None, [[0, 9]]))
    text = render("text", run_of(judged(facts([refused], [line, relo(1, "task_struct.tgid")]))))
    assert "behind x.bpf.c:40, where the verifier stopped: invalid func unknown#208" in text
    assert "stack depth" not in text
    newer = log.replace("pid);\n8", "pid); @ other.bpf.c:77\n8")
    text = render("text", run_of(judged(facts([{**refused, "log": newer}], [line, {**line, "index": 1}]))))
    assert "behind other.bpf.c:77, where" in text


def test_trouble_is_kept_apart_with_the_console_and_the_rerun(run):
    trouble = render("text", run).partition("Trouble")[2]
    assert "│ Kernel panic" in trouble
    assert "rerun: corematrix run published.bpf.o --only 'debian-6.1-generic-amd64/published@python'" in trouble


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 200])
def test_tables_keep_to_the_width(run, width):
    lines = render("text", run, width=width).splitlines()
    table = [line for line in lines if re.match("debian |task_st|publish", line)]
    table = table[: next((n for n, line in enumerate(table) if "/ " in line or "@" in line), len(table))]
    assert len(table) >= 3 and max(map(len, table)) <= width


def test_colour_only_when_asked(run):
    assert "\x1b[" not in render("terminal", run)
    coloured = render("terminal", run, colour=True)
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == render("terminal", run)
    assert "\x1b[" not in render("text", run, colour=True)


def test_an_empty_run_is_not_green():
    empty = run_of()
    assert "nothing was judged" in render("text", empty)
    assert "🟢" not in render("markdown", empty)


def test_an_unknown_format_names_those_there_are(run):
    with pytest.raises(UsageError, match="junit"):
        render("pdf", run)


# Everything a guest or an object can name, filled with what would hurt each format.
EVIL = "\x1b[2J\x1b]0;own\x07</script><b>&amp;|`x`\r\n::error::\u202e\x00\ud800[a](http://evil)"


def evil_run():
    relos = [
        poisoned(0, EVIL, text=EVIL, reason=EVIL, candidates=[{"name": EVIL, "id": 1, "why_not": EVIL}], function=EVIL)
    ]
    relos[0]["source"]["file"] = EVIL
    refused = prog(
        EVIL, loaded=False, section=EVIL, log=EVIL, error=EVIL, relos=[(0, 3)], evidence=evidence(None, [[0, 4]])
    )
    extern = {"name": EVIL, "kind": "kconfig", "value": EVIL, "weak": False, "outcome": "resolved"}
    first = judged(facts([refused], relos, externs=[extern]))
    early = judged(
        facts([prog(EVIL, loaded=False, stage="pre_verifier", error=EVIL, errno=22)]),
        cell=begun("debian-7.2-cloud-amd64"),
    )
    gone = lost(begun("debian-5.10-cloud-amd64"), GuestLostError(EVIL, console_tail=EVIL))
    return run_of(first, early, dataclasses.replace(gone, substituted=EVIL), notes=(EVIL,))


@pytest.mark.parametrize("format_", list(FORMATS))
def test_no_control_character_of_a_guest_comes_out(format_):
    text = render(format_, evil_run(), colour=False)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\ud800]", text)
    text.encode()


def test_markup_of_a_guest_stays_text():
    markdown_it = pytest.importorskip("markdown_it")
    html = markdown_it.MarkdownIt("commonmark").enable("table").render(render("markdown", evil_run()))
    ours = {
        "h2",
        "p",
        "strong",
        "code",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "br",
        "details",
        "summary",
        "ul",
        "li",
        "pre",
    }
    assert set(re.findall(r"<(\w+)", html)) <= ours
    # Every row of a table keeps its columns: no bar of a guest splits one.
    assert {row.count("<td") for row in html.split("</tr>") if "<td" in row} == {5}


def test_junit_holds_suites_of_kernels_and_cases_of_programs(run):
    root = ET.fromstring(render("junit", run))
    assert [suite.get("name") for suite in root] == KERNELS
    case = root.find("testsuite/testcase")
    assert (case.get("name"), case.get("classname")) == (
        "task_state::handle",
        "debian-5.10-cloud-amd64/task_state@python",
    )
    assert {name: root.get(name) for name in ("tests", "failures", "errors")} == {
        "tests": "7",
        "failures": "2",
        "errors": "1",
    }
    failure = root.find(".//failure")
    assert failure.get("message") == "expected loaded, was rejected at verifier"
    error = root.find(".//error")
    assert error.get("type") == "crashed" and "Kernel panic" in error.text


# junit-10.xsd of Jenkins' xunit plug-in, as a table: element -> (attributes it needs, attributes it may have,
# children).
JENKINS = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {"time", "skipped", "timestamp"},
        {"properties", "testcase"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": ({"name"}, {"time", "classname"}, {"skipped", "error", "failure", "system-out"}),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}


@pytest.mark.parametrize("which", ["plain", "evil"])
def test_junit_keeps_to_what_jenkins_allows(run, which):
    for element in ET.fromstring(render("junit", run if which == "plain" else evil_run())).iter():
        needed, allowed, children = JENKINS[element.tag]
        assert needed <= set(element.keys()) <= needed | allowed
        assert {child.tag for child in element} <= children
        assert re.fullmatch(r"[0-9]{1,3}\.[0-9]{3}", element.get("time", "0.000"))


def test_junitparser_reads_it_back(run):
    junitparser = pytest.importorskip("junitparser")
    read = junitparser.JUnitXml.fromstring(render("junit", run).encode())
    assert (read.tests, read.failures, read.errors) == (7, 2, 1)
    results = {
        f"{suite.name}/{case.name}": [type(item).__name__ for item in case.result] for suite in read for case in suite
    }
    assert results["debian-6.1-cloud-amd64/published::trace"] == ["Failure"]
    assert results["debian-6.1-generic-amd64/published"] == ["Error"]
    assert results["debian-6.1-cloud-amd64/task_state::handle"] == []


def test_csv_survives_veristats_parser():
    """veristat splits with strtok(",\\n"), which merges separators, and takes integers by sscanf("%ld %n")."""
    stats = {
        "processed_insns": 41,
        "total_states": 3,
        "peak_states": 2,
        "max_states_per_insn": 1,
        "stack_depth": 24,
        "verification_usec": 99,
    }
    named = begun(settings=(("a", "1"), ("b", "x,y z")))
    cell = judged(
        facts([prog("p", verifier=stats), prog("r", loaded=False), prog("s", loaded=False, stage=None)]), cell=named
    )
    header, *rows = [re.split("[,\n]+", line) for line in render("csv", run_of(cell)).splitlines()]
    assert header == ["file_name", "prog_name", "verdict", "duration", "total_insns", "total_states", "peak_states",
                      "max_states_per_insn"]  # fmt: skip
    assert rows == [
        ["debian-6.1-cloud-amd64/x[a=1_b=x_y_z]@python", "p", "success", "99", "41", "3", "2", "1"],
        ["debian-6.1-cloud-amd64/x[a=1_b=x_y_z]@python", "r", "failure", "0", "0", "0", "0", "0"],
    ]


def test_markdown_keeps_below_githubs_limit():
    why = "x" * 2000
    many = [
        judged(facts([prog(f"p{n}", loaded=False, relos=[(0, 1)], log=LOG)], [poisoned(0, reason=why)]))
        for n in range(800)
    ]
    cells = [
        dataclasses.replace(cell, object=dataclasses.replace(cell.object, name=f"o{n}")) for n, cell in enumerate(many)
    ]
    text = render("markdown", run_of(*cells))
    assert len(text.encode()) <= markdown.LIMIT + 200 and "more sections left out" in text


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        (KERNELS, "every kernel"),
        (KERNELS[:1], "debian-5.10-cloud-amd64"),
        (KERNELS[1:], "debian-6.1-*"),
        (KERNELS[:3], "*-amd64"),
        ([KERNELS[0], KERNELS[2]], "all but debian-6.1-cloud-*"),
        ([KERNELS[0], KERNELS[2], KERNELS[3]], "all but debian-6.1-cloud-amd64"),
    ],
)
def test_sets_of_kernels_are_named_briefly(chosen, words):
    assert describe(chosen, KERNELS) == words


def test_a_set_of_kernels_is_named_exactly():
    for size in range(1, len(KERNELS)):
        for chosen in itertools.combinations(KERNELS, size):
            words = describe(chosen, KERNELS)
            globs = tuple(words.removeprefix("all but ").split(", "))
            covered = {kernel for kernel in KERNELS if matches(globs, kernel)}
            assert covered == (set(KERNELS) - set(chosen) if words.startswith("all but ") else set(chosen))


def test_column_heads_leave_out_what_all_share():
    assert common_words(KERNELS[:2]) == ([["5.10", "cloud", "amd64"], ["6.1", "cloud", "amd64"]], "debian-")
    assert common_words(["mainline"]) == ([["mainline"]], "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("a\x9b1mb", "a\\x9b1mb"),
        ("\u202eabc", "\\u202eabc"),
        ("tab\tstays", "tab\tstays"),
        ("ü→", "ü→"),
    ],
)
def test_controls_are_spelled_out(text, shown):
    assert untrusted.lines(text) == shown


def test_code_spans_hold_what_they_are_given():
    assert untrusted.code(" a|b\\|<c> ") == "<code>a\\|b\\\\\\|&lt;c&gt;</code>"


def test_wide_characters_count_twice_when_cutting():
    assert untrusted.fit("変数変数", 5) == "変数…"
    assert untrusted.fit("abc", 3) == "abc"


def attach_answer(status, **more):
    return {"status": status, "how": "kprobe event (perf)", "errno": None, "error": None, "stand_in": None, **more}


def attaching_run():
    """Two programs on eleven kernels: one attached, the other gone, on a stand-in, not tried, and once not loaded."""
    gone = attach_answer("refused", errno=2, error="symbol gone: \x1b[31mf")
    elsewhere = attach_answer("attached", stand_in="/opt/tool is not here: tried on getpid() of libc.so.6")
    answers = [gone, gone, elsewhere, None, *[attach_answer("not_attempted", error="it needs a device")] * 7]
    kernels = dict.fromkeys(cell.kernel.id for cell in wide_run().cells)
    cells = []
    for kernel, answer in zip(kernels, answers, strict=True):
        other = prog("else", loaded=answer is not None, attach=answer)
        there = prog("there", attach=attach_answer("attached"))
        cells.append(judged(facts([there, other]), cell=begun(kernel, "probe")))
    return run_of(*cells)


def test_attaching_is_a_column_beside_each_kernels_verdict():
    run = attaching_run()
    table = table_of(dataclasses.replace(run, cells=run.cells[:4]), 100)
    assert [line.split() for line in table[3:]] == [
        ["loads", "attach"] * 4,
        ["probe/there", *["ok", "yes"] * 4],
        ["probe/else", "ok", "NO", "ok", "NO", "ok", "alike", "REJECT"],  # not loaded, so nothing to attach
    ]
    places = [match.start() for match in re.finditer(r"\S+", table[3])]
    assert [match.start() for match in re.finditer(r"\S+", table[4])][1:] == places
    assert "attach" not in render("terminal", wide_run())


@pytest.mark.parametrize("width", [200, 150, 100, 60, 40, 20])
def test_the_columns_keep_together_at_every_width(width):
    text = render("terminal", attaching_run(), width=width)
    heading = next(n for n, line in enumerate(text.splitlines()) if line.startswith("──"))
    rows = [line.split()[1:] for line in text.splitlines()[:heading] if line.startswith("probe/e")]
    assert all(len(line) <= width for line in text.splitlines()[2:heading])
    words = [word for row in rows for word in row]
    assert [word for word in words if word in {"NO", "N"}] == [words[1]] * 2
    assert len(words) == 2 * 11 - 1
    if width < 60:
        assert len(rows) > 1
    assert "cannot be attached" in " ".join(text.split())


def test_why_not_is_said_once_in_each_report():
    run = attaching_run()
    section = " ".join(render("terminal", run).partition("── Attaching ")[2].partition("── ")[0].split())
    assert r"NO debian-5.10-cloud-amd64, debian-6.1-cloud-amd64: symbol gone: \x1b[31mf" in section
    assert section.count("probe / else") == 1 and "probe / there" not in section
    markdown = render("markdown", run)
    assert markdown.count(" attach |") == 11 and "| ok | 🔴 NO |" in markdown
    assert "🔴 NO on debian-5.10-cloud-amd64, debian-6.1-cloud-amd64: symbol gone" in markdown
    suite = ET.fromstring(render("junit", run)).find("testsuite")
    found = {item.get("name"): item.get("value") for item in suite.iter("property")}
    name = "debian-5.10-cloud-amd64/probe@python::else attach"
    assert found[name] == r"NOT attachable (kprobe event (perf)): symbol gone: \x1b[31mf"
    assert not suite.findall(".//failure")  # apart from the verdict


GONE_PROGRAM = {"rules": [{"program": "renamed", "verdict": "loaded"}]}


@pytest.mark.parametrize(
    ("cell", "tag"),
    [
        (judged(facts([prog("a"), prog("b", loaded=False, stage=None)])), "error"),  # the guest was lost at b
        (judged(facts([prog()]), GONE_PROGRAM), "failure"),  # all it has is met
        (judged(facts([], object_error={"stage": "open", "errno": 22, "message": "no", "relo": None})), "failure"),
        (dataclasses.replace(judged(facts([prog()])), status=CellStatus.TIMEOUT, reason="hung"), "error"),
        (dataclasses.replace(judged(facts([prog()])), status=CellStatus.ERROR, reason="ours"), "error"),
        (lost(begun(), GuestLostError("panic")), "error"),
    ],
)
def test_what_is_no_pass_is_none_in_junit_either(cell, tag):
    """A server that reads nothing but the cases must not take it for one."""
    assert cell.status in {CellStatus.FAILED, CellStatus.CRASHED, CellStatus.TIMEOUT, CellStatus.ERROR}
    suite = ET.fromstring(render("junit", run_of(cell))).find("testsuite")
    found = {name: len(suite.findall(f"testcase/{name}")) for name in ("failure", "error", "skipped")}
    assert found == {"failure": 0, "error": 0, "skipped": 0, tag: 1}
    assert (suite.get("failures"), suite.get("errors")) == (str(found["failure"]), str(found["error"]))
