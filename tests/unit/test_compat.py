"""The compatibility page: what a run proved, what a booted kernel stands for, what a sweep foretells."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from harness import cli
from harness.errors import UsageError
from harness.model.cover import Cover, Share, StandIn
from harness.model.plain_json import to_json
from harness.model.result import (
    CellResult,
    KernelResult,
    ObjectResult,
    ProgResult,
    Relocation,
    RunResult,
)
from harness.model.sweep import (
    Class,
    Range,
    SweepResult,
    SweptBtf,
    SweptObject,
    SweptProgram,
    SweptRelocation,
    sweep_from_json,
)
from harness.model.verdict import CellStatus, Liveness, Outcome, Verdict
from harness.report import compat, compat_format, render

TOOL = {"name": "corematrix", "version": "0"}


def relo(outcome, liveness, field="task_struct.state"):
    return Relocation(
        index=0, prog="p", section="raw_tp/x", insn=1, kind="byte_off", target_spec=None,
        local_spec=f"<byte_off> [5] struct {field} (0:1 @ offset 8)",
        outcome=outcome, orig_value=8, new_value=None, liveness=liveness, reason="no such member",
    )  # fmt: skip


def cell(kernel, release, verdict, *relocations, loader="python", status=CellStatus.PASSED):
    return CellResult(
        id=f"{kernel}/o@{loader}", kernel=KernelResult(id=kernel, arch="x86_64", release=release), loader=loader,
        object=ObjectResult(name="o", path="o.bpf.o", sha256="0"), status=status,
        progs=(ProgResult(name="p", section="raw_tp/x", verdict=verdict, core_relos=relocations),) if verdict else (),
    )  # fmt: skip


def run(*cells, cover=None):
    return RunResult(tool=TOOL, host={}, started="2026-01-01", seconds=1, cells=cells, cover=cover)


def swept(**classes):
    """A sweep of program `p`: outcome -> releases of `debian` with it; the kernels' ids are k-RELEASE."""
    releases = sorted({release for found in classes.values() for release in found})
    btfs = tuple(
        SweptBtf(id=f"k-{release}", distro="debian", version="1", arch="x86_64", release=release, path="x")
        for release in releases
    )
    made = tuple(
        Class(outcome=outcome, count=len(found), reason="poison is reached: x" if outcome == "refused" else None,
              ranges=(Range(distro="debian", arch="x86_64", text="", btfs=tuple(f"k-{one}" for one in found)),))
        for outcome, found in classes.items()
    )  # fmt: skip
    prog = SweptProgram(name="p", section="raw_tp/x", classes=made)
    one = SweptObject(name="o", path="o.bpf.o", sha256="0", arch=None, btfs=len(btfs), other_arch=0, progs=(prog,))
    return SweepResult(tool=TOOL, started="2026-01-02", seconds=1, indexed=0, btfs=btfs, objects=(one,))


def rows(run_=None, sweep=None):
    (program,) = compat.page(run_, sweep).programs
    return [(row.ranges, row.word, row.without, row.shown) for row in program.rows]


def test_verdicts_are_ranges_and_a_guard_says_what_it_does_without():
    guarded = relo(Outcome.POISONED, Liveness.ELIMINATED)
    found = run(
        cell("debian-1", "5.4.0", Verdict.LOADED, guarded), cell("debian-2", "5.10.0", Verdict.LOADED, guarded),
        cell("debian-3", "6.1.0", Verdict.LOADED),
        cell("debian-4", "6.12.0", Verdict.REJECTED, relo(Outcome.POISONED, Liveness.LIVE)),
    )  # fmt: skip
    assert rows(found) == [
        (("before 6.1.0 (2)",), compat.GUARDED, ("task_struct.state",), {compat.PROVEN: 2}),
        (("6.1.0",), compat.WORKS, (), {compat.PROVEN: 1}),
        (("6.12.0",), compat.BREAKS, (), {compat.PROVEN: 1}),
    ]
    (program,) = compat.page(found, None).programs
    assert "task_struct.state" in program.rows[2].why
    assert program.brief == {
        ("debian", "x86_64"): ((compat.WORKS, "before 6.12.0 (3)"), (compat.BREAKS, "6.12.0")),
    }


def test_a_cell_that_is_not_applicable_is_of_the_same_kernel_and_booted_nothing():
    other = replace(
        cell("debian-1", None, None, status=CellStatus.NOT_APPLICABLE),
        object=ObjectResult(name="x", path="x.bpf.o", sha256="0"),
    )
    judged = replace(cell("debian-2", "6.1.0", Verdict.LOADED), object=other.object)
    found = compat.page(run(cell("debian-1", "5.4.0", Verdict.LOADED), other, judged), None)
    assert found.kernels == {compat.PROVEN: 2}
    last = {row.ranges: row.word for row in found.programs[-1].rows}
    assert last == {("5.4.0",): compat.NOT_MEANT, ("6.1.0",): compat.WORKS}
    (only,) = compat.page(run(other, judged), None).kernels.values()
    assert only == 1  # the kernel of which nothing was asked was not booted


