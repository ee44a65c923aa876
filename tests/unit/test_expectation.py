"""Reading and applying expectations (docs/expectations.md)."""

from __future__ import annotations

import dataclasses
import datetime

import pytest

from harness.errors import ConfigError
from harness.judge import not_applicable, review_rules
from harness.model.expectation import NONE, expectations_from
from harness.model.verdict import CellStatus, Verdict
from tests.support.facts import TODAY, begun, evidence, facts, guard, judged, only_prog, poisoned, prog, relo

REFUSED = {"loaded": False, "stage": "verifier"}


def refused(name="prog", **more):
    return prog(name, **{**REFUSED, **more})


@pytest.mark.parametrize(
    ("data", "place"),
    [
        ({"verdct": 1}, "x.yaml: verdct"),
        ({"rules": [{"verdct": "loaded"}]}, "x.yaml: rules[0].verdct"),
        ({"rules": {}}, "x.yaml: rules"),
        ({"rules": [{"verdict": "perhaps"}]}, "x.yaml: rules[0].verdict"),
        ({"rules": [{"verdict": "rejected"}]}, "x.yaml: rules[0].reason"),
        ({"rules": [{"verdict": "loaded", "stage": "core"}]}, "x.yaml: rules[0].stage"),
        ({"rules": [{"program": "p"}]}, "x.yaml: rules[0]"),
        ({"rules": [{"kernels": [], "verdict": "loaded"}]}, "x.yaml: rules[0].kernels"),
        ({"rules": [{"verdict": "any", "reason": "r", "expires": "soon"}]}, "x.yaml: rules[0].expires"),
        ({"rules": [{"relocations": [{"kind": "byte_off"}]}]}, "x.yaml: rules[0].relocations[0].field"),
        ({"rules": [{"relocations": [{"field": "a.b", "kind": "offset"}]}]}, "x.yaml: rules[0].relocations[0].kind"),
        (
            {"rules": [{"relocations": [{"field": "a.b", "liveness": "dead"}]}]},
            "x.yaml: rules[0].relocations[0].liveness",
        ),
        ({"rules": [{"relocations": [{"field": "a.b", "value": 1 << 64}]}]}, "x.yaml: rules[0].relocations[0].value"),
        ({"arches": ["amd64"]}, "x.yaml: arches"),
        ({"settings": [{}, {}]}, "x.yaml: settings"),
        ({"settings": [{"a": [1]}]}, "x.yaml: settings[0].a"),
        ([], "x.yaml"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(data, place):
    with pytest.raises(ConfigError) as caught:
        expectations_from(data, "x.yaml")
    assert str(caught.value).startswith(f"{place}:")


def test_an_empty_file_expects_what_no_file_does():
    empty = expectations_from(None, "x.yaml")
    assert (empty.rules, empty.settings, empty.arches) == (NONE.rules, NONE.settings, NONE.arches) == ((), ((),), ())


def test_settings_become_the_text_the_loader_parses():
    found = expectations_from({"settings": [{}, {"b": True, "a": -3, "c": "eth0"}]}, "x.yaml")
    assert found.settings == ((), (("a", "-3"), ("b", "true"), ("c", "eth0")))


def test_a_yaml_date_and_its_text_are_the_same():
    rule = {"verdict": "any", "reason": "r"}
    texts = [{**rule, "expires": day} for day in ("2027-01-31", datetime.date(2027, 1, 31))]
    first, second = expectations_from({"rules": texts}, "x.yaml").rules
    assert first.expires == second.expires


def test_without_rules_every_program_must_load():
    assert judged(facts([prog()])).status is CellStatus.PASSED
    cell = judged(facts([prog("a"), refused("b")]))
    assert cell.status is CellStatus.FAILED
    assert cell.reason == "b: expected loaded, was rejected at verifier"


def test_an_expected_rejection_passes_and_its_absence_fails():
    rules = {"rules": [{"verdict": "rejected", "stage": "verifier", "reason": "poison"}]}
    assert judged(facts([refused()]), rules).status is CellStatus.PASSED
    assert judged(facts([refused(stage="core")]), rules).status is CellStatus.FAILED
    cell = judged(facts([prog()]), rules)
    assert cell.status is CellStatus.FAILED and "(x.yaml: rules[0]: poison)" in (cell.reason or "")


def test_the_last_match_wins():
    rules = {"rules": [{"verdict": "rejected", "reason": "old"}, {"kernels": "debian-6.1-*", "verdict": "loaded"}]}
    assert judged(facts([prog()]), rules).status is CellStatus.PASSED
    assert judged(facts([prog()]), rules, cell=begun("debian-5.10-cloud-amd64")).status is CellStatus.FAILED


@pytest.mark.parametrize(
    ("selector", "speaks"),
    [
        ({"kernels": "debian-6.?-cloud-*"}, True),
        ({"kernels": ["debian-5*", "debian-7*"]}, False),
        ({"program": "pro*"}, True),
        ({"program": ["a", "b*"]}, False),
        ({"arches": ["arm64"]}, False),
        ({"loader": "libbpf"}, False),
        ({"settings": {"fancy": 1}}, True),
        ({"settings": {"fancy": 0}}, False),
        ({"kernels": "debian-6.1-cloud-amd6[0-9]"}, False),
    ],
)
def test_selectors(selector, speaks):
    rules = {"rules": [{**selector, "verdict": "any", "reason": "r"}]}
    cell = judged(facts([refused()]), rules, cell=begun(settings=(("fancy", "1"),)))
    assert (only_prog(cell).expected.verdict == "any") is speaks


GUARDED = facts(
    [prog(relos=[(0, 1), (1, 3)], evidence=evidence([[0, 3], [4, 6]]))], [guard(0, "a.old", 0), poisoned(1, "a.old")]
)


@pytest.mark.parametrize(
    ("entry", "met"),
    [
        ({"field": "a.old", "kind": "field_exists", "value": 0, "liveness": "live"}, True),
        ({"field": "a.old", "kind": "field_exists", "value": 1}, False),
        ({"field": "a.*", "kind": "byte_off", "outcome": "poisoned", "liveness": "eliminated"}, True),
        ({"field": "a.old", "kind": "byte_off", "outcome": ["resolved", "error"]}, False),
        ({"field": "a.old", "liveness": ["live", "eliminated"]}, True),
        ({"field": "a.old", "liveness": "live"}, False),
        ({"field": "a.old", "source": "use(*);", "kind": "byte_off"}, True),
        ({"field": "a.gone"}, False),
        ({"field": "a.old", "kind": "signed"}, False),
    ],
)
def test_relocations_by_field_and_kind(entry, met):
    cell = judged(GUARDED, {"rules": [{"relocations": [entry]}]})
    assert (cell.status is CellStatus.PASSED) is met, cell.reason


def test_a_later_entry_takes_over_from_an_earlier_one():
    entries = [{"field": "*", "liveness": "live"}, {"field": "a.old", "kind": "byte_off", "liveness": "eliminated"}]
    assert judged(GUARDED, {"rules": [{"relocations": entries}]}).status is CellStatus.PASSED


def test_a_program_says_whether_its_own_promises_are_kept():
    """And a rule about one program's relocations asks nothing of another's."""
    alive, dead = evidence([[0, 9]]), evidence([[2, 9]])
    programs = [prog("a", relos=[(0, 1)], evidence=alive), prog("b", relos=[(0, 1)], evidence=dead)]
    told = {"field": "task_struct.state", "liveness": "live"}
    found = judged(facts(programs, [relo(0)]), {"rules": [{"program": "a", "relocations": [told]}]})
    assert [(item.met, item.unmet, len(item.expected.relocations)) for item in found.progs] == [
        (True, (), 1), (True, (), 0),
    ]  # fmt: skip
    found = judged(facts(programs, [relo(0)]), {"rules": [{"relocations": [told]}]})
    assert [item.met for item in found.progs] == [True, False]
    assert "expected liveness live, was eliminated" in found.progs[1].unmet[0]


def test_a_relocation_that_only_another_program_holds_is_missing():
    programs = [prog("a", relos=[(0, 1)]), prog("b", relos=[(1, 1)])]
    relos = [relo(0, "x.here"), relo(1, "x.there")]
    rules = {"rules": [{"program": "a", "relocations": [{"field": "x.there"}]}]}
    found = judged(facts(programs, relos), rules)
    assert found.reason == "x.yaml: rules[0]: no relocation x.there (kind: any)"


def test_of_a_program_refused_already_only_what_was_reached_is_held_against_it():
    """What lies behind the refusal is its consequence; what the verifier came to is a finding of its own."""
    log = "0: (b7) r1 = 1\n1: (b7) r1 = 2\nR1 !read_ok\n"
    answer = refused(relos=[(0, 1), (1, 5)], log=log, evidence=evidence(None, [[0, 2]]))
    relos = [relo(0, "x.reached"), relo(1, "x.behind")]
    found = judged(facts([answer], relos), {"rules": [{"relocations": [{"field": "x.*", "outcome": "poisoned"}]}]})
    (verdict, reached) = only_prog(found).unmet
    assert verdict.startswith("expected loaded, was rejected") and reached.startswith("x.reached (byte_off")
    entry = {"field": "x.*", "outcome": "poisoned"}
    rules = {"rules": [{"verdict": "rejected", "reason": "r"}, {"relocations": [entry]}]}
    assert len(only_prog(judged(facts([answer], relos), rules)).unmet) == 2  # as expected: then all of it counts


def test_not_proven_is_not_met():
    unproven = facts([prog(relos=[(0, 1)])], [relo(0, "a.b")])
    cell = judged(unproven, {"rules": [{"relocations": [{"field": "a.b", "liveness": "live"}]}]})
    assert cell.status is CellStatus.FAILED and "was unknown" in (cell.reason or "")


def test_negative_values_are_compared_as_u64():
    answer = facts([prog(relos=[(0, 1)])], [relo(0, "e::X", "enumval_value", new_value=(1 << 64) - 5)])
    assert judged(answer, {"rules": [{"relocations": [{"field": "e::X", "value": -5}]}]}).status is CellStatus.PASSED


def test_a_program_named_outright_must_be_there():
    cell = judged(facts([prog()]), {"rules": [{"program": "renamed", "verdict": "loaded"}]})
    assert cell.status is CellStatus.FAILED and "no program 'renamed'" in (cell.reason or "")


def test_an_expired_rule_counts_no_more():
    rule = {"verdict": "any", "reason": "known", "expires": TODAY}
    rules = {"rules": [rule]}
    assert judged(facts([refused()]), rules).status is CellStatus.FAILED
    later = {"rules": [{**rule, "expires": TODAY + datetime.timedelta(days=1)}]}
    assert judged(facts([refused()]), later).status is CellStatus.PASSED


def test_not_applicable_programs_and_cells():
    rules = {"rules": [{"program": "a", "verdict": "not_applicable", "reason": "needs BTF in the kernel"}]}
    cell = judged(facts([refused("a"), prog("b")]), rules)
    assert (cell.status, cell.progs[0].verdict) == (CellStatus.PASSED, Verdict.NOT_APPLICABLE)
    cell = judged(facts([refused("a")]), rules)
    assert (cell.status, cell.reason) == (CellStatus.NOT_APPLICABLE, "needs BTF in the kernel")


def test_arches_leave_a_cell_out_before_anything_boots():
    promises = expectations_from({"arches": ["x86_64"], "reason": "reads fsbase"}, "x.yaml")
    left_out = not_applicable(begun("debian-6.1-cloud-arm64", arch="arm64"), promises)
    assert left_out is not None and left_out.status is CellStatus.NOT_APPLICABLE
    assert left_out.reason == "x is for x86_64, this kernel is arm64: reads fsbase"
    assert not_applicable(begun(), promises) is None


def review(rules, *cells):
    promises = expectations_from({"rules": rules}, "x.yaml")
    return review_rules({"x": promises}, cells, TODAY)


def test_rules_that_outlived_their_purpose_are_reported():
    tolerate = [{"verdict": "any", "reason": "bug 7"}]
    loads, fails = (judged(facts([answer]), {"rules": tolerate}) for answer in (prog(), refused()))
    assert review(tolerate, loads) == ("x.yaml: rules[0]: no longer needed: prog loads wherever it decided (bug 7)",)
    assert review(tolerate, loads, fails) == ()
    assert "matches no program" in review([{"program": "old*", "verdict": "any", "reason": "r"}], loads)[0]
    assert "expired on 2026-01-01" in review([{**tolerate[0], "expires": "2026-01-01"}], loads)[0]
    assert review([{"kernels": "debian-4*", "verdict": "any", "reason": "r"}], loads) == ()


def test_a_rule_overruled_everywhere_is_not_called_unneeded():
    rules = [{"verdict": "any", "reason": "r"}, {"verdict": "loaded"}]
    assert review(rules, judged(facts([prog()]), {"rules": rules})) == ()


def test_a_lost_cell_says_nothing_about_rules():
    lost_cell = dataclasses.replace(judged(facts([prog()])), status=CellStatus.CRASHED)
    assert review([{"verdict": "any", "reason": "r"}], lost_cell) == ()


def test_a_program_that_was_not_judged_shows_no_rule_to_be_unneeded():
    rules = [{"program": "b", "verdict": "rejected", "reason": "r"}]
    lost_in = judged(facts([prog("a"), prog("b", loaded=False, stage=None)]), {"rules": rules})
    whole = dataclasses.replace(lost_in, status=CellStatus.FAILED)
    assert review(rules, whole) == ()
    assert review(rules, dataclasses.replace(whole, progs=())) == ()
