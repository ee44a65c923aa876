"""Subprograms inlined for kernels without bpf-to-bpf calls: the same program, run by this kernel with calls and without."""

from __future__ import annotations

import datetime
import os
import random
import struct
from typing import Any

import pytest

from harness import judge
from harness.guest import insn as I
from harness.guest import syscall
from harness.guest.prog_types import PROG_TYPE
from harness.guest.syscall import Bpf, ProgLoad
from harness.model.cell import CellId
from harness.model.expectation import NONE
from harness.model.result import CellResult, KernelResult, ObjectResult
from tests.loader.test_old_kernels import adaptations, judged
from tests.support.this_kernel import code_of, machine, numbers, prog_of

EINVAL = 22
PROG_TEST_RUN = 10


def no_calls(command: int, attr: bytes) -> int:
    from tests.loader.test_old_kernels import _insns

    if command != syscall.PROG_LOAD:
        return 0
    return EINVAL if any(op == I.CALL and src == I.BPF_PSEUDO_CALL for op, _, src, _, _ in _insns(attr)) else 0


# Packet bytes come in, a number that depends on every register and slot used goes out.
NOINLINE = "noinline "
PROGRAM = """
struct __sk_buff { u32 len; u32 words[20]; };
static u64 (*const load_bytes)(void *, u32, void *, u32) = (void *)26;
static NOINLINE u64 leaf(u64 a, u64 b) {
	volatile u64 slots[3] = {a, b, a ^ b};
	u64 sum = 0;
	for (int i = 0; i < 3; i++) sum = sum * 31 + slots[i];
	return sum;
}
static NOINLINE u64 early(u64 a, u64 b, u64 c) {
	if (a > b) return c;
	if (b > c) return leaf(c, a) + 1;
	return leaf(a, b) ^ leaf(b, c) ^ a;
}
static NOINLINE u64 bytes(struct __sk_buff *skb, u32 at) {
	u64 word = 0;
	load_bytes(skb, at, &word, 8);
	return word + leaf(word, at) * skb->len;
}
SEC("socket") int f(struct __sk_buff *skb) {
	u64 a = bytes(skb, 0), b = bytes(skb, 8), c = bytes(skb, 16);
	volatile u64 kept = a;
	u64 d = early(a, b, c) + early(b, c, a) * 3 + early(c, a, b) * 5;
	return (u32)((d ^ kept ^ b) >> 7) + (u32)c;
}
""".replace("NOINLINE ", NOINLINE)


def run(code: bytes, packet: bytes) -> int:
    """The program's return value for a packet (BPF_PROG_TEST_RUN)."""
    bpf = Bpf()
    fd = bpf.prog_load(ProgLoad(PROG_TYPE["socket_filter"], code))
    try:
        given = syscall.Buffer(4096)
        given.map[: len(packet)] = packet
        attr = bytearray(struct.pack("=IIIIQQIIIIQQII", fd, 0, len(packet), 0, given.address, 0, 1, 0, 0, 0, 0, 0, 0, 0))
        bpf.call(PROG_TEST_RUN, attr)
        return int(struct.unpack_from("=I", attr, 4)[0])
    finally:
        os.close(fd)


