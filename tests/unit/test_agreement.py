"""What counts as a disagreement between loaders, on facts written by hand: every kind of row once, and nothing else."""

from __future__ import annotations

import base64
import copy
import struct
from typing import Any

import pytest

from harness.judge.agreement import disagreements, normalised

LDIMM64, CALL, EXIT = 0x18, 0x85, 0x95


def _code(*insns: tuple[int, int, int, int]) -> str:
    return base64.b64encode(b"".join(struct.pack("<BBhi", *insn) for insn in insns)).decode()


def _prog(name: str = "f", **changes: Any) -> dict[str, Any]:
    prog = {
        "name": name, "section": "xdp", "prog_type": "xdp", "autoload": True, "loaded": True, "alone": False,
        "stage": None, "errno": None, "error": None, "refs": [], "relos": [{"relo": 0, "insn": 0}],
        "insns": _code((0xB7, 0, 0, 8), (EXIT, 0, 0, 0)),
    }  # fmt: skip
    return {**prog, **changes}


def _relo(**changes: Any) -> dict[str, Any]:
    relo = {
        "section": "xdp", "prog": "f", "insn": 0, "kind": "byte_off", "outcome": "resolved",
        "local_spec": "<byte_off> [2] struct s.a", "target_spec": "<byte_off> [9] struct s.a", "orig_value": 4,
        "new_value": 8, "before": "b700000004000000", "after": "b700000008000000",
    }  # fmt: skip
    return {**relo, **changes}


def _facts(**changes: Any) -> dict[str, Any]:
    facts = {
        "object_error": None, "skipped_core_relos": 0, "core_relos": [_relo()], "externs": [], "maps": [],
        "progs": [_prog()],
    }  # fmt: skip
    return {**facts, **changes}


def _fields(mine: dict[str, Any], theirs: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["what"], row["field"]) for row in disagreements(mine, theirs)]


def test_the_same_facts_agree() -> None:
    assert disagreements(_facts(), copy.deepcopy(_facts())) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("outcome", "poisoned"),
        ("new_value", 12),
        ("after", "b70000000c000000"),
        ("target_spec", None),
        ("orig_value", 0),
    ],
)
def test_each_part_of_a_relocation_counts(field: str, value: object) -> None:
    assert ("core_relo", field) in _fields(_facts(), _facts(core_relos=[_relo(**{field: value})]))


def test_a_relocation_that_only_one_has_is_a_row() -> None:
    assert _fields(_facts(), _facts(core_relos=[])) == [("core_relo", "present")]


def test_libbpf_does_not_tell_the_old_value_of_what_it_poisons() -> None:
    mine = _facts(core_relos=[_relo(outcome="poisoned", new_value=None)])
    theirs = _facts(core_relos=[_relo(outcome="poisoned", new_value=None, orig_value=None)])
    assert disagreements(mine, theirs) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [("loaded", False), ("stage", "verifier"), ("errno", 22), ("autoload", False), ("prog_type", "kprobe")],
)
def test_each_part_of_a_verdict_counts(field: str, value: object) -> None:
    assert _fields(_facts(), _facts(progs=[_prog(**{field: value})])) == [("prog", field)]


def test_the_words_of_an_error_do_not_count() -> None:
    mine, theirs = _prog(loaded=False, errno=22, error="one"), _prog(loaded=False, errno=22, error="other")
    assert disagreements(_facts(progs=[mine]), _facts(progs=[theirs])) == []


def test_every_instruction_counts() -> None:
    other = _prog(insns=_code((0xB7, 0, 0, 9), (EXIT, 0, 0, 0)))
    (row,) = disagreements(_facts(), _facts(progs=[other]))
    assert (row["what"], row["where"], row["field"]) == ("insns", "f", "insn 0")
    assert row["python"] == "183 0 0 8"
    assert row["libbpf"] == "183 0 0 9"


def test_a_different_length_is_one_row() -> None:
    other = _prog(insns=_code((EXIT, 0, 0, 0)))
    assert _fields(_facts(), _facts(progs=[other])) == [("insns", "count")]


def _with_ref(kind: str, name: str, *insns: tuple[int, int, int, int]) -> dict[str, Any]:
    return _facts(progs=[_prog(insns=_code(*insns), refs=[{"insn": 0, "kind": kind, "name": name, "off": 0}])])


