"""The two witnesses of liveness held against each other on this kernel: returned line_info records, and the log at
level 2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.guest import evidence
from tests.support.clang import compile_bpf
from tests.support.objects import OBJECTS, PROGRAMS, compile_object
from tests.support.this_kernel import code_of, facts_of, machine, numbers, prog_of

SOURCES = sorted([*PROGRAMS.glob("*.bpf.c"), *OBJECTS.glob("*.bpf.c")], key=lambda path: path.name)

# A kernel type under its own name, and the same with a member no kernel has.
TYPES = """
struct task_struct { int pid; int tgid; } PAI;
struct task_struct___missing { int corematrix_missing; int corematrix_missing_too; } PAI;
static u64 (*const get_current_task)(void) = (void *)35;
static u32 (*const get_prandom_u32)(void) = (void *)7;
static u32 (*const get_smp_processor_id)(void) = (void *)8;
static long (*const trace_printk)(const char *fmt, u32 size, ...) = (void *)6;
#define exists field_info(((struct task_struct___missing *)0)->corematrix_missing, EXISTS)
#define offset_of(t, m) field_info(((struct t *)0)->m, BYTE_OFF)
"""
SEC = 'SEC("raw_tp/sched_process_exec")\n'


def _judged(source: Path, tmp_path: Path) -> dict[str, Any]:
    flags = [] if "arm64" in source.name else ["-D__TARGET_ARCH_x86"]
    return facts_of(
        compile_object(source, tmp_path / (source.name[:-2] + ".o"), *flags).read_bytes(), name=source.name[:-2] + ".o"
    )


def _compiled(text: str) -> bytes:
    return compile_bpf(TYPES + text)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name.removesuffix(".bpf.c"))
def test_witnesses_agree_at_relocations(source: Path, tmp_path: Path) -> None:
    machine()
    facts = _judged(source, tmp_path)
    compared = 0
    for prog in facts["progs"]:
        found = prog["evidence"]
        if not prog["loaded"] or not prog["relos"]:
            continue
        assert found["line_info"]["loaded"], found["line_info"]
        if found["verdict_log_visited"] is None:
            assert prog["verifier"]["processed_insns"] > evidence.SECOND_WITNESS_MAX
            continue
        survived, visited = numbers(found["line_info"]["survived"]), numbers(found["verdict_log_visited"])
        for relo in prog["relos"]:
            assert (relo["insn"] in survived) == (relo["insn"] in visited), (prog["name"], relo)
            compared += 1
    assert compared or not any(prog["loaded"] and prog["relos"] for prog in facts["progs"])


def test_poison_is_gone_wherever_the_program_loads(tmp_path: Path) -> None:
    """A kernel that accepts a program has removed every poisoned instruction: the line_info witness must say so."""
    machine()
    seen = 0
    for source in SOURCES:
        facts = _judged(source, tmp_path)
        poisoned = {relo["index"] for relo in facts["core_relos"] if relo["outcome"] == "poisoned"}
        for prog in facts["progs"]:
            survived = (
                numbers(prog["evidence"]["line_info"]["survived"]) if prog["loaded"] and prog["evidence"] else None
            )
            for relo in prog["relos"]:
                if survived is not None and relo["relo"] in poisoned:
                    assert relo["insn"] not in survived, (source.name, prog["name"], relo)
                    seen += 1
    assert seen >= 10


def test_subprograms_static_called_twice_and_from_dead_code(tmp_path: Path) -> None:
    machine()
    facts = _judged(OBJECTS / "subprog_static.bpf.c", tmp_path)
    first = prog_of(facts, "first")
    names = [func["name"] for func in first["funcs"]]
    assert names[0] == "first"
    assert set(names[1:]) == {"read_pid", "guarded", "dead"}
    survived = numbers(first["evidence"]["line_info"]["survived"])
    for func in first["funcs"]:
        body = set(range(func["start"], func["start"] + func["insns"]))
        assert bool(body & survived) == (func["name"] != "dead"), func


def test_a_relocation_dead_for_one_caller_is_live_for_another() -> None:
    machine()
    data = _compiled(
        "static noinline u64 part(u64 on) { u64 value = 1; if (on) value = offset_of(task_struct, tgid);"
        " asm volatile(\"\" : \"+r\"(value)); return value; }\n"
        + SEC + "int both(void *ctx) { return part(0) + part(get_prandom_u32() & 1) & 1; }\n"
        + SEC + "int never(void *ctx) { return part(0) & 1; }\n"
    )  # fmt: skip
    facts = facts_of(data)
    live = {}
    for name in ("both", "never"):
        prog = prog_of(facts, name)
        assert prog["loaded"], prog["error"]
        (relo,) = prog["relos"]
        live[name] = relo["insn"] in numbers(prog["evidence"]["line_info"]["survived"])
    assert live == {"both": True, "never": False}


def test_ldimm64_keeps_and_loses_both_slots() -> None:
    machine()
    data = _compiled(
        "enum known { CORE_A = 5 }; enum bpf_prog_type { BPF_PROG_TYPE_KPROBE = 99 };\n"
        + SEC + "int wide(void *ctx) { u64 kept = enum_value(enum bpf_prog_type, BPF_PROG_TYPE_KPROBE, E_VALUE);"
        " if (enum_value(enum known, CORE_A, E_EXISTS)) kept += enum_value(enum known, CORE_A, E_VALUE);"
        " return kept & 1; }\n"
    )  # fmt: skip
    facts = facts_of(data)
    prog = prog_of(facts, "wide")
    assert prog["loaded"], prog["error"]
    survived = numbers(prog["evidence"]["line_info"]["survived"])
    outcome = {relo["index"]: (relo["kind"], relo["outcome"]) for relo in facts["core_relos"]}
    state = {outcome[r["relo"]]: (r["insn"] in survived, r["insn"] + 1 in survived) for r in prog["relos"]}
    assert state[("enumval_value", "resolved")] == (True, True)
    assert state[("enumval_value", "poisoned")] == (False, False)


def test_bpf_fastcall_folded_branches_and_goto_next_do_not_mislead() -> None:
    """Around a helper the JIT inlines, a branch on a constant and a jump to the next instruction: relocations are
    still right."""
    machine()
    data = _compiled(
        SEC + "int odd(void *ctx) { u64 cpu = get_smp_processor_id(); u64 value = offset_of(task_struct, pid);"
        ' asm volatile("goto +0\\n if %0 == 0xffffffff goto +0" : "+r"(value));'
        " if (exists) value += field_info(((struct task_struct___missing *)0)->corematrix_missing, BYTE_OFF);"
        " cpu += get_smp_processor_id(); return (value + cpu) & 1; }\n"
    )
    facts = facts_of(data)
    prog = prog_of(facts, "odd")
    assert prog["loaded"], prog["log"]
    found = prog["evidence"]
    survived, visited = numbers(found["line_info"]["survived"]), numbers(found["verdict_log_visited"])
    outcome = {relo["index"]: (relo["kind"], relo["outcome"]) for relo in facts["core_relos"]}
    for relo in prog["relos"]:
        alive = outcome[relo["relo"]] != ("byte_off", "poisoned")
        assert (relo["insn"] in survived, relo["insn"] in visited) == (alive, alive), relo
    assert visited - survived, "this program was meant to hold instructions that lose their record though visited"


def test_an_object_without_btf_gets_evidence_through_a_stand_in() -> None:
    machine()
    data = compile_bpf('SEC("socket") int plain(void *ctx) { return 0; }', prelude=True, options=("-g0",))
    facts = facts_of(data)
    prog = prog_of(facts, "plain")
    assert not facts["object"]["has_btf"]
    assert prog["loaded"]
    count = len(code_of(prog)) // 8
    assert numbers(prog["evidence"]["line_info"]["survived"]) == set(range(count))


def test_a_kernel_that_keeps_dead_code_is_noticed() -> None:
    """The probe behind it all: on this kernel an unreachable instruction loses its record."""
    assert evidence.removes_dead_code(machine().bpf)
