"""Regressions, lost coverage, drift and cost between two runs."""

from __future__ import annotations

import dataclasses
import json

import pytest

from harness.errors import GuestLostError
from harness.judge import lost
from harness.report import render_diff
from harness.report.diff import CostLimits, Kind, diff
from tests.support.facts import begun, evidence, facts, guard, judged, poisoned, prog, relo, run_of

ALIVE, DEAD = evidence([[0, 9]]), evidence([[0, 1], [2, 9]])
LOG = "1: (85) call unknown#195896080\ninvalid func unknown#195896080\n"


def cell(*progs, relos=(), **more):
    return judged(facts(list(progs), list(relos)), **more)


def changes(old, new, **more):
    base, now = (run_of(*([item] if item else [])) for item in (old, new))
    return [(change.kind.value, change.text) for change in diff(base, now, **more).changes]


def one(old, new, **more):
    (found,) = changes(old, new, **more)
    return found


LOADED, REFUSED = cell(prog()), cell(prog(loaded=False))


def test_equal_runs_do_not_differ():
    same = cell(prog(relos=[(0, 1)], evidence=ALIVE), relos=[relo(0)])
    assert changes(same, same) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (LOADED, REFUSED, ("regression", "loaded before, now rejected at verifier")),
        (REFUSED, LOADED, ("improvement", "rejected at verifier before, now loaded")),
        (LOADED, cell(prog(), crashed={"prog": "BUG"}), ("regression", "loaded before, now crashed")),
        (REFUSED, cell(prog(), crashed={"prog": "BUG"}), ("regression", "rejected at verifier before, now crashed")),
        (LOADED, None, ("regression", "gone: this cell was judged before (lost coverage)")),
        (None, LOADED, ("change", "not judged before, now passed")),
        (LOADED, lost(begun(), GuestLostError("panic")), ("trouble", "crashed: panic")),
        (lost(begun(), GuestLostError("panic")), LOADED, ("change", "not judged before, now passed")),
    ],
)
def test_programs_and_cells(old, new, expected):
    assert expected in changes(old, new)


def test_a_cell_that_fails_as_it_did_is_no_better():
    assert changes(REFUSED, REFUSED) == []
    assert ("improvement", "failed before, now passed") in changes(REFUSED, LOADED)


def test_a_lost_program_is_a_regression_and_a_new_one_is_not():
    both = cell(prog("a"), prog("b"))
    assert changes(both, cell(prog("a"))) == [("regression", "gone: loaded before, now not in the object")]
    assert changes(cell(prog("a")), both) == [("change", "new: loaded")]


def test_passed_to_not_applicable_is_lost_coverage():
    rules = {"rules": [{"verdict": "not_applicable", "reason": "gave up"}]}
    assert one(LOADED, cell(prog(), rules=rules))[0] == "regression"


@pytest.mark.parametrize(
    ("old", "new", "kind"),
    [
        ((relo(0), ALIVE), (poisoned(0), DEAD), "regression"),
        ((poisoned(0), DEAD), (relo(0), ALIVE), "improvement"),
        ((relo(0), ALIVE), (relo(0), DEAD), "change"),
        ((relo(0), ALIVE), (relo(0), evidence()), "trouble"),
        ((guard(0, "a.b", 1), ALIVE), (guard(0, "a.b", 0), ALIVE), "change"),
    ],
)
def test_relocations(old, new, kind):
    before, after = (cell(prog(relos=[(0, 1)], evidence=found), relos=[line]) for line, found in (old, new))
    assert one(before, after)[0] == kind


def test_dead_poison_that_comes_alive_is_a_regression():
    before = cell(prog(relos=[(0, 1)], evidence=DEAD), relos=[poisoned(0)])
    after = cell(prog(loaded=False, relos=[(0, 1)], log=LOG), relos=[poisoned(0)])
    assert ("regression", "poisoned, eliminated before, now poisoned, live") in changes(before, after)


def test_a_relocation_that_is_gone_is_lost_coverage():
    before = cell(prog(relos=[(0, 1), (1, 2)], evidence=ALIVE), relos=[relo(0), relo(1, "a.b")])
    after = cell(prog(relos=[(0, 1)], evidence=ALIVE), relos=[relo(0)])
    assert one(before, after) == ("regression", "gone: resolved, live before")


def test_edits_elsewhere_and_other_offsets_make_nothing_new():
    before = cell(prog(relos=[(0, 1)], evidence=ALIVE), relos=[relo(0, line=10, text="x = t->pid;")])
    moved = relo(
        0,
        line=99,
        text="x = t->pid;",
        insn=7,
        new_value=1304,
        local_spec="<byte_off> [77] struct task_struct.state (0:9 @ offset 9)",
    )
    after = cell(prog(relos=[(0, 5)], evidence=ALIVE), relos=[moved])
    after = dataclasses.replace(after, kernel=dataclasses.replace(after.kernel, release="6.1.0-51-cloud-amd64"))
    assert changes(before, after) == []


