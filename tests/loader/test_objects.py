"""Everything an object may hold besides instructions, on this kernel: maps, externs, struct_ops, fatal relocations, settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from harness.guest.judge import judge
from tests.support.clang import compile_bpf
from tests.support.this_kernel import facts_of, machine, numbers, prog_of

MAPS = """
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
static void *(*const map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const tail_call)(void *ctx, void *map, u32 index) = (void *)12;
static void *(*const task_storage_get)(void *map, void *task, void *value, u64 flags) = (void *)156;
static void *(*const get_current_task_btf)(void) = (void *)158;
"""
TP = 'SEC("raw_tp/sched_process_exec")\n'


def _judge(text: str, **request: Any) -> dict[str, Any]:
    machine()
    return facts_of(compile_bpf(MAPS + text), **request)


def _map(kind: int, entries: int = 4, key: str = "u32", value: str = "u64", extra: str = "") -> str:
    return f"__uint(type, {kind}); __uint(max_entries, {entries}); __type(key, {key}); __type(value, {value}); {extra}"


# name -> (number, definition)
KINDS = {
    "hash": _map(1), "array": _map(2), "percpu_hash": _map(5), "percpu_array": _map(6), "lru_hash": _map(9),
    "perf_event_array": "__uint(type, 4); __uint(key_size, 4); __uint(value_size, 4);",
    "stack_trace": "__uint(type, 7); __uint(key_size, 4); __uint(value_size, 1016); __uint(max_entries, 8);",
    "lpm_trie": _map(11, key="u64", extra="__uint(map_flags, 1);"),
    "ringbuf": "__uint(type, 27); __uint(max_entries, 5000);",
    "task_storage": _map(29, 0, "int", extra="__uint(map_flags, 1);"),
    "sk_storage": _map(24, 0, "int", extra="__uint(map_flags, 1);"),
    "inode_storage": _map(28, 0, "int", extra="__uint(map_flags, 1);"),
    "cgrp_storage": _map(32, 0, "int", extra="__uint(map_flags, 1);"),
    "bloom_filter": "__uint(type, 30); __uint(max_entries, 8); __type(value, u32);",
    "queue": "__uint(type, 22); __uint(max_entries, 8); __type(value, u32);",
    "arena": "__uint(type, 33); __uint(map_flags, 1 << 10); __uint(max_entries, 4);",
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_map_is_made(kind: str) -> None:
    text = (
        f'struct {{ {KINDS[kind]} }} m SEC(".maps");\n'
        + TP
        + "int f(void *ctx) { void *p = &m; KEEP; return p != 0; }\n"
    )
    facts = _judge('#define KEEP asm volatile("" : "+r"(p))\n' + text)
    assert facts["object_error"] is None
    assert facts["maps"] == [{"name": "m", "type": kind, "errno": None, "message": None}]
    prog = prog_of(facts, "f")
    assert prog["loaded"], prog["error"]
    assert [(ref["kind"], ref["name"]) for ref in prog["refs"]] == [("map_fd", "m")]


def test_map_in_map_and_prog_array_with_initialisers() -> None:
    facts = _judge(
        'struct inner { __uint(type, 2); __uint(max_entries, 1); __type(key, u32); __type(value, u64); } one SEC(".maps"), two SEC(".maps");\n'
        'struct { __uint(type, 12); __uint(max_entries, 3); __type(key, u32); __array(values, struct inner); } outer SEC(".maps")'
        " = { .values = { [0] = &one, [2] = &two } };\n" + TP + "int target(void *ctx);\n"
        'struct { __uint(type, 3); __uint(max_entries, 2); __uint(key_size, 4); __array(values, int (void *)); } jumps SEC(".maps")'
        " = { .values = { [1] = (void *)&target } };\n"
        + TP + "int target(void *ctx) { return 0; }\n"
        + TP + "int f(void *ctx) { u32 zero = 0; void *in = map_lookup_elem(&outer, &zero); tail_call(ctx, &jumps, 1);"
        " return in ? map_lookup_elem(in, &zero) != 0 : 0; }\n"
    )  # fmt: skip
    assert facts["object_error"] is None
    assert {m["name"]: m["errno"] for m in facts["maps"]} == dict.fromkeys(("one", "two", "outer", "jumps"))
    assert all(prog["loaded"] for prog in facts["progs"]), [p["error"] for p in facts["progs"]]


def test_a_map_the_kernel_refuses_condemns_only_its_users() -> None:
    facts = _judge(
        'struct { __uint(type, 1); __uint(max_entries, 4); __uint(key_size, 0); __uint(value_size, 8); } bad SEC(".maps");\n'
        + TP + 'int uses(void *ctx) { void *p = &bad; asm volatile("" : "+r"(p)); return p != 0; }\n'
        + TP + "int bystander(void *ctx) { return 0; }\n"
    )  # fmt: skip
    assert facts["object_error"]["stage"] == "maps"
    assert "'bad'" in facts["object_error"]["message"]
    uses, bystander = prog_of(facts, "uses"), prog_of(facts, "bystander")
    assert (uses["loaded"], uses["stage"], uses["errno"]) == (False, "maps", 22)
    assert (bystander["loaded"], bystander["alone"]) == (True, True)


def test_read_only_data_is_frozen_and_known_to_the_verifier() -> None:
    text = (
        "const volatile u64 on = 0; const volatile bool flag = 0; const volatile char word[8] = {}; u64 counted; static u64 hidden_one = 5;\n"
        + TP + "int f(void *ctx) { u64 v = 0; if (on == 3) { asm volatile(\"\" ::: \"memory\"); v = counted; } if (flag) v += 2; if (word[0] == 'x') v += hidden_one; return v & 1; }\n"
    )  # fmt: skip
    small, large = _judge(text), _judge(text, settings={"on": "3", "flag": "true", "word": "xyz"})
    assert {m["name"] for m in small["maps"]} == {"object.rodata", "object.bss"} | {
        m["name"] for m in small["maps"] if m["name"].endswith(".data")
    }
    for facts, live in ((small, False), (large, True)):
        prog = prog_of(facts, "f")
        survived = numbers(prog["evidence"]["line_info"]["survived"])
        (counted,) = [ref["insn"] for ref in prog["refs"] if ref["name"] == "object.bss"]
        assert (counted in survived) == live, "the settings decide what the verifier keeps"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nothing": "1"}, ("no variable 'nothing'", "flag, on")),
        ({"on": "many"}, ("no number",)),
        ({"flag": "2"}, ("neither true nor false",)),
        ({"on": "0x1ffffffffffffffff"}, ("does not fit",)),
    ],
)
def test_a_setting_that_cannot_be(settings: dict[str, str], words: tuple[str, ...]) -> None:
    text = (
        "const volatile u64 on = 0; const volatile bool flag = 0;\n" + TP + "int f(void *ctx) { return on + flag; }\n"
    )
    facts = _judge(text, settings=settings)
    assert facts["object_error"]["stage"] == "open"
    assert all(word in facts["object_error"]["message"] for word in words), facts["object_error"]
    assert not prog_of(facts, "f")["loaded"]


KSYMS = '#define HIDE(x) asm volatile("" : "+r"(x))\n'
KSYMS += '#define ksym SEC(".ksyms")\n#define weak __attribute__((weak))\n'


def test_ksyms_typed_typeless_and_missing() -> None:
    facts = _judge(
        KSYMS + "extern const int cpu_number ksym; extern const void _stext ksym;"
        " extern const void corematrix_nowhere ksym weak; extern const int corematrix_no_var ksym weak;\n"
        + TP + "int f(void *ctx) { const void *p = &_stext; HIDE(p); const void *q = &corematrix_nowhere; HIDE(q);"
        " const int *r = &corematrix_no_var; HIDE(r); return p && !q && !r; }\n"
    )  # fmt: skip
    prog = prog_of(facts, "f")
    assert prog["loaded"], prog["error"] or facts["object_error"]
    rows = {row["name"]: (row["kind"], row["outcome"], row["weak"]) for row in facts["externs"]}
    assert rows["_stext"] == ("ksym", "resolved", False)
    assert rows["corematrix_nowhere"] == ("ksym", "missing", True)
    assert rows["corematrix_no_var"] == ("ksym", "missing", True)


def test_a_strong_ksym_that_is_missing_fails_the_object() -> None:
    facts = _judge(
        KSYMS
        + "extern const void corematrix_nowhere ksym;\n"
        + TP
        + "int f(void *ctx) { const void *p = &corematrix_nowhere; HIDE(p); return p != 0; }\n"
    )
    assert facts["object_error"]["stage"] == "externs"
    assert prog_of(facts, "f")["stage"] == "externs"


def test_kfuncs_there_and_not_there() -> None:
    facts = _judge(
        KSYMS + "struct task_struct { int pid; }; extern struct task_struct *bpf_task_acquire(struct task_struct *p) ksym;"
        " extern void bpf_task_release(struct task_struct *p) ksym; extern int corematrix_no_func(int x) ksym weak;\n"
        'SEC("tp_btf/sched_process_exec") int f(u64 *ctx) { struct task_struct *t = bpf_task_acquire((void *)get_current_task_btf());'
        " if (t) bpf_task_release(t); if (corematrix_no_func) return corematrix_no_func(1); return 0; }\n"
        'SEC("tp_btf/sched_process_exec") int calls(u64 *ctx) { return corematrix_no_func(1); }\n'
    )  # fmt: skip
    there, calls = prog_of(facts, "f"), prog_of(facts, "calls")
    assert there["loaded"], there["error"] or facts["object_error"]
    assert {ref["name"] for ref in there["refs"] if ref["kind"] == "kfunc"} == {"bpf_task_acquire", "bpf_task_release"}
    assert not calls["loaded"]
    assert "2002000" in calls["error"], "libbpf's poison for weak kfuncs"


def test_struct_ops_and_a_member_the_kernel_lacks() -> None:
    facts = _judge(
        "struct tcp_congestion_ops { u32 (*ssthresh)(void *sk); void (*cong_avoid)(void *sk, u32 ack, u32 acked);"
        " u32 (*undo_cwnd)(void *sk); void (*corematrix_none)(void *sk); char name[16]; };\n"
        'SEC("struct_ops/ss") u32 ss(void *ctx) { return 2; }\nSEC("struct_ops/ca") void ca(void *ctx) {}\n'
        'SEC("struct_ops/uc") u32 uc(void *ctx) { return 2; }\nSEC("struct_ops/alone") u32 alone(void *ctx) { return 2; }\n'
        'SEC(".struct_ops") struct tcp_congestion_ops ours = { .ssthresh = (void *)ss, .cong_avoid = (void *)ca,'
        ' .undo_cwnd = (void *)uc, .name = "corematrix" };\n'
    )  # fmt: skip
    if facts["object_error"] is not None and "not found in kernel BTF" in facts["object_error"]["message"]:
        pytest.skip("this kernel has no struct_ops for TCP")
    assert facts["object_error"] is None
    assert facts["maps"][0]["type"] == "struct_ops"
    for name in ("ss", "ca", "uc"):
        prog = prog_of(facts, name)
        assert prog["loaded"], (name, prog["error"], prog["log"])
    alone = prog_of(facts, "alone")
    assert not alone["loaded"]
    assert (alone["stage"], alone["errno"]) == ("pre_verifier", 22)  # since libbpf 1.5; before, the kernel is asked


FATAL = (
    "field_info(((struct task_struct *)0)->comm[1], SIGNED)"  # no kind but offset, size and existence takes an element
)
FIELD = "field_info(((struct task_struct *)0)->pid, BYTE_OFF)"


def test_a_fatal_relocation_leaves_the_others_judged_alone() -> None:
    facts = _judge(
        "struct task_struct { int pid; char comm[16]; } PAI;\n"
        + TP + f"int before(void *ctx) {{ return {FIELD} & 1; }}\n" + TP + f"int fatal(void *ctx) {{ return {FATAL}; }}\n"
        + TP + f"int behind(void *ctx) {{ return {FIELD} & 3; }}\n"
    )  # fmt: skip
    assert facts["object_error"]["stage"] == "core"
    relo = facts["core_relos"][facts["object_error"]["relo"]]
    assert (relo["prog"], relo["kind"], relo["outcome"]) == ("fatal", "signed", "error")
    assert [r["index"] for r in facts["core_relos"]] == [0, 1, 2]
    state = {p["name"]: (p["loaded"], p["alone"], p["stage"]) for p in facts["progs"]}
    assert state == {"before": (True, True, None), "fatal": (False, False, "core"), "behind": (True, True, None)}


def test_a_fatal_relocation_in_a_subprogram_condemns_its_callers() -> None:
    facts = _judge(
        "struct task_struct { int pid; char comm[16]; } PAI;\n"
        f'static noinline u64 part(u64 x) {{ u64 v = {FATAL}; asm volatile("" : "+r"(v)); return v + x; }}\n'
        + TP + "int caller(void *ctx) { return part(1) & 1; }\n" + TP + f"int other(void *ctx) {{ return {FIELD} & 1; }}\n"
    )  # fmt: skip
    caller, other = prog_of(facts, "caller"), prog_of(facts, "other")
    assert (caller["loaded"], caller["stage"]) == (False, "core")
    assert "part()" in caller["error"]
    assert (other["loaded"], other["alone"]) == (True, True)


def test_unknown_section_question_mark_and_attach_target() -> None:
    facts = _judge(
        'SEC("no_such_section") int unknown(void *ctx) { return 0; }\n'
        'SEC("?raw_tp/sched_process_exec") int optional(void *ctx) { return 0; }\n'
        'SEC("fentry/corematrix_no_such_function") int nowhere(u64 *ctx) { return 0; }\n'
        'SEC("fentry") int bare(u64 *ctx) { return 0; }\n'
        'SEC("freplace/x") int replacement(void *ctx) { return 0; }\n'
        'SEC("tp_btf/sched_process_exec") int fine(u64 *ctx) { return 0; }\n'
    )
    state = {p["name"]: (p["autoload"], p["loaded"], p["stage"], p["errno"], p["unsupported"]) for p in facts["progs"]}
    assert state["unknown"] == (True, False, "pre_verifier", 22, "section")
    assert state["optional"] == (False, False, None, None, None)
    assert state["nowhere"] == (True, False, "pre_verifier", 3, "attach_target")
    assert state["bare"][:4] == (True, False, "pre_verifier", 22)
    assert state["replacement"][:4] == (True, False, "pre_verifier", 22)
    assert state["fine"] == (True, True, None, None, None)


def test_only_the_programs_asked_for_are_loaded_but_all_are_relocated() -> None:
    text = "".join(
        TP + f"int {name}(void *ctx) {{ return field_info(((struct task_struct *)0)->{field}, BYTE_OFF) & 1; }}\n"
        for name, field in (("a", "pid"), ("b", "tgid"))
    )
    facts = _judge("struct task_struct { int pid, tgid; } PAI;\n" + text, progs=["b"])
    assert [prog["loaded"] for prog in facts["progs"]] == [False, True]
    assert [relo["outcome"] for relo in facts["core_relos"]] == ["resolved", "resolved"]


def test_progress_names_each_program_before_its_loads() -> None:
    told: list[tuple[str, str]] = []
    data = compile_bpf(MAPS + TP + "int a(void *ctx) { return 0; }\n" + TP + "int b(void *ctx) { return 0; }\n")
    request = {"name": "x.bpf.o", "loader": "python", "settings": {}, "evidence": True}
    judge(machine(), data, request, lambda message: told.append((message["phase"], message["prog"])))
    assert told == [("verdict", "a"), ("evidence", "a"), ("verdict", "b"), ("evidence", "b")]


def _descriptors() -> int:
    """How many files this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def test_nothing_is_left_behind() -> None:
    on = machine()
    data = compile_bpf(MAPS + "u64 counter;\n" + TP + "int a(void *ctx) { return counter++ & 1; }\n")
    facts_of(data)
    before = _descriptors()
    for _ in range(3):
        facts_of(data)
    assert _descriptors() == before
    assert on.await_gone()


@pytest.mark.parametrize(
    "data", [b"", b"\x7fELF", b"\x7fELF" + bytes(200), os.urandom(512)], ids=["empty", "short", "zeros", "noise"]
)
def test_what_is_no_object_is_a_fact(data: bytes) -> None:
    machine()
    facts = facts_of(data)
    assert facts["object_error"]["stage"] == "open"
    assert facts["progs"] == []
