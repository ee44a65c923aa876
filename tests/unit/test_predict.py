"""Which instructions a verifier reaches, by prediction: programs written by hand, judged by the kernel's own rules.

What old verifiers do was measured on booted 4.4 to 4.19 kernels; what 6.18 does is asked of it in
tests/loader/test_prediction.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.guest import insn as I
from harness.guest.btf import Btf
from harness.guest.kconfig import Extern
from harness.model.verdict import Liveness
from harness.predict import values as V
from harness.predict.compare import compare, notes
from harness.predict.final import Func, Program
from harness.predict.kernels import model_from
from harness.predict.machine import predict
from harness.predict.models import NEWEST, OLDEST, RULES, Model
from harness.predict.program import encode, kconfig_of
from tests.support.btf_builder import BtfBuilder
from tests.support.facts import begun, judged
from tests.support.objects import PROGRAMS, compile_object

R0, R1, R2, R6, R7, R10 = 0, 1, 2, 6, 7, 10
POISON = (I.CALL, 0, 0, 0, I.POISON_CORE_RELO)
EXIT = (I.EXIT, 0, 0, 0, 0)
RANDOM = (I.CALL, 0, 0, 0, 7)
RECORDED = Path(__file__).parents[1] / "data" / "facts"


def mov(dst, imm):
    return (I.BPF_ALU64 | I.BPF_MOV | I.BPF_K, dst, 0, 0, imm)


def copy(dst, src):
    return (I.BPF_ALU64 | I.BPF_MOV | I.BPF_X, dst, src, 0, 0)


def jump(operation, dst, imm, off, *, wide=True):
    return ((I.BPF_JMP if wide else I.BPF_JMP32) | operation | I.BPF_K, dst, 0, off, imm)


def call(to):
    return (I.CALL, 0, I.BPF_PSEUDO_CALL, 0, to)


def program(*insns, starts=((0, True),), **more):
    funcs = tuple(Func(name=f"f{start}", start=start, insns=0, is_global=is_global) for start, is_global in starts)
    return Program(name="p", code=b"".join(I.native(*insn) for insn in insns), funcs=funcs, **more)


def dead(found, count):
    return sorted(set(range(count)) - found.visited)


def without(*rules):
    return Model(rules=NEWEST.rules - set(rules))


# -- guards: (does the guarded field exist, is it the first of the two) on every verifier there was


def guarded(exists, *, poison_then, poison_else):
    """if (exists(first)) first; else second;  with poison where a field is missing"""
    return program(
        mov(R1, int(exists)),
        jump(I.BPF_JEQ, R1, 0, 2),
        POISON if poison_then else mov(R0, 1),
        (I.BPF_JMP | I.BPF_JA, 0, 0, 1, 0),
        POISON if poison_else else mov(R0, 2),
        mov(R0, 0),
        EXIT,
    )


EQUAL_ONLY = without("constant_branches", "range_branches")


@pytest.mark.parametrize(
    ("exists", "refused_before_4_16"),
    [
        pytest.param(True, True, id="p1 on 4.4: the existing field first, else the other"),
        pytest.param(False, False, id="p2 on 4.4: the missing field first, else the existing"),
    ],
)
def test_else_of_an_existing_field_is_walked_by_old_verifiers(exists, refused_before_4_16):
    two_fields = guarded(exists, poison_then=not exists, poison_else=exists)
    assert bool(predict(two_fields, EQUAL_ONLY).poison) is refused_before_4_16
    assert not predict(two_fields, without("range_branches")).poison
    assert not predict(two_fields, NEWEST).poison


def test_each_access_under_its_own_check_is_safe_on_every_verifier():
    """p3/p6 of the notes: they load on 4.4 and 4.9, whichever field exists."""
    for exists in (True, False):
        own = program(
            mov(R1, int(exists)), jump(I.BPF_JEQ, R1, 0, 1), mov(R0, 1) if exists else POISON,
            mov(R1, int(not exists)), jump(I.BPF_JEQ, R1, 0, 1), POISON if exists else mov(R0, 2),
            mov(R0, 0), EXIT,
        )  # fmt: skip
        for model in (OLDEST, EQUAL_ONLY, NEWEST):
            assert not predict(own, model).poison


def test_poison_without_a_guard_is_reached_and_ends_the_path():
    found = predict(program(POISON, mov(R0, 0), EXIT), OLDEST)
    assert (found.poison, found.visited) == ({0}, {0})


# -- what is known where


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize(
    ("operation", "value", "imm", "taken"),
    [
        (I.BPF_JEQ, 1, 1, True), (I.BPF_JEQ, 1, 0, False), (I.BPF_JNE, 1, 0, True), (I.BPF_JGT, -1, 5, True),
        (I.BPF_JSGT, -1, 5, False), (I.BPF_JSLT, -1, 0, True), (I.BPF_JSET, 6, 2, True), (I.BPF_JSET, 6, 1, False),
        (I.BPF_JLE, 3, 3, True), (I.BPF_JLT, 3, 3, False), (I.BPF_JSGE, -2, -1, False), (I.BPF_JSLE, -2, -1, True),
    ],
)  # fmt: skip
def test_comparisons_of_constants_go_one_way(operation, value, imm, taken, wide):
    insns = (mov(R1, value), jump(operation, R1, imm, 1, wide=wide), mov(R0, 1), mov(R0, 0), EXIT)
    found = predict(program(*insns), NEWEST)
    assert dead(found, 5) == ([2] if taken else [])


def test_a_random_number_goes_both_ways_and_its_copy_remembers_which():
    insns = (
        RANDOM, copy(R6, R0),
        jump(I.BPF_JNE, R0, 5, 3),
        jump(I.BPF_JEQ, R6, 5, 1), mov(R0, 1),  # R6 is 5 as well
        mov(R0, 2),
        mov(R0, 0), EXIT,
    )  # fmt: skip
    assert dead(predict(program(*insns), NEWEST), 8) == [4]


def test_ranges_decide_since_is_branch_taken():
    reached = program(
        RANDOM, (I.BPF_ALU64 | I.BPF_AND | I.BPF_K, R0, 0, 0, 7), jump(I.BPF_JGT, R0, 7, 1),
        (I.BPF_JMP | I.BPF_JA, 0, 0, 1, 0), mov(R0, 1), mov(R0, 0), EXIT,
    )  # fmt: skip
    assert dead(predict(reached, NEWEST), 7) == [4]
    assert dead(predict(reached, without("range_branches")), 7) == []


def test_a_constant_survives_the_stack():
    insns = (
        mov(R1, 1), (I.BPF_STX | I.BPF_MEM | I.BPF_DW, R10, R1, -8, 0), RANDOM,
        (I.BPF_LDX | I.BPF_MEM | I.BPF_DW, R2, R10, -8, 0),
        jump(I.BPF_JEQ, R2, 1, 1), mov(R0, 1), mov(R0, 0), EXIT,
    )  # fmt: skip
    assert dead(predict(program(*insns), NEWEST), 8) == [5]


def test_an_immediate_on_the_stack_is_known_since_6_3_and_zero_ever():
    def stored(imm):
        return program(
            (I.BPF_ST | I.BPF_MEM | I.BPF_DW, R10, 0, -8, imm), (I.BPF_LDX | I.BPF_MEM | I.BPF_DW, R2, R10, -8, 0),
            jump(I.BPF_JEQ, R2, imm, 1), mov(R0, 1), mov(R0, 0), EXIT,
        )  # fmt: skip

    assert dead(predict(stored(4), NEWEST), 6) == [3]
    assert dead(predict(stored(4), without("stack_immediates")), 6) == []
    assert dead(predict(stored(0), without("stack_immediates")), 6) == [3]


def test_memory_given_to_a_helper_is_written_by_it():
    def around(slot):
        return program(
            mov(R6, 1), (I.BPF_STX | I.BPF_MEM | I.BPF_DW, R10, R6, slot, 0),
            copy(R1, R10), (I.BPF_ALU64 | I.BPF_ADD | I.BPF_K, R1, 0, 0, -16), mov(R2, 8), (I.CALL, 0, 0, 0, 16),
            (I.BPF_LDX | I.BPF_MEM | I.BPF_DW, R2, R10, slot, 0), jump(I.BPF_JEQ, R2, 1, 1), mov(R0, 1), mov(R0, 0),
            EXIT,
        )  # fmt: skip

    assert dead(predict(around(-16), NEWEST), 11) == []  # bpf_get_current_comm(fp - 16, 8)
    assert dead(predict(around(-8), NEWEST), 11) == [8]


def test_frozen_data_is_known_where_maps_are_read():
    number = (7).to_bytes(4, sys.byteorder)
    insns = (
        (I.LDIMM64, R1, I.BPF_PSEUDO_MAP_VALUE, 0, 0), (0, 0, 0, 0, 4), (I.BPF_LDX | I.BPF_MEM | I.BPF_W, R1, R1, 0, 0),
        jump(I.BPF_JNE, R1, 7, 1), (I.BPF_JMP | I.BPF_JA, 0, 0, 1, 0), mov(R0, 1), mov(R0, 0), EXIT,
    )  # fmt: skip
    frozen = program(*insns, data={"x.rodata": b"\0" * 4 + number}, map_values={0: ("x.rodata", 4)})
    assert dead(predict(frozen, NEWEST), 8)[-1:] == [5]
    assert 5 in predict(frozen, without("frozen_maps")).visited
    assert 5 in predict(program(*insns, map_values={0: ("x.bss", 4)}), NEWEST).visited


# -- subprograms


def _with_argument(is_global):
    return program(
        mov(R1, 0), call(2), mov(R0, 0), EXIT,
        jump(I.BPF_JEQ, R1, 0, 1), POISON, mov(R0, 0), EXIT,
        starts=((0, True), (4, is_global)),
    )  # fmt: skip


def test_a_callers_constant_passes_into_a_static_function_and_never_into_a_global_one():
    assert not predict(_with_argument(is_global=False), NEWEST).poison
    assert predict(_with_argument(is_global=True), NEWEST).poison == {5}
    # Without func_info the kernel cannot tell global functions.
    assert not predict(_with_argument(is_global=True), Model(rules=NEWEST.rules, global_functions=False)).poison


def test_a_static_function_called_from_two_places_is_judged_for_each():
    insns = (
        mov(R1, 0), call(4), mov(R1, 1), call(2), mov(R0, 0), EXIT,
        jump(I.BPF_JEQ, R1, 0, 1), mov(R0, 1), mov(R0, 0), EXIT,
    )  # fmt: skip
    assert dead(predict(program(*insns, starts=((0, True), (6, False))), NEWEST), 10) == []


def test_behind_the_call_of_a_global_function_it_goes_on_with_the_next_instruction():
    insns = (mov(R6, 1), call(4), jump(I.BPF_JEQ, R6, 1, 1), mov(R0, 1), mov(R0, 0), EXIT, mov(R0, 3), EXIT)
    found = predict(program(*insns, starts=((0, True), (6, True))), NEWEST)
    assert dead(found, 8) == [3]  # and R6, which callees keep, is known


@pytest.mark.parametrize(("value", "else_too"), [(0, True), (5, False)])
def test_what_a_branch_shows_of_a_number_is_known_on_its_sides(value, else_too):
    """r0 = random; if (r0 == value) { if (r0 != value) poison } else { if (r0 == value) poison }: that it is not 0 is
    a range, that it is not 5 is none (reg_set_min_max()).
    """
    insns = (
        RANDOM, jump(I.BPF_JEQ, R0, value, 3),
        jump(I.BPF_JEQ, R0, value, 4), mov(R0, 0), EXIT,
        jump(I.BPF_JNE, R0, value, 2), EXIT, POISON, POISON,
    )  # fmt: skip
    found = predict(program(*insns), NEWEST)
    assert {4, 6} <= found.visited
    assert found.poison == (set() if else_too else {7})


def test_what_a_static_function_returns_is_known_behind_the_call():
    insns = (call(4), jump(I.BPF_JEQ, R0, 3, 1), mov(R0, 1), mov(R0, 0), EXIT, mov(R0, 3), EXIT)
    assert dead(predict(program(*insns, starts=((0, True), (5, False))), NEWEST), 7) == [2]


def test_a_global_function_called_from_dead_code_is_verified_all_the_same_before_6_8():
    insns = (mov(R1, 1), jump(I.BPF_JEQ, R1, 1, 1), call(2), mov(R0, 0), EXIT, POISON, EXIT)
    never = program(*insns, starts=((0, True), (5, True)))
    assert not predict(never, NEWEST).poison
    assert predict(never, without("lazy_globals")).poison == {5}


def test_a_loop_ends():
    one_more = (I.BPF_ALU64 | I.BPF_ADD | I.BPF_K, R6, 0, 0, 1)
    insns = (mov(R6, 0), one_more, jump(I.BPF_JLT, R6, 100_000, -2), mov(R0, 0), EXIT)
    found = predict(program(*insns), NEWEST)
    assert found.complete
    assert dead(found, 5) == []


def test_jumps_through_a_table_are_not_predicted():
    found = predict(program(mov(R1, 0), (I.BPF_JMP | I.BPF_JA | I.BPF_X, R1, 0, 0, 0), mov(R0, 0), EXIT), NEWEST)
    assert not found.complete
    assert found.reaches(2) is None


def test_a_map_lookup_may_fail_and_what_it_gives_is_no_null_behind_the_check():
    insns = (
        (I.LDIMM64, R1, I.BPF_PSEUDO_MAP_FD, 0, 5), (0, 0, 0, 0, 0), copy(R2, R10),
        (I.BPF_ALU64 | I.BPF_ADD | I.BPF_K, R2, 0, 0, -4), (I.CALL, 0, 0, 0, 1), copy(R6, R0),
        jump(I.BPF_JEQ, R0, 0, 2), jump(I.BPF_JNE, R6, 0, 1), mov(R0, 1), mov(R0, 0), EXIT,
    )  # fmt: skip
    found = predict(program(*insns), NEWEST)
    assert 8 not in found.visited
    assert {6, 7, 9, 10} <= found.visited
    assert found.helpers == {1}


# -- values


@pytest.mark.parametrize("operation", [I.BPF_ADD, I.BPF_SUB, I.BPF_AND, I.BPF_OR, I.BPF_XOR, I.BPF_MUL, I.BPF_RSH])
def test_ranges_hold_every_result(operation):
    """Interval arithmetic against arithmetic: numbers from two ranges land in the range of the result."""
    compute = {
        I.BPF_ADD: lambda a, b: a + b, I.BPF_SUB: lambda a, b: a - b, I.BPF_AND: lambda a, b: a & b,
        I.BPF_OR: lambda a, b: a | b, I.BPF_XOR: lambda a, b: a ^ b, I.BPF_MUL: lambda a, b: a * b,
        I.BPF_RSH: lambda a, b: a >> b,
    }[operation]  # fmt: skip
    for low in range(5):
        for high in range(low, 7):
            for other in range(4):
                for wide in (True, False):
                    result = V.arithmetic(operation, V.between(low, high), V.between(1, 1 + other), wide)
                    top = V.M64 if wide else V.M32
                    for a in range(low, high + 1):
                        for b in range(1, 2 + other):
                            assert result[1] <= compute(a, b) & top <= result[2]


@pytest.mark.parametrize("operation", [I.BPF_JEQ, I.BPF_JNE, I.BPF_JGT, I.BPF_JGE, I.BPF_JLT, I.BPF_JLE])
def test_refining_loses_no_number(operation):
    holds = {
        I.BPF_JEQ: int.__eq__, I.BPF_JNE: int.__ne__, I.BPF_JGT: int.__gt__, I.BPF_JGE: int.__ge__,
        I.BPF_JLT: int.__lt__, I.BPF_JLE: int.__le__,
    }[operation]  # fmt: skip
    for low in range(4):
        for high in range(low, 5):
            for imm in range(5):
                value = V.between(low, high)
                for jumps in (True, False):
                    left, _ = V.refine(operation, value, V.const(imm), True, jumps)
                    for number in range(low, high + 1):
                        if holds(number, imm) is jumps:
                            assert left[1] <= number <= left[2]


# -- what the verifier knows and we do not


LOAD = (I.LDIMM64, R1, I.BPF_PSEUDO_MAP_VALUE, 0, 0)


def decided_by(*between, secret=True):
    """r1 = CONFIG_X (250); ...; if (r1 == 1000) poison; else r0 = 1; r0 = 0; exit"""
    return program(
        LOAD, (0, 0, 0, 0, 0), (I.BPF_LDX | I.BPF_MEM | 0, R1, R1, 0, 0), *between,
        jump(I.BPF_JEQ, R1, 1000, 2),
        mov(R0, 1),
        EXIT,
        POISON,
        data={".kconfig": (250).to_bytes(4, sys.byteorder) * 2}, map_values={0: (".kconfig", 4)},
        secrets={".kconfig": ((4, 8),)} if secret else {},
    )  # fmt: skip


SPILL = ((I.BPF_STX | I.BPF_MEM | 0, R10, R1, -4, 0), mov(R1, 5), (I.BPF_LDX | I.BPF_MEM | 0, R1, R10, -4, 0))
THROUGH = {
    "as it is": (), "through the stack": SPILL, "copied": (copy(R2, R1), mov(R1, 5), copy(R1, R2)),
    "reckoned with": (
        (I.BPF_ALU64 | I.BPF_ADD | I.BPF_K, R1, 0, 0, 750), (I.BPF_ALU | I.BPF_AND | I.BPF_K, R1, 0, 0, 1023),
    ),
}  # fmt: skip


@pytest.mark.parametrize("between", THROUGH.values(), ids=THROUGH.keys())
def test_a_secret_decides_either_way_and_nothing_is_certain_behind_it(between):
    asked = decided_by(*between)
    branch = 3 + len(between)
    assert predict(asked, NEWEST).poison == {branch + 3}
    assert dead(predict(asked, NEWEST), branch + 4) == [1]
    certain = predict(asked, NEWEST, certain=True)
    assert sorted(certain.visited) == [0, *range(2, branch + 1)]
    # Before 5.5 no verifier reads the map: both sides are walked, whatever stands there.
    assert predict(asked, without("frozen_maps"), certain=True).poison == {branch + 3}


def test_what_is_no_secret_is_read_beside_one():
    assert not predict(decided_by(secret=False), NEWEST).poison


# -- models


def test_rules_are_told_by_what_a_kernels_btf_holds():
    builder = BtfBuilder()
    integer = builder.int("int", 4)
    builder.struct("bpf_func_state", 4, ("x", integer, 0))
    builder.struct("bpf_prog_aux", 8, ("id", integer, 0), ("attach_btf_id", integer, 32))
    builder.struct("bpf_func_info_aux", 4, ("linkage", integer, 0))  # without `called`
    assert model_from(Btf(builder.build())).rules == {"constant_branches", "frozen_maps"}


def test_every_rule_says_where_it_comes_from():
    for rule in RULES:
        assert rule.since[0].isdigit()
        assert rule.markers


# -- Kconfig values


@pytest.mark.parametrize(
    ("kind", "size", "value", "data"),
    [
        ("bool", 1, True, b"\1"), ("tristate", 4, "m", (2).to_bytes(4, sys.byteorder)),
        ("int", 4, 250, (250).to_bytes(4, sys.byteorder)), ("int", 2, -1, b"\xff\xff"),
        ("char array", 6, "ab", b"ab\0\0\0\0"), ("char", 1, ord("y"), b"y"),
    ],
)  # fmt: skip
def test_kconfig_values_as_the_map_holds_them(kind, size, value, data):
    extern = Extern.__new__(Extern)
    extern.kind, extern.size = kind, size
    assert encode(extern, value, sys.byteorder) == data


@pytest.mark.parametrize(
    ("kind", "size", "text", "data"),
    [
        ("bool", 1, "y", b"\1"), ("bool", 1, "n", b"\0"), ("tristate", 4, "m", (2).to_bytes(4, sys.byteorder)),
        ("int", 4, "0xfa", (250).to_bytes(4, sys.byteorder)), ("int", 4, "250", (250).to_bytes(4, sys.byteorder)),
        ("bool", 1, "0x1", b"\1"), ("char array", 6, '"ab"', b"ab\0\0\0\0"), ("char", 1, "y", b"y"),
    ],
)  # fmt: skip
def test_kconfig_values_in_the_words_of_libbpf(kind, size, text, data):
    """Facts of the loader libbpf hold what its log says, and no type."""
    rows = [{"name": "CONFIG_X", "kind": "kconfig", "type": None, "value": text, "outcome": "resolved"}]
    extern = Extern.__new__(Extern)
    extern.name, extern.kind, extern.size, extern.signed = "CONFIG_X", kind, size, False
    assert encode(extern, kconfig_of(rows)["CONFIG_X"], sys.byteorder) == data


# -- held against the proof: facts that Linux 6.18 answered


@pytest.mark.parametrize("name", sorted(path.stem for path in RECORDED.glob("*.json")))
def test_what_a_real_kernel_showed_was_foretold(name, tmp_path):
    facts = json.loads((RECORDED / f"{name}.json").read_text())
    source = PROGRAMS / f"{name}.bpf.c"
    flags = ["-D__TARGET_ARCH_x86"]
    data = compile_object(source, tmp_path / f"{name}.bpf.o", *flags).read_bytes()
    result = judged(facts, cell=begun("this-machine", name))
    found = compare(result, facts, data, NEWEST)
    assert found["reason"] is None
    assert found["disagreements"] == []
    known = (Liveness.LIVE, Liveness.ELIMINATED)
    shown = [relo for prog in result.progs for relo in prog.core_relos if relo.liveness in known]
    assert found["compared"] == len(shown)


def test_another_verifier_is_told_by_the_same_facts(tmp_path):
    """The comparison can fail: a model of a verifier that this kernel is not."""
    facts = json.loads((RECORDED / "task_state.json").read_text())
    data = compile_object(PROGRAMS / "task_state.bpf.c", tmp_path / "x.bpf.o", "-D__TARGET_ARCH_x86").read_bytes()
    found = compare(judged(facts, cell=begun("k", "task_state")), facts, data, OLDEST)
    assert {row["kernel"] for row in found["disagreements"]} == {"eliminated"}
    (row, *_) = found["disagreements"]
    cell = judged(facts, cell=begun("k", "task_state"))
    told = notes([replace(cell, prediction=found)])
    assert any(row["field"] in note and "(on k)" in note for note in told)


def test_the_kernels_own_answer_counts_more_than_its_btf() -> None:
    """Ubuntu's 4.15 has a rule by backport that its BTF does not tell of; BTF written for a kernel tells nothing."""
    backported = OLDEST.asked({"constant_branches": True, "range_branches": False})
    assert backported.rules == {"constant_branches"}
    older = NEWEST.asked({"constant_branches": False, "range_branches": False})
    assert older.rules == NEWEST.rules - {"constant_branches", "range_branches"}
    assert NEWEST.asked({}) == NEWEST.asked({"range_branches": None}) == NEWEST