@pytest.mark.parametrize(("name", "value"), [("size", 4), ("signed", True), ("kind", "struct")])
def test_silent_drift(name, value):
    target = {"size": 8, "signed": False, "kind": "int"}
    before, after = (
        cell(prog(relos=[(0, 1)], evidence=ALIVE), relos=[relo(0, target=t)]) for t in (target, {**target, name: value})
    )
    kind, text = one(before, after)
    assert kind == "regression" and text.startswith(f"drift: the field's {name} was")


def costing(**figures):
    return cell(prog(verifier={"insn_limit": 1000000, **figures}))


@pytest.mark.parametrize(
    ("old", "new", "regressed"),
    [
        (10_000, 11_900, False),  # 19%
        (10_000, 12_100, True),
        (100, 1000, False),  # ten times as much of nearly nothing
        (840_000, 860_000, True),  # 2.4%, but past 85% of the limit
        (850_000, 860_000, True),  # was at it, not past it
        (860_000, 870_000, False),  # was past it before
    ],
)
def test_verifier_cost(old, new, regressed):
    found = changes(costing(processed_insns=old), costing(processed_insns=new))
    assert bool(found) is regressed and all(kind == "regression" for kind, _ in found)


def test_cost_limits_are_the_callers():
    limits = CostLimits(percent=0, absolute={"stack_depth": 0})
    assert changes(costing(stack_depth=64), costing(stack_depth=72)) == []
    assert one(costing(stack_depth=64), costing(stack_depth=72), limits=limits) == (
        "regression",
        "stack_depth grew from 64 to 72",
    )


def test_a_broken_expectation_alone_is_a_regression_of_the_cell():
    answer = facts([prog(relos=[(0, 1)], evidence=ALIVE)], [guard(0, "a.b", 1)])
    before = judged(answer)
    after = judged(answer, {"rules": [{"relocations": [{"field": "a.b", "value": 0}]}]})
    kind, text = one(before, after)
    assert kind == "regression" and "passed before, now failed" in text


def test_text_puts_equal_changes_of_several_kernels_together():
    kernels = ["debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64", "debian-6.1-rt-amd64"]
    base = run_of(*(cell(prog(), cell=begun(kernel)) for kernel in kernels))
    new = run_of(*(cell(prog(loaded="6.1" not in kernel), cell=begun(kernel)) for kernel in kernels))
    found = diff(base, new)
    assert found.regressed and len(found.of(Kind.REGRESSION)) == 2
    text = render_diff("text", found)
    assert text.splitlines()[:3] == [
        "Regressions (2)",
        "  x@python / prog  debian-6.1-*",
        "    loaded before, now rejected at verifier",
    ]
    assert json.loads(render_diff("json", found))["regressed"] is True
    assert render_diff("text", diff(base, base)) == "no difference\n"


def test_an_edited_line_is_the_same_relocation_with_another_text():
    before = cell(prog(relos=[(0, 1), (1, 3)], evidence=ALIVE), relos=[relo(0, text="x = a;"), relo(1, text="y = a;")])
    edited = [relo(0, text="x = a;"), relo(1, text="if (ok) y = a;")]
    assert changes(before, cell(prog(relos=[(0, 1), (1, 3)], evidence=ALIVE), relos=edited)) == []
    worse = cell(prog(relos=[(0, 1), (1, 3)], evidence=ALIVE), relos=[edited[0], relo(1, "other.field")])
    assert [kind for kind, _ in changes(before, worse)] == ["regression", "change"]


def test_what_was_refused_before_relocation_has_lost_no_relocation():
    before = cell(prog(relos=[(0, 1)], evidence=ALIVE), relos=[relo(0)])
    after = cell(prog(loaded=False, stage="open"))
    assert one(before, after) == ("regression", "loaded before, now rejected at open")


def test_programs_of_a_lost_guest_are_not_gone():
    before = cell(prog("a"), prog("b"))
    after = dataclasses.replace(cell(prog("a")), status=lost(begun(), GuestLostError("panic")).status, reason="panic")
    assert one(before, after) == ("trouble", "crashed: panic")


def test_what_a_lost_guest_had_judged_before_counts():
    before = cell(prog("a"), prog("b"))
    after = dataclasses.replace(
        cell(prog("a", loaded=False)), status=lost(begun(), GuestLostError("panic")).status, reason="panic"
    )
    assert changes(before, after) == [
        ("trouble", "crashed: panic"), ("regression", "loaded before, now rejected at verifier"),
    ]  # fmt: skip


def test_what_no_longer_resolves_has_not_drifted_as_well():
    told = {"size": 8, "signed": False, "kind": "int"}
    before = cell(prog(relos=[(0, 1)], evidence=ALIVE), relos=[relo(0, target=told)])
    after = cell(prog(relos=[(0, 1)], evidence=DEAD), relos=[poisoned(0, target={**told, "size": 4})])
    assert one(before, after)[1] == "resolved, live before, now poisoned, eliminated"


def test_a_new_program_near_the_limit_is_told():
    big = {"processed_insns": 900_000, "insn_limit": 1_000_000}
    found = changes(cell(prog("a")), cell(prog("a"), prog("b", verifier=big)))
    assert found == [("change", "new: loaded"), ("change", "processed_insns is 90% of the verifier's limit of 1000000")]
