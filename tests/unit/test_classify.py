"""Facts to results: statuses are earned, object-fatal errors, crashes, what is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files

import jsonschema
import pytest

from harness.errors import FetchError, GuestLostError, UsageError
from harness.judge import lost
from harness.model.plain_json import to_json
from harness.model.result import field_of, run_from_json
from harness.model.verdict import CellStatus, Liveness, Outcome, Stage, Verdict
from harness.report import json_format
from harness.report.view import mark
from tests.support.facts import (
    begun,
    evidence,
    facts,
    guard,
    judged,
    only_prog,
    poisoned,
    prog,
    relo,
    relocation,
    run_of,
)

CORE_ERROR = {"stage": "core", "errno": 22, "message": "relo #1: field offset ambiguity", "relo": 1}


def test_a_result_begins_as_crashed():
    assert begun().status is CellStatus.CRASHED
    assert begun().id == "debian-6.1-cloud-amd64/x@python"
    assert begun().rerun == "corematrix run x.bpf.o --only 'debian-6.1-cloud-amd64/x@python'"


def test_facts_of_another_version_are_trouble_and_no_judgement():
    assert judged(facts([prog()], facts=2)).status is CellStatus.ERROR


def test_a_program_without_a_verdict_keeps_the_cell_crashed():
    cell = judged(facts([prog("a"), prog("b", loaded=False, stage=None)]))
    assert cell.status is CellStatus.CRASHED
    assert [item.verdict for item in cell.progs] == [Verdict.LOADED, Verdict.NOT_JUDGED]
    assert not cell.progs[1].met and cell.reason == "not judged: b"


def test_a_broken_expectation_stands_beside_a_lost_program():
    cell = judged(facts([prog("a", loaded=False), prog("b", loaded=False, stage=None)]))
    assert cell.status is CellStatus.FAILED


def test_an_object_without_programs_passes_nothing():
    assert judged(facts([])).status is CellStatus.NOT_APPLICABLE
    assert judged(facts([prog(autoload=False, loaded=False, stage=None)])).status is CellStatus.NOT_APPLICABLE


def test_an_object_refused_before_its_programs_are_known_fails():
    error = {"stage": "open", "errno": 8, "message": "not an ELF file", "relo": None}
    cell = judged(facts([], object_error=error))
    assert (cell.status, cell.reason) == (CellStatus.FAILED, "refused at open: not an ELF file")


@pytest.mark.parametrize(
    ("source", "config", "status"),
    [
        ({"kind": "apt", "package": "linux-image-7.1.13"}, None, CellStatus.ERROR),
        ({"kind": "apt", "package": "linux-image-7.1.13"}, "00" * 32, CellStatus.FAILED),
        ({"kind": "path"}, None, CellStatus.FAILED),
        ({"kind": "local"}, None, CellStatus.FAILED),
    ],
)
def test_a_configuration_that_only_the_archive_has_lost_is_nothing_the_kernel_said(source, config, status):
    """trixie-backports keeps linux-binary of 6.19 to 7.1, and drops linux-base, which has /boot/config."""
    said = "failed to open system Kconfig (/boot/config-RELEASE, /proc/config.gz)"  # libbpf's words
    error = {"stage": "externs", "errno": 22, "message": said, "relo": None}
    cell = begun("debian-7.1-generic-amd64")
    cell = replace(cell, kernel=replace(cell.kernel, source=source, config_sha256=config))
    found = judged(facts([prog(loaded=False, stage="externs")], object_error=error), cell=cell)
    assert found.status is status
    gone = "linux-image-7.1.13 is no longer in the repository" in found.reason
    assert gone is (status is CellStatus.ERROR)


def test_a_rule_may_leave_out_a_kernel_whose_configuration_the_archive_has_lost():
    error = {"stage": "externs", "errno": 22, "message": "failed to open system Kconfig (...)", "relo": None}
    cell = begun("debian-7.1-generic-amd64")
    cell = replace(cell, kernel=replace(cell.kernel, source={"kind": "apt"}, config_sha256=None))
    rules = [{"kernels": "debian-7.1-*", "verdict": "not_applicable", "reason": "no configuration"}]
    answer = facts([prog(loaded=False, stage="externs")], object_error=error)
    found = judged(answer, {"rules": rules}, cell=cell)
    assert (found.status, found.reason) == (CellStatus.NOT_APPLICABLE, "no configuration")


def test_a_fatal_relocation_refuses_every_program_and_says_what_each_does_alone():
    relos = [relo(0), relo(1, outcome="error", new_value=None, reason="field offset ambiguity", function="b")]
    programs = [
        prog("a", alone=True, relos=[(0, 1)], evidence=evidence([[0, 9]])),
        prog("b", loaded=False, stage="core", errno=22),
    ]
    cell = judged(facts(programs, relos, object_error=CORE_ERROR))
    first, second = cell.progs
    assert (first.verdict, first.stage, first.error) == (Verdict.REJECTED, Stage.CORE, CORE_ERROR["message"])
    assert first.alone is not None and first.alone.verdict is Verdict.LOADED
    assert str(first.core_relos[0].liveness) == "live"
    assert (second.verdict, second.alone, second.core_relos[0].outcome) == (Verdict.REJECTED, None, Outcome.ERROR)
    assert cell.status is CellStatus.FAILED


@pytest.mark.parametrize(
    ("own", "stage", "alone"),
    [
        ({"loaded": False, "stage": None}, Stage.CORE, None),
        ({"loaded": True}, None, None),  # what it does by itself is not what libbpf makes of the object
        ({"loaded": False, "stage": "open"}, Stage.OPEN, None),
        ({"loaded": False, "stage": "verifier", "alone": True}, Stage.CORE, (Verdict.REJECTED, Stage.VERIFIER)),
        ({"loaded": False, "stage": None, "alone": True}, Stage.CORE, (Verdict.NOT_JUDGED, None)),
        ({"loaded": True, "alone": True}, Stage.CORE, (Verdict.LOADED, None)),
    ],
)
def test_whose_stage_counts_where_an_error_is_fatal_for_the_object(own, stage, alone):
    found = only_prog(judged(facts([prog(**own)], object_error=CORE_ERROR)))
    assert found.stage is (stage or Stage.CORE) and found.verdict is Verdict.REJECTED
    assert alone == (None if found.alone is None else (found.alone.verdict, found.alone.stage))


def test_a_refusal_is_told_in_its_own_words_or_by_its_errno():
    said = [judged(facts([prog(loaded=False, errno=13, error=text)])) for text in ("in words", None)]
    assert only_prog(said[0]).error == "in words"
    assert only_prog(said[1]).error == "EACCES (13)"


def test_relocations_that_were_left_out_are_counted():
    assert judged(facts([prog()], skipped_core_relos=3)).skipped_core_relos == 3


def test_a_program_that_kills_the_kernel_has_a_verdict():
    cell = judged(
        facts([prog("a"), prog("b", loaded=False, stage=None)]), crashed={"b": "[1.0] BUG: null\n[1.1] RIP: 0"}
    )
    assert cell.progs[1].verdict is Verdict.CRASHED
    assert cell.progs[1].explanation == ("[1.0] BUG: null", "[1.1] RIP: 0")
    assert cell.status is CellStatus.FAILED
    # The guest that answered was asked to leave it out, and need not name it.
    assert judged(facts([prog("a")]), crashed={"b": "BUG"}).progs[1].verdict is Verdict.CRASHED
    rules = {"rules": [{"program": "b", "verdict": "crashed", "reason": "no dead-code sanitising"}]}
    assert judged(facts([prog("a")]), rules, crashed={"b": "BUG"}).status is CellStatus.PASSED


# 4.6-shaped kernel (tests/vm/old_shapes) at a dead poisoned call, as its console had it.
OOPS = """Run /usr/bin/python3.11 as init process
BUG: kernel NULL pointer dereference, address: 0000000000000000
#PF: supervisor read access in kernel mode
Oops: 0000 [#1] SMP
CPU: 1 PID: 1 Comm: python3.11 Not tainted 6.1.192 #3
RIP: 0010:do_misc_fixups+0x9aa/0xaa3
Code: 49 89 c7 48 85 c0 0f 84 5b f9 ff ff 49 63 c4
RAX: 0000000000000000 RBX: ffffc90000269078 RCX: 0000000000000000
FS:  00007f2d8cbe8040(0000) GS:ffff88800ed00000(0000) knlGS:0000000000000000
CR2: 0000000000000000 CR3: 000000000074e000 CR4: 00000000000006a0
Call Trace:
 <TASK>
 ? bpf_check+0x23e9/0x2fb9
 </TASK>
Kernel panic - not syncing: Fatal exception
"""


def test_a_program_that_killed_its_kernel_keeps_what_is_known_of_it():
    """Its relocations from the facts on the others, the oops without registers, and that guarded poison can do this."""
    told = facts([prog("a"), prog("b", loaded=False, stage=None)], [relo(0, prog="b"), poisoned(1, "t.gone", prog="b")])
    _, crashed = judged(told, crashed={"b": OOPS}).progs
    assert crashed.verdict is Verdict.CRASHED
    assert [(r.outcome, r.liveness) for r in crashed.core_relos] == [
        (Outcome.RESOLVED, Liveness.UNKNOWN),
        (Outcome.POISONED, Liveness.UNKNOWN),
    ]
    advice, *report = crashed.explanation
    assert "t.gone is poisoned here" in advice and "c131187db2d3" in advice
    assert report == [line for line in OOPS.splitlines()[1:] if line[:2] not in {"Co", "RA", "FS", "CR", " <"}]
    innocent = judged(facts([prog("b", loaded=False, stage=None)], [relo(0, prog="b")]), crashed={"b": "BUG: x"})
    assert innocent.progs[0].explanation == ("BUG: x",)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (GuestLostError("hung", status="timeout", console_tail="[1.0] soft lockup"), CellStatus.TIMEOUT),
        (GuestLostError("panic"), CellStatus.CRASHED),
        (FetchError("404", remedy="look at the suite"), CellStatus.ERROR),
    ],
)
def test_no_facts_is_trouble_with_its_reason(error, status):
    cell = lost(begun(), error)
    assert cell.status is status and error.message in (cell.reason or "")
    assert cell.console_tail == (getattr(error, "console_tail", "") or None)


def test_subprogram_relocations_keep_their_function_and_both_places():
    cell = judged(facts([prog(relos=[(0, 31)], evidence=evidence([[0, 40]]))], [relo(0, function="helper", insn=1)]))
    found = relocation(cell, 0)
    assert (found.prog, found.insn, found.final_insn) == ("helper", 1, 31)


def test_adaptations_that_libbpf_would_not_make_are_noted():
    made = [
        {"name": "no_prog_name", "libbpf": True, "detail": "-"},
        {"name": "min_btf", "libbpf": False, "detail": "4.9"},
    ]
    assert only_prog(judged(facts([prog(adaptations=made)]))).notes == (
        "loaded with an adaptation libbpf would not make: min_btf: 4.9",
    )


FOLDED = [{"name": "constants_folded", "libbpf": False, "detail": "-"}]


@pytest.mark.parametrize(
    ("rules", "status"),
    [
        (None, CellStatus.PASSED),
        ([{"adaptations": "refused"}], CellStatus.FAILED),
        ([{"adaptations": "refused", "program": "other*"}], CellStatus.PASSED),
        ([{"adaptations": "refused"}, {"adaptations": "allowed", "kernels": "debian-6.1-*"}], CellStatus.PASSED),
    ],
)
def test_adaptations_close_the_gate_where_a_rule_says_so(rules, status):
    answer = facts([prog(adaptations=FOLDED)])
    cell = judged(answer, {"rules": rules} if rules else None)
    assert cell.status is status
    if status is CellStatus.FAILED:
        said = "loads only with constants_folded, which libbpf does not do (x.yaml: rules[0])"
        assert only_prog(cell).unmet == (said,)
    assert judged(facts([prog()]), {"rules": [{"adaptations": "refused"}]}).status is CellStatus.PASSED


def test_the_table_marks_what_libbpf_would_not_load():
    starred, plain = judged(facts([prog(adaptations=FOLDED)])), judged(facts([prog()]))
    assert (mark(starred, only_prog(starred)).word, mark(plain, only_prog(plain)).word) == ("ok*", "ok")


def test_the_excerpt_is_what_the_verifier_said_last():
    log = "0: (b7) r0 = 0\nR1 type=inv expected=imm\nprocessed 3 insns (limit 1000000)\n"
    cell = judged(facts([prog(loaded=False, log=log, verifier={"processed_insns": 3, "newer_figure": 1})]))
    stats = only_prog(cell).verifier
    assert stats is not None and stats.processed_insns == 3
    assert stats.log_excerpt == "0: (b7) r0 = 0\nR1 type=inv expected=imm"


# The texts are libbpf's bpf_core_format_spec() for each group of kinds.
@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ("<byte_off> [5] struct task_struct.pid (0:92 @ offset 1264)", "task_struct.pid"),
        ("<rshift_u64> [7] struct tcp_sock.repair (0:3:1 @ offset 12.5)", "tcp_sock.repair"),
        ("<byte_off> [9] struct mm_struct.rss_stat.count[1] (0:0:1 @ offset 8)", "mm_struct.rss_stat.count[1]"),
        ("<byte_off> [9] struct a[2].b (2:0 @ offset 8)", "a[2].b"),
        ("<byte_off> [9] union <anon>.x (0:0 @ offset 0)", "<anon>.x"),
        ("<type_exists> [4] struct bpf_ringbuf", "bpf_ringbuf"),
        ("<target_type_id> [4] func_proto <anon>", "<anon>"),
        ("<enumval_value> [3] enum bpf_func_id::BPF_FUNC_x = 130", "bpf_func_id::BPF_FUNC_x"),
        ("<enumval_value> [3] enum64 e::X = -1", "e::X"),
        ("something else", "something else"),
    ],
)
def test_the_field_of_a_spec(spec, field):
    assert field_of(spec) == field


def full_run():
    """One cell of every shape the schema has."""
    relos = [
        guard(0, "a.old", 0),
        poisoned(1, "a.old", candidates=[{"name": "struct a", "id": 7, "why_not": "no"}]),
        relo(2),
    ]
    flips = [{"relo": 0, "insn": 1, "value": 1, "loaded": False, "errno": 13, "survived": None, "visited": [[0, 4]]}]
    guarded = prog(
        relos=[(0, 1), (1, 3)],
        evidence=evidence([[0, 3], [4, 9]], flips=flips),
        verifier={"processed_insns": 9, "insn_limit": 1000000},
    )
    refused = prog(
        "r",
        loaded=False,
        log="3: (85) call unknown#195896080\ninvalid func unknown#195896080\n",
        relos=[(1, 3), (2, 5)],
        evidence=evidence(None, [[0, 4]]),
    )
    extern = {"name": "CONFIG_HZ", "kind": "kconfig", "type": "int", "value": 250, "weak": False, "outcome": "resolved"}
    return run_of(
        judged(facts([guarded, refused], relos, externs=[extern])),
        judged(facts([prog("a", alone=True)], object_error=CORE_ERROR), cell=begun("debian-7.2-cloud-amd64")),
        lost(begun("debian-5.10-cloud-amd64"), GuestLostError("panic", console_tail="tail")),
    )  # fmt: skip


def test_json_holds_to_the_shipped_schema():
    schema = json.loads(files("harness.report").joinpath("schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    data = json.loads(json_format.render(full_run()))
    jsonschema.Draft202012Validator(schema).validate(data)
    assert [cell["status"] for cell in data["cells"]] == ["failed", "failed", "crashed"]


# docs/contract.md, `run --json` and `inspect --format jsonl`, retyped: names there may never go away.
CONTRACT = {
    (): "schema tool host started seconds cells",
    ("cells",): "id status reason attempts console_tail substituted disagreements kernel object settings loader "
    "loader_version accelerator cpus start seconds rerun externs progs",
    ("cells", "kernel"): "id release arch variant source btf_sha256",
    ("cells", "object"): "name path sha256",
    ("cells", "externs"): "name kind value weak outcome",
    (
        "cells",
        "progs",
    ): "name section prog_type verdict stage error expected met adaptations attach verifier core_relos",
    ("cells", "progs", "verifier"): "processed_insns total_states peak_states max_states_per_insn stack_depth "
    "verification_usec log log_excerpt",
    (
        "cells",
        "progs",
        "core_relos",
    ): "prog section insn kind local_spec target_spec outcome orig_value new_value before "
    "after reason local target candidates source liveness evidence behind protects guarded_by",
    ("cells", "progs", "core_relos", "candidates"): "name id why_not",
    ("cells", "progs", "core_relos", "source"): "file line text",
}


@pytest.mark.parametrize("path", CONTRACT)
def test_every_name_of_the_contract_is_there(path):
    def descend(data, keys):
        if isinstance(data, list):
            return [leaf for item in data for leaf in descend(item, keys)]
        return [data] if not keys else [] if data is None else descend(data[keys[0]], keys[1:])

    found = descend(to_json(full_run()), path)
    assert found and all(set(CONTRACT[path].split()) <= item.keys() for item in found if item)


def test_a_run_survives_its_own_json():
    run = full_run()
    assert run_from_json(json.loads(json_format.render(run))) == run


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(schema=2), "schema is 2"),
        (lambda data: data.pop("cells"), "run: no 'cells'"),
        (lambda data: data["cells"][0].update(status="fine"), r"run.cells\[0\].status: one of passed"),
        (lambda data: data["cells"][0]["progs"][0].update(core_relos={}), r"progs\[0\].core_relos: a list wanted"),
    ],
)
def test_what_is_not_a_run_is_refused_by_place(change, words):
    data = json.loads(json_format.render(full_run()))
    change(data)
    with pytest.raises(UsageError, match=words):
        run_from_json(data)


def test_unknown_names_are_ignored():
    data = json.loads(json_format.render(full_run()))
    data["cells"][0]["new_in_a_later_release"] = 1
    assert run_from_json(data) == full_run()
