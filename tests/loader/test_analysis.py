"""Rejected programs: what lies past the poison, and what a guard protects."""

from __future__ import annotations

from typing import Any

from harness.guest.insn import CALL, POISON_CORE_RELO, pack
from tests.loader.test_witnesses import SEC, TYPES
from tests.support.clang import compile_bpf
from tests.support.this_kernel import code_of, facts_of, machine, numbers, prog_of

MISSING = "field_info(((struct task_struct___missing *)0)->corematrix_missing, BYTE_OFF)"
# Makes the compiler believe the value is used and changed here.
KEEP = '#define KEEP(x) asm volatile("" : "+r"(x))\n'
MISSING_TOO = MISSING.replace("missing,", "missing_too,")
POISON = pack(CALL, imm=POISON_CORE_RELO)


def _judge(text: str) -> dict[str, Any]:
    machine()
    return facts_of(compile_bpf(TYPES + KEEP + text))


def _poisons(prog: dict[str, Any]) -> list[int]:
    code = code_of(prog)
    return [n for n in range(len(code) // 8) if code[8 * n : 8 * n + 8] == POISON]


def test_poison_on_both_sides_of_a_branch_is_found_step_by_step() -> None:
    facts = _judge(
        SEC
        + f"int f(void *ctx) {{ u64 v; if (get_prandom_u32() & 1) {{ v = {MISSING}; KEEP(v); v += get_prandom_u32(); }}"
        f" else {{ v = {MISSING_TOO}; KEEP(v); v *= 3; }} return v & 1; }}\n"
    )
    prog = prog_of(facts, "f")
    assert (prog["loaded"], prog["stage"], prog["errno"]) == (False, "verifier", 22)
    assert str(POISON_CORE_RELO) in prog["error"]
    steps = prog["evidence"]["analysis"]
    assert [len(step["neutralised"]) for step in steps] == [1, 2]
    assert steps[0]["stop"]["poison"]
    assert steps[0]["stop"]["insn"] == steps[1]["neutralised"][1]
    assert steps[1]["loaded"]
    assert set(steps[1]["neutralised"]) == set(_poisons(prog))


def test_what_lies_behind_the_poison_is_not_visited() -> None:
    facts = _judge(SEC + f"int f(void *ctx) {{ u64 v = {MISSING}; KEEP(v);"
                   " u64 w = offset_of(task_struct, pid); KEEP(w); return (v + w) & 1; }\n")  # fmt: skip
    prog = prog_of(facts, "f")
    (step,) = prog["evidence"]["analysis"]
    assert step["loaded"]
    (poison,) = step["neutralised"]
    behind = [relo["insn"] for relo in prog["relos"] if relo["insn"] != poison]
    assert behind
    assert not set(behind) & numbers(step["visited"])
    assert poison in numbers(step["visited"])


def test_poison_in_a_static_function_ends_its_callers_path() -> None:
    """Without leaving the caller too, what stands behind the call would look reached."""
    facts = _judge(f"static noinline u64 sub(u64 x) {{ u64 v = {MISSING}; KEEP(v); return v + x; }}\n"
                   + SEC + "int f(void *ctx) { u64 v = sub(get_prandom_u32()); u64 w = offset_of(task_struct, pid);"
                   " KEEP(w); return (v + w) & 1; }\n")  # fmt: skip
    prog = prog_of(facts, "f")
    (step,) = prog["evidence"]["analysis"]
    assert step["loaded"], step
    main = prog["funcs"][0]
    behind = [r["insn"] for r in prog["relos"] if r["insn"] < main["insns"]]
    assert behind
    assert not set(behind) & numbers(step["visited"])


def test_a_path_around_the_poisoned_call_is_followed() -> None:
    facts = _judge(f"static noinline u64 sub(u64 x) {{ u64 v = 3; if (x & 1) v = {MISSING}; KEEP(v); return v; }}\n"
                   + SEC + "int f(void *ctx) { u64 v = sub(get_prandom_u32()); u64 w = offset_of(task_struct, pid);"
                   " KEEP(w); return (v + w) & 1; }\n")  # fmt: skip
    prog = prog_of(facts, "f")
    step = prog["evidence"]["analysis"][-1]
    assert step["loaded"], step
    main = prog["funcs"][0]
    assert {r["insn"] for r in prog["relos"] if r["insn"] < main["insns"]} <= numbers(step["visited"])


def test_a_function_that_returns_nothing_is_led_out_too() -> None:
    facts = _judge("static u64 sink;\n"
                   f"static noinline void sub(u64 x) {{ u64 v = 3; if (x & 1) v = {MISSING}; asm volatile(\"\" : : \"r\"(v)); }}\n"
                   + SEC + "int f(void *ctx) { sub(get_prandom_u32()); u64 w = offset_of(task_struct, pid);"
                   " KEEP(w); return w & 1; }\n")  # fmt: skip
    prog = prog_of(facts, "f")
    step = prog["evidence"]["analysis"][-1]
    assert step["loaded"], step


def test_poison_in_a_global_function() -> None:
    facts = _judge(f"noinline u64 sub(u64 x) {{ u64 v = {MISSING}; KEEP(v); return v + x; }}\n"
                   + SEC + "int f(void *ctx) { u64 v = sub(get_prandom_u32()); u64 w = offset_of(task_struct, pid);"
                   " KEEP(w); return (v + w) & 1; }\n")  # fmt: skip
    prog = prog_of(facts, "f")
    assert prog["funcs"][1]["global"]
    assert prog["evidence"]["analysis"][-1]["loaded"]


def test_another_error_behind_the_poison_ends_the_analysis() -> None:
    facts = _judge(SEC + f"int f(void *ctx) {{ u64 v; if (get_prandom_u32() & 1) v = {MISSING}; else v = *(u64 *)get_current_task();"
                   " KEEP(v); return v & 1; }\n")  # fmt: skip
    prog = prog_of(facts, "f")
    assert not prog["loaded"]
    steps = prog["evidence"]["analysis"]
    if steps:  # the branch the verifier walks first decides which error is met first
        assert not steps[-1]["loaded"]
        assert not steps[-1]["stop"]["poison"]
        assert "mem access" in steps[-1]["stop"]["message"]
    else:
        assert "mem access" in prog["error"]


def test_ldimm64_poison_is_passed() -> None:
    facts = _judge("enum known { CORE_A = 5 };\n"
                   + SEC + "int f(void *ctx) { u64 v = enum_value(enum known, CORE_A, E_VALUE); return v & 1; }\n")  # fmt: skip
    prog = prog_of(facts, "f")
    (step,) = prog["evidence"]["analysis"]
    assert step["loaded"], step


def test_a_flip_shows_what_its_guard_protects() -> None:
    facts = _judge(SEC + f"int f(void *ctx) {{ u64 v = 1; if (exists) v = {MISSING}; KEEP(v); return v & 1; }}\n")
    prog = prog_of(facts, "f")
    assert prog["loaded"]
    (flip,) = prog["evidence"]["flips"]
    kinds = {relo["index"]: relo["kind"] for relo in facts["core_relos"]}
    assert kinds[flip["relo"]] == "field_exists"
    assert flip["value"] == 1
    assert not flip["loaded"]
    poisoned = next(r["insn"] for r in prog["relos"] if kinds[r["relo"]] == "byte_off")
    assert poisoned not in numbers(prog["evidence"]["line_info"]["survived"])
    assert poisoned in numbers(flip["visited"])


def test_a_flip_of_an_existing_field_removes_its_use() -> None:
    facts = _judge(SEC + "int f(void *ctx) { u64 v = 1; if (field_info(((struct task_struct *)0)->pid, EXISTS)) v = offset_of(task_struct, pid);"
                   " KEEP(v); return v & 1; }\n")  # fmt: skip
    prog = prog_of(facts, "f")
    (flip,) = prog["evidence"]["flips"]
    used = next(r["insn"] for r in prog["relos"] if r["insn"] != flip["insn"])
    assert flip["loaded"]
    assert used in numbers(prog["evidence"]["line_info"]["survived"])
    assert used not in numbers(flip["survived"])