@pytest.mark.parametrize(
    ("kind", "mine", "theirs"),
    [
        ("map_fd", ((LDIMM64, 0x11, 0, 5), (0, 0, 0, 0)), ((LDIMM64, 0x11, 0, 9), (0, 0, 0, 0))),
        ("map_value", ((LDIMM64, 0x21, 0, 5), (0, 0, 0, 16)), ((LDIMM64, 0x21, 0, 9), (0, 0, 0, 16))),
        ("kfunc", ((CALL, 0x20, 1, 700),), ((CALL, 0x20, 2, 700),)),
        ("ksym", ((LDIMM64, 1, 0, 5), (0, 0, 0, -1)), ((LDIMM64, 1, 0, 6), (0, 0, 0, -2))),
        ("btf_id", ((LDIMM64, 0x31, 0, 70), (0, 0, 0, 4)), ((LDIMM64, 0x31, 0, 70), (0, 0, 0, 8))),
        ("ksym", ((LDIMM64, 0x31, 0, 70), (0, 0, 0, 4)), ((LDIMM64, 0x31, 0, 70), (0, 0, 0, 8))),
    ],
)
def test_descriptors_module_indexes_and_addresses_are_names(kind: str, mine: Any, theirs: Any) -> None:
    assert disagreements(_with_ref(kind, "x", *mine), _with_ref(kind, "x", *theirs)) == []
    assert disagreements(_with_ref(kind, "x", *mine), _with_ref(kind, "y", *theirs)) != []


@pytest.mark.parametrize(
    ("kind", "mine", "theirs"),
    [
        ("map_value", ((LDIMM64, 0x21, 0, 5), (0, 0, 0, 16)), ((LDIMM64, 0x21, 0, 5), (0, 0, 0, 20))),
        ("kfunc", ((CALL, 0x20, 1, 700),), ((CALL, 0x20, 1, 701),)),
        ("ksym", ((LDIMM64, 0x31, 0, 70), (0, 0, 0, 4)), ((LDIMM64, 0x31, 0, 71), (0, 0, 0, 4))),
        ("map_fd", ((LDIMM64, 0x11, 0, 5), (0, 0, 0, 0)), ((LDIMM64, 0x12, 0, 5), (0, 0, 0, 0))),
    ],
)
def test_offsets_type_ids_and_registers_stay_numbers(kind: str, mine: Any, theirs: Any) -> None:
    assert disagreements(_with_ref(kind, "x", *mine), _with_ref(kind, "x", *theirs)) != []


def test_a_reference_beyond_the_code_is_ignored() -> None:
    prog = _prog(refs=[{"insn": 99, "kind": "map_fd", "name": "m", "off": 0}])
    assert len(normalised(prog)) == 2


def test_externs_and_maps_are_compared_by_name() -> None:
    extern = {"name": "CONFIG_HZ", "kind": "kconfig", "value": 250, "outcome": "resolved"}
    told = {**extern, "value": "0xfa"}
    assert disagreements(_facts(externs=[extern]), _facts(externs=[told])) == []
    assert _fields(_facts(externs=[extern]), _facts(externs=[{**told, "value": "0xfb"}])) == [("extern", "value")]
    assert _fields(_facts(externs=[extern]), _facts()) == [("extern", "present")]
    for kind, mine, theirs in (("bool", True, False), ("tristate", "y", "m"), ("char array", "none", "")):
        typed = {**extern, "type": kind, "value": mine}
        assert disagreements(_facts(externs=[typed]), _facts(externs=[dict(typed)])) == []
        assert _fields(_facts(externs=[typed]), _facts(externs=[{**typed, "value": theirs}])) == [("extern", "value")]
    good = {"name": "m", "type": "hash", "errno": None}
    assert _fields(_facts(maps=[good]), _facts(maps=[{**good, "errno": 22}])) == [("map", "errno")]


def test_an_object_that_does_not_open_has_nothing_else_to_compare() -> None:
    error = {"stage": "open", "errno": 95, "message": "legacy maps", "relo": None}
    mine = _facts(object_error=error, progs=[_prog("seen_before_it_failed")])
    assert disagreements(mine, _facts(object_error={**error, "message": "other words"}, progs=[])) == []
    assert _fields(mine, _facts(object_error={**error, "errno": 22}, progs=[])) == [("object", "object_error")]


def test_a_fatal_relocation_in_a_subprogram_leaves_libbpf_without_verdicts() -> None:
    error = {"stage": "core", "errno": 22, "message": "ambiguous", "relo": 0}
    fatal = _relo(outcome="error", new_value=None)
    mine = _facts(object_error=error, core_relos=[fatal, _relo(insn=3)], progs=[_prog(alone=True)])
    theirs = _facts(object_error=error, core_relos=[fatal], progs=[_prog(loaded=False, stage="core", errno=22)])
    assert disagreements(mine, theirs) == []
    theirs["progs"].append(_prog("g"))
    mine["progs"].append(_prog("g"))
    assert ("prog", "loaded") in _fields(mine, theirs)  # libbpf did judge others, so it would have judged f
