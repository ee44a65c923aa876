"""The guard audit: each remark from cells whose answer can be seen by looking."""

from __future__ import annotations

import pytest

from harness.report import render
from harness.report.audit import Topic, audit, guards
from harness.report.view import View
from tests.support.facts import begun, evidence, facts, guard, judged, poisoned, prog, relo, run_of

OLD, NEW, ARM = "debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64", "debian-6.1-cloud-arm64"
LOG = "2: (85) call unknown#195896080\ninvalid func unknown#195896080\n"
VERSION = {"name": "LINUX_KERNEL_VERSION", "kind": "kconfig", "value": 1, "weak": False, "outcome": "resolved"}
# Instruction 1 is live, 2 is not.
FIRST_ONLY = evidence([[0, 2], [3, 9]])


def cell(kernel, relos, found=FIRST_ONLY, *, externs=(), loaded=True):
    places = [(number, 1 + number) for number in range(len(relos))]
    program = prog(loaded=loaded, relos=places, evidence=found, log="" if loaded else LOG)
    return judged(facts([program], list(relos), externs=list(externs)), cell=begun(kernel, "tool"))


def said(*cells):
    return [(remark.topic, remark.field, remark.kernels) for remark in audit(run_of(*cells))]


def test_poison_that_is_reached_is_named_with_its_kernels():
    cells = [cell(kernel, [relo(0, "task_struct.pid"), poisoned(1, "thread_struct.fs")], evidence(None, [[0, 3]]),
                  loaded=False) for kernel in (OLD, NEW)]  # fmt: skip
    cells.append(cell(ARM, [relo(0, "task_struct.pid"), relo(1, "thread_struct.fs")], evidence([[0, 9]])))
    assert said(*cells) == [(Topic.UNGUARDED, "thread_struct.fs", (OLD, NEW))]


@pytest.mark.parametrize(
    ("values", "remarks"), [((0, 1), []), ((1, 1), [Topic.ONE_WAY]), ((0, 0), [Topic.ONE_WAY]), ((1,), [Topic.ONE_WAY])]
)
def test_a_check_counts_as_tried_when_it_came_out_both_ways(values, remarks):
    cells = [cell(kernel, [guard(0, "a.b", value)]) for kernel, value in zip((OLD, NEW), values, strict=False)]
    found = audit(run_of(*cells))
    assert [remark.topic for remark in found] == remarks
    assert all(f"always {values[0]}: the code for {1 - values[0]}" in remark.text for remark in found)


def test_a_check_in_dead_code_was_not_tried():
    """What it would have been on another kernel says nothing: the verifier never came to it."""
    alive = [cell(OLD, [relo(0), guard(1, "a.b", 1)], evidence([[0, 9]]))]
    dead = [cell(NEW, [relo(0), guard(1, "a.b", 0)])]
    assert said(*alive, *dead) == [(Topic.ONE_WAY, "a.b", (OLD, NEW))]
    (remark,) = audit(run_of(*dead))
    assert remark.text == "the verifier comes to this check on no kernel of this run"


def test_a_flavor_is_chosen_where_it_resolves_and_lives():
    newer, older = relo(0, "task_struct.__state"), relo(1, "task_struct___old.state")
    unused = [cell(OLD, [newer, poisoned(1, "task_struct___old.state")]), cell(NEW, [newer, older])]
    assert said(*unused) == [(Topic.NEVER_CHOSEN, "task_struct___old.state", (OLD, NEW))]
    assert said(*unused, cell(ARM, [newer, older], evidence([[0, 9]]))) == []
    # A check on a flavor chooses it when it is 1 there.
    assert [item[0] for item in said(cell(OLD, [guard(0, "a___x.b", 0)]))] == [Topic.ONE_WAY, Topic.NEVER_CHOSEN]
    assert said(cell(OLD, [guard(0, "a___x.b", 0)]), cell(NEW, [guard(0, "a___x.b", 1)])) == []


def test_a_version_guard_the_wrong_way_round():
    """As tests/objects' fsbase_as_published: what is missing is kept, what is there is dropped."""
    relos = [poisoned(0, "thread_struct___v46.fs"), relo(1, "thread_struct.fsbase")]
    step = {"neutralised": [1], "loaded": True, "errno": None, "visited": [[0, 2], [3, 9]], "stop": None}
    found = evidence(None, [[0, 2]], analysis=[step])
    code = "AAAAAAAAAAA="  # one no-op: from the poison, no path leads to the other read
    program = prog(loaded=False, relos=[(0, 1), (1, 2)], evidence=found, log=LOG.replace("2:", "1:"), insns=code)
    answer = facts([program], relos, externs=[VERSION])
    remarks = audit(run_of(judged(answer, cell=begun(OLD, "tool"))))
    assert [remark.topic for remark in remarks] == [Topic.WRONG_WAY, Topic.NEVER_CHOSEN]
    assert "drops thread_struct.fsbase, which has one" in remarks[0].text
    # Without the extern it is plain unguarded poison.
    assert audit(run_of(judged({**answer, "externs": []}, cell=begun(OLD, "tool"))))[0].topic is Topic.UNGUARDED


def test_a_read_the_version_decides_is_named_and_one_a_check_decides_is_not():
    by_version = cell(NEW, [relo(0, "task_struct.pid"), poisoned(1, "task_struct.gone")], externs=[VERSION])
    assert said(by_version) == [(Topic.BY_VERSION, "task_struct.gone", (NEW,))]
    assert said(cell(NEW, [relo(0, "task_struct.pid"), poisoned(1, "task_struct.gone")])) == []
    checked = [cell(kernel, [guard(0, "task_struct.gone", value), poisoned(1, "task_struct.gone")], externs=[VERSION])
               for kernel, value in ((OLD, 0), (NEW, 1))]  # fmt: skip
    assert Topic.BY_VERSION not in [item[0] for item in said(*checked)]


def test_guards_are_summed_up_by_object():
    cells = [
        cell(OLD, [guard(0, "a.b", 0), poisoned(1, "a.b")]),
        cell(NEW, [guard(0, "a.b", 1), relo(1, "a.b")], evidence([[0, 9]])),
    ]
    (found,) = guards(View(run_of(*cells)))
    assert (found.subject, found.both, found.eliminated, found.kernels) == ("tool", ("a.b",), 1, (OLD,))


def test_the_text_names_line_field_and_kernels():
    text = render("audit", run_of(cell(OLD, [guard(0, "a.b", 1, line=31)]), cell(NEW, [guard(0, "a.b", 1, line=31)])))
    assert "Checks that no kernel of this run takes both ways (1)" in text
    assert "tool/prog  x.bpf.c:31  a.b (field_exists)" in text
    assert "every kernel: always 1: the code for 0 was never verified" in text
    assert "nothing to remark" in render("audit", run_of(cell(OLD, [relo(0)])))


def test_markdown_folds_the_audit_in():
    text = render("markdown", run_of(cell(OLD, [guard(0, "a.b", 1, line=31)])))
    assert "<details><summary>Guard audit: 1 remarks</summary>" in text
    assert "tool/prog x.bpf.c:31 <code>a.b</code> field_exists on debian-5.10-cloud-amd64: always 1" in text
    assert "Guard audit" not in render("markdown", run_of(cell(OLD, [relo(0)])))
