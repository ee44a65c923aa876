"""The loader that is libbpf, on this machine. Its judge is libbpf driven plainly (tests/support/real_libbpf.py)."""

from __future__ import annotations

import base64
import functools
from pathlib import Path
from typing import Any

import pytest

from harness.guest import libbpf_loader
from harness.guest.judge import Machine, judge
from harness.judge.agreement import disagreements
from tests.support.clang import compile_bpf
from tests.support.real_libbpf import POISON, Libbpf, needs_bpf

pytestmark = needs_bpf

SOURCE = """
struct task_struct { int pid; int tgid; } PAI;
struct corematrix_none { int a; } PAI;
struct map { int (*type)[1]; int *key; int *value; int (*max_entries)[4]; };
struct map counts SEC(".maps");
extern int LINUX_KERNEL_VERSION SEC(".kconfig");
const volatile int limit = 5;
static u64 (*const current)(void) = (void *)35;
static void *(*const lookup)(void *map, const void *key) = (void *)1;
static noinline int sub(struct task_struct *t)
{
    int v = 0;
    probe_read_kernel(&v, sizeof(v), &t->tgid);
    return v + LINUX_KERNEL_VERSION;
}
SEC("raw_tp/sched_switch") int good(void *ctx)
{
    int key = sub((void *)current()) + limit;
    return lookup(&counts, &key) != 0;
}
SEC("fentry/corematrix_no_such_function") int no_target(void *ctx) { return 0; }
SEC("fentry/corematrix_no_such_function_either") int no_target_either(void *ctx) { return 0; }
SEC("raw_tp/sched_switch") int guarded(void *ctx)
{
    struct corematrix_none *none = (void *)current();
    int v = 0;
    if (type_info(struct corematrix_none, T_EXISTS))
        probe_read_kernel(&v, sizeof(v), &none->a);
    return v + sub((void *)current());
}
SEC("raw_tp/sched_switch") int unguarded(void *ctx)
{
    struct corematrix_none *none = (void *)current();
    int v = 0;
    probe_read_kernel(&v, sizeof(v), &none->a);
    return v;
}
SEC("?raw_tp/sched_switch") int asleep(void *ctx) { return 0; }
SEC("raw_tp/sched_switch") int last(void *ctx) { return 0; }
"""


@functools.cache
def _machine() -> Machine:
    return Machine.survey()


def _judge(data: bytes, loader: str = "libbpf", **request: Any) -> dict[str, Any]:
    ask = {"name": "test", "loader": loader, "evidence": True, "rules": libbpf_loader.version(), **request}
    return judge(_machine(), data, ask, lambda _message: None)


@functools.cache
def _facts() -> dict[str, Any]:
    return _judge(compile_bpf(SOURCE))


def _prog(facts: dict[str, Any], name: str) -> dict[str, Any]:
    return next(prog for prog in facts["progs"] if prog["name"] == name)


def test_one_refusal_hides_no_other_verdict() -> None:
    verdicts = {prog["name"]: (prog["loaded"], prog["stage"], prog["errno"]) for prog in _facts()["progs"]}
    assert verdicts == {
        "good": (True, None, None),
        "no_target": (False, "pre_verifier", 3),
        "no_target_either": (False, "pre_verifier", 3),
        "guarded": (True, None, None),
        "unguarded": (False, "verifier", 22),
        "asleep": (False, None, None),
        "last": (True, None, None),
    }
    assert "corematrix_no_such_function" in _prog(_facts(), "no_target")["error"]


