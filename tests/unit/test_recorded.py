"""Judging what a real kernel answered: facts recorded by `python -m harness.guest judge` (tests/data/facts/README.md).

What is expected is read off the C sources in programs/ and off what Linux 6.18 has (`__state`, `start_boottime`,
`fsbase`), not off our own output.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.model.verdict import CellStatus, Liveness, Outcome, Verdict
from harness.report import FORMATS, render
from tests.support.facts import begun, judged, run_of

RECORDED = sorted((Path(__file__).parents[1] / "data" / "facts").glob("*.json"))


def cell(name, rules=None):
    path = next(path for path in RECORDED if path.stem == name)
    return judged(json.loads(path.read_text()), rules, cell=begun("this-machine", name))


def prog(found, name):
    return next(item for item in found.progs if item.name == name)


def one(found, field, kind):
    (relo,) = [item for item in found.core_relos if (item.field, item.kind) == (field, kind)]
    return relo


def test_a_field_of_today_lives_and_one_of_yesterday_is_dead_code():
    each = prog(cell("task_state"), "state_each")
    assert each.verdict is Verdict.LOADED
    new, old = "task_struct.__state", "task_struct___before_5_14.state"
    assert (one(each, new, "field_exists").new_value, one(each, old, "field_exists").new_value) == (1, 0)
    assert (one(each, new, "byte_off").outcome, one(each, new, "byte_off").liveness) == (
        Outcome.RESOLVED,
        Liveness.LIVE,
    )
    assert (one(each, old, "byte_off").outcome, one(each, old, "byte_off").liveness) == (
        Outcome.POISONED,
        Liveness.ELIMINATED,
    )


def test_each_access_is_guarded_by_its_own_check_and_else_by_the_other():
    found = cell("task_state")
    old = "task_struct___before_5_14.state"
    guards = {
        name: {ref.field for ref in one(prog(found, name), old, "byte_off").guarded_by}
        for name in ("state_each", "state_else")
    }
    assert guards == {"state_each": {old}, "state_else": {"task_struct.__state"}}


def test_the_published_guard_is_reported_as_broken_naming_the_line_of_the_read():
    found = cell("fsbase_as_published")
    assert found.status is CellStatus.FAILED
    (program,) = found.progs
    bad = one(program, "thread_struct___v46.fs", "byte_off")
    assert (bad.outcome, bad.liveness) == (Outcome.POISONED, Liveness.LIVE)
    assert bad.source is not None and "thread_struct___v46 *)thr, fs)" in bad.source.text
    assert one(program, "thread_struct.fsbase", "byte_off").liveness is Liveness.ELIMINATED
    assert "LINUX_KERNEL_VERSION" in program.explanation[0]


def test_enumerators_the_kernel_lacks_are_guarded_one_by_one():
    (program,) = cell("cgroup_subsys").progs
    checks = {item.field.partition("::")[2]: item for item in program.core_relos if item.kind == "enumval_exists"}
    assert checks["cpu_cgrp_id"].new_value == 1 and checks["debug_cgrp_id"].new_value == 0
    for name, check in checks.items():
        assert {ref.field.partition("::")[2] for ref in check.protects} == {name}


def test_a_check_within_a_dead_branch_is_dead_itself():
    (program,) = cell("process_lineage").progs
    nested = one(program, "task_struct___before_5_5.real_start_time", "field_exists")
    assert (nested.new_value, nested.liveness) == (0, Liveness.ELIMINATED)
    assert [ref.field for ref in nested.guarded_by] == ["task_struct.start_boottime"]


def test_no_relocation_of_an_accepted_program_is_left_unknown():
    for path in RECORDED:
        for program in cell(path.stem).progs:
            if program.verdict is Verdict.LOADED:
                assert {item.liveness for item in program.core_relos} <= {Liveness.LIVE, Liveness.ELIMINATED}, (
                    program.name
                )
                assert not any(item.is_broken for item in program.core_relos)


def test_a_program_refused_before_the_verifier_reaches_nothing():
    refused = prog(cell("exe_name_direct"), "exe_name_fentry")
    assert (refused.verdict, str(refused.stage), refused.errno) == (Verdict.REJECTED, "pre_verifier", 1)
    assert {item.liveness for item in refused.core_relos} == {Liveness.UNREACHED}


@pytest.mark.parametrize("format_", list(FORMATS))
def test_every_format_takes_a_real_run(format_):
    assert render(format_, run_of(*(cell(path.stem) for path in RECORDED)))