@pytest.mark.parametrize("cpu", ["v1", "v3"])
def test_inlined_it_computes_what_it_computed_with_calls(cpu: str) -> None:
    machine()
    with_calls = prog_of(judged(PROGRAM, cpu=cpu, evidence=False), "f")
    without = prog_of(judged(PROGRAM, no_calls, cpu=cpu, evidence=False), "f")
    assert len(with_calls["funcs"]) > 2, "the compiler inlined it itself: nothing is tested"
    assert with_calls["loaded"], with_calls["log"]
    assert without["loaded"], without["log"] or without["error"]
    assert adaptations(without)["calls_inlined"] is False
    code = code_of(without)
    assert not any(I.read(code, at)[:3:2] == (I.CALL, 1) for at in range(len(code) // 8))
    numbers_ = random.Random(4)
    for _ in range(50):
        packet = bytes(14) + numbers_.randbytes(40)  # an Ethernet header first: test_run takes it off
        assert run(code, packet) == run(code_of(with_calls), packet)


GUARDED = (
    "static " + NOINLINE + "int pid(void *task) { int pid = 0; if (exists) return offset_of(task_struct___missing,"
    " corematrix_missing); probe_read_kernel(&pid, 4, task + offset_of(task_struct, pid)); return pid; }\n"
    'SEC("raw_tp/sched_process_exec") int f(void *ctx) { void *task = (void *)get_current_task();'
    " return (pid(task) + pid(task + 8)) & 1; }\n"
)


def test_a_relocation_in_an_inlined_function_stands_once_for_each_call() -> None:
    facts = judged(GUARDED, no_calls, cpu="v3")
    prog = prog_of(facts, "f")
    assert prog["loaded"], prog["log"] or prog["error"]
    assert [func["name"] for func in prog["funcs"]] == ["f"]
    places: dict[int, list[int]] = {}
    for item in prog["relos"]:
        places.setdefault(item["relo"], []).append(item["insn"])
    assert {len(found) for found in places.values()} == {2}
    code = code_of(prog)
    for relo, found in places.items():
        line = facts["core_relos"][relo]
        if line["outcome"] == "resolved":
            for at in found:  # the very instruction that was relocated, wherever it went
                assert code[8 * at : 8 * at + 8].hex() == line["after"][:16]
    survived = numbers(prog["evidence"]["line_info"]["survived"] or prog["evidence"]["verdict_log_visited"])
    poisoned = [at for relo, found in places.items() if facts["core_relos"][relo]["outcome"] == "poisoned" for at in found]
    assert poisoned
    assert not survived & set(poisoned)
    result = classified(facts)
    assert [str(relo.liveness) for relo in result.progs[0].core_relos if relo.outcome == "poisoned"] == ["eliminated"] * 2


def classified(facts: dict[str, Any]) -> CellResult:
    begun = CellResult.begin(
        CellId(kernel="k", object="o", settings=(), loader="python"),
        KernelResult(id="k", arch="x86_64"), ObjectResult(name="o", path="o", sha256=""),
    )  # fmt: skip
    return judge.classify(facts, begun, NONE, today=datetime.date(2026, 1, 1))


CALLBACK = (
    "static long (*const loop)(u32, void *, void *, u64) = (void *)181;\n"
    "static " + NOINLINE + "long step(u32 i, void *ctx) { return 0; }\n"
    'SEC("raw_tp/sched_process_exec") int f(void *ctx) { u64 x = 0; return loop(3, step, &x, 0) & 1; }\n'
)
# Indexed at run time, so that the compiler keeps the arrays whole.
DEEP = (
    "static " + NOINLINE + "int use(u32 i) { volatile char b[300] = {}; b[i & 127] = 1; return b[i & 63]; }\n"
    'SEC("raw_tp/sched_process_exec") int f(void *ctx) { volatile char b[300] = {}; u32 i = get_prandom_u32();'
    " b[i & 255] = 1; return (use(i) + b[i & 127]) & 1; }\n"
)


@pytest.mark.parametrize(("text", "why"), [(CALLBACK, "address of a function"), (DEEP, "stack of use")])
def test_what_cannot_be_inlined_is_named(text: str, why: str) -> None:
    if text is CALLBACK:  # whether two frames of 300 bytes fit depends on the kernel's JIT (private stacks, 6.13)
        assert prog_of(judged(text, cpu="v3"), "f")["loaded"]
    prog = prog_of(judged(text, no_calls, cpu="v3"), "f")
    assert (prog["loaded"], prog["stage"], prog["unsupported"]) == (False, "pre_verifier", "calls")
    assert "no bpf-to-bpf calls" in prog["error"]
    assert why in prog["error"]


def test_a_kernel_with_calls_gets_calls() -> None:
    prog = prog_of(judged(GUARDED, cpu="v3"), "f")
    assert "calls_inlined" not in adaptations(prog)
    assert len(prog["funcs"]) == 2