def test_the_proof_counts_before_what_was_foretold():
    found = run(cell("k-6.1", "6.1", Verdict.REJECTED, status=CellStatus.FAILED))
    # The sweep's place of the kernel has the distribution of its row, the run's that of its identity.
    sweep = swept(loads=["5.4", "6.1", "6.9"])
    sweep = sweep_from_json(json.loads(json.dumps(to_json(sweep)).replace('"debian"', '"k"')))
    assert rows(found, sweep) == [
        (("5.4", "6.9"), compat.WORKS, (), {compat.FORETOLD: 2}),
        (("6.1",), compat.BREAKS, (), {compat.PROVEN: 1}),
    ]


def test_what_was_not_judged_does_not_hide_what_was_foretold():
    found = run(cell("k-6.1", "6.1", Verdict.NOT_JUDGED, status=CellStatus.CRASHED))
    sweep = sweep_from_json(json.loads(json.dumps(to_json(swept(loads=["6.1"]))).replace('"debian"', '"k"')))
    assert rows(found, sweep) == [(("6.1",), compat.WORKS, (), {compat.FORETOLD: 1})]


def test_a_kernel_that_was_not_booted_is_as_the_one_that_stands_for_it():
    stand_in = StandIn(
        kernel="debian-2", distro="debian", arch="x86_64", release="6.2.0", object="o",
        by=(Share(kernel="debian-1", progs=("p",)),),
    )  # fmt: skip
    cover = Cover(kernels=2, outcomes=1, booted=("debian-1",), minimal=True, at_least=1, stand_ins=(stand_in,))
    found = run(cell("debian-1", "6.1.0", Verdict.LOADED), cover=cover)
    assert rows(found) == [(("all 2",), compat.WORKS, (), {compat.PROVEN: 1, compat.COVERED: 1})]
    assert compat.page(found, None).kernels == {compat.PROVEN: 1, compat.COVERED: 1}


def test_a_check_that_fails_and_dead_poison_are_what_a_sweep_calls_guarded():
    sweep = swept(loads=["5.4", "6.1"])
    dead = Class(outcome="poisoned", count=1, liveness=Liveness.ELIMINATED,
                 ranges=(Range(distro="debian", arch="x86_64", text="", btfs=("k-5.4",)),))  # fmt: skip
    gone = SweptRelocation(index=0, prog="p", section="raw_tp/x", insn=1, kind="byte_off", field="task_struct.new",
                           local_spec=None, source=None, classes=(dead,))  # fmt: skip
    (one,) = sweep.objects
    sweep = SweepResult(**{**vars(sweep), "objects": (SweptObject(**{**vars(one), "core_relos": (gone,)}),)})
    assert rows(None, sweep) == [
        (("5.4",), compat.GUARDED, ("task_struct.new",), {compat.FORETOLD: 1}),
        (("6.1",), compat.WORKS, (), {compat.FORETOLD: 1}),
    ]


class _Tags(HTMLParser):
    """Every tag closed, and nothing that runs or loads."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        assert tag not in ("script", "img", "link", "iframe", "object")
        assert not any(name.startswith("on") or name == "src" for name, _ in attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_is_closed_and_no_name_can_write_into_it():
    nasty = ProgResult(name="<script>alert(1)</script>|`", section="raw_tp/x", verdict=Verdict.LOADED)
    one = cell("debian-1", "6.1.0", Verdict.LOADED)
    found = run(CellResult(**{**vars(one), "progs": (nasty,)}))
    text = compat_format.render_html(found, None)
    parser = _Tags()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    assert "<script" not in compat_format.render_markdown(found, None)


def test_formats_and_their_input(tmp_path, capsys):
    sweep, made = tmp_path / "sweep.json", tmp_path / "run.json"
    sweep.write_text(json.dumps(to_json(swept(loads=["5.4"], refused=["6.1"]))))
    made.write_text(json.dumps(to_json(run(cell("debian-1", "6.2.0", Verdict.LOADED)))))
    assert cli.main(["report", str(sweep), "--format", "compat"]) == 0
    said = capsys.readouterr().out
    assert "debian x86\\_64 6.1" in said
    assert "poison is reached" in said
    assert cli.main(["report", str(made), "--sweep", str(sweep), "--format", "compat-html"]) == 0
    said = capsys.readouterr().out
    assert "1 booted, 2 foretold" in said
    assert cli.main(["report", str(made), "--sweep", str(sweep), "--format", "junit"]) == 2
    assert cli.main(["report", str(sweep), "--sweep", str(sweep), "--format", "compat"]) == 2
    assert cli.main(["report", str(sweep), "--format", "text"]) == 2


def test_what_is_no_sweep_is_refused_by_name():
    with pytest.raises(UsageError, match="not a corematrix sweep"):
        sweep_from_json({"schema": 1})
    assert "Which kernels" in render("compat", run())