@pytest.mark.parametrize("name", ["good", "guarded", "last"])
def test_the_final_instructions_are_those_of_plain_libbpf(name: str, tmp_path: Path) -> None:
    path = tmp_path / "test.bpf.o"
    path.write_bytes(compile_bpf(SOURCE))
    prog = _prog(_facts(), name)
    code = base64.b64decode(prog["insns"])
    with Libbpf().loaded(path, name) as (plain, _opened):
        assert plain.errno == 0, plain.messages
        holders = {
            ref["insn"] for ref in prog["refs"] if ref["kind"].startswith("map")
        }  # of another load's descriptors
        for index in range(max(len(code), len(plain.insns)) // 8):
            size = 4 if index in holders else 8
            assert code[index * 8 : index * 8 + size] == plain.insns[index * 8 : index * 8 + size], index


def test_relocations_are_what_plain_libbpf_says(tmp_path: Path) -> None:
    path = tmp_path / "test.bpf.o"
    path.write_bytes(compile_bpf(SOURCE))
    lines = _facts()["core_relos"]
    with Libbpf().loaded(path, "guarded") as (plain, _opened):
        told = [kind for kind, _field, _value in plain.decisions]
        wanted = [line for line in lines if line["prog"] in ("guarded", "sub")]
        assert sorted(told) == sorted(line["kind"] for line in wanted)
        assert sorted(value or 0 for _kind, _field, value in plain.decisions) == sorted(
            line["new_value"] or 0 for line in wanted
        )
    assert {line["prog"] for line in lines} == {"guarded", "unguarded", "sub"}, "the whole object is relocated"


def test_what_libbpf_says_of_an_instruction_is_what_it_loads() -> None:
    facts = _facts()
    seen = set()
    for prog in facts["progs"]:
        code = base64.b64decode(prog["insns"])
        for place in prog["relos"]:
            line = facts["core_relos"][place["relo"]]
            after = bytes.fromhex(line["after"])
            assert code[place["insn"] * 8 :][: len(after)] == after
            assert (after == POISON) == (line["outcome"] == "poisoned")
            seen.add(place["relo"])
    assert seen == set(range(len(facts["core_relos"])))


def test_evidence_is_taken_over_libbpfs_instructions() -> None:
    guarded = _prog(_facts(), "guarded")
    poisoned = {line["index"] for line in _facts()["core_relos"] if line["outcome"] == "poisoned"}
    (place,) = [row["insn"] for row in guarded["relos"] if row["relo"] in poisoned]
    survived = guarded["evidence"]["line_info"]["survived"]
    assert not any(start <= place < end for start, end in survived), "the guard removed the poison"
    stopped = _prog(_facts(), "unguarded")["evidence"]["analysis"]
    assert stopped, "an analysis load looked past the poison"


def test_a_setting_changes_what_the_verifier_sees() -> None:
    source = 'const volatile int on = 0; SEC("socket") int f(void *ctx) { return on ? 1 : *(volatile int *)0; }'
    data = compile_bpf(source)
    assert not _judge(data)["progs"][0]["loaded"]
    facts = _judge(data, settings={"on": "1"})
    assert facts["progs"][0]["loaded"], facts["progs"][0]["log"]
    unknown = _judge(data, settings={"off": "1"})
    assert unknown["object_error"]["stage"] == "open"
    assert "off" in unknown["object_error"]["message"]


def test_only_the_programs_asked_for_are_loaded() -> None:
    told = []
    ask = {"name": "test", "loader": "libbpf", "progs": ["last"], "evidence": False}
    facts = judge(_machine(), compile_bpf(SOURCE), ask, told.append)
    assert [(message["phase"], message["prog"]) for message in told] == [("verdict", "last")]
    assert _prog(facts, "last")["loaded"]
    assert not _prog(facts, "good")["loaded"]
    assert len(facts["core_relos"]) == len(_facts()["core_relos"])


def test_a_fatal_relocation_leaves_the_other_programs_a_verdict() -> None:
    source = """
    struct task_struct { int pid; } PAI;
    SEC("socket") int fatal(void *ctx) { return field_info(((struct task_struct *)0)[1], SIGNED); }
    SEC("socket") int fine(void *ctx) { return 0; }
    """
    mine, theirs = _judge(compile_bpf(source), "python"), _judge(compile_bpf(source))
    assert theirs["object_error"]["stage"] == "core"
    assert theirs["object_error"]["relo"] == 0
    assert _prog(theirs, "fatal")["stage"] == "core"
    assert _prog(theirs, "fine")["loaded"]
    assert _prog(theirs, "fine")["alone"]
    assert disagreements(mine, theirs) == []


def test_a_refused_map_hides_only_the_programs_that_use_it() -> None:
    source = """
    struct map { int (*type)[1]; int (*key_size)[0]; int *value; int (*max_entries)[4]; };
    struct map bad SEC(".maps");
    static void *(*const lookup)(void *map, const void *key) = (void *)1;
    SEC("socket") int uses(void *ctx) { int key = 0; return lookup(&bad, &key) != 0; }
    SEC("socket") int other(void *ctx) { return 0; }
    """
    mine, theirs = _judge(compile_bpf(source), "python"), _judge(compile_bpf(source))
    assert (theirs["object_error"]["stage"], theirs["object_error"]["errno"]) == ("maps", 22)
    assert (_prog(theirs, "uses")["loaded"], _prog(theirs, "uses")["stage"]) == (False, "maps")
    assert _prog(theirs, "other")["loaded"]
    assert disagreements(mine, theirs) == []


def test_both_loaders_agree_and_nothing_is_left_open() -> None:
    data = compile_bpf(SOURCE)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert disagreements(_judge(data, "python"), _judge(data)) == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


@pytest.mark.parametrize("data", [b"", b"\x7fELF", b"\x7fELF" + b"\2" * 60, b"no object at all" * 9])
def test_what_is_no_object_is_an_open_error(data: bytes) -> None:
    facts = _judge(data)
    assert facts["object_error"]["stage"] == "open"
    assert facts["progs"] == []


def test_a_library_that_is_not_there_is_named() -> None:
    assert libbpf_loader.version("libcorematrix-none.so.9") is None
