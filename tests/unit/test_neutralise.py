"""Leading poison to an exit: jumps and calls lead where they led. What the kernel makes of it is in tests/loader."""

from __future__ import annotations

import struct

import pytest

from harness.guest.evidence import Subject, flip, records
from harness.guest.insn import CALL, EXIT, LDIMM64, POISON_CORE_RELO, native, read
from harness.guest.neutralise import MAGIC, TooFar, neutralise
from harness.guest.prog_types import ATTACH_TYPE, PROG_TYPE
from harness.guest.syscall import ProgLoad

POISON = (CALL, 0, 0, 0, POISON_CORE_RELO)
MOV, JEQ, JA = 0xB7, 0x15, 0x05


def _subject(*functions: list[tuple[int, ...]], kind: str = "raw_tracepoint", attach: int = 0) -> Subject:
    code, funcs = b"", []
    for function in functions:
        funcs.append((len(code) // 8, len(function)))
        code += b"".join(native(*insn) for insn in function)
    load = ProgLoad(PROG_TYPE[kind], code)
    load.expected_attach_type = attach
    load.func_info = b"".join(struct.pack("=II", start, 7) for start, _ in funcs)
    return Subject(load, funcs, accepted=False)


def _ends(code: bytes, at: int) -> list[int]:
    """Where every path from `at` ends (instruction numbers of exits), following both sides of conditional jumps."""
    todo, seen, ends = [at], set(), []
    while todo:
        here = todo.pop()
        if here in seen:
            continue
        seen.add(here)
        op, _, _, off, _ = read(code, here)
        if op == EXIT:
            ends.append(here)
        elif op == JA:
            todo.append(here + 1 + off)
        else:
            todo += [here + 1, here + 1 + off] if op == JEQ else [here + 1]
    return ends


def test_a_poisoned_instruction_leads_out_and_what_follows_stays_reachable() -> None:
    subject = _subject([(MOV, 1), POISON, (MOV, 2), (MOV, 0), (EXIT,)])
    detour = neutralise(subject, [1])
    code = detour.load.insns
    assert read(code, 1)[:1] == (JA,)
    block = 2 + read(code, 1)[3]
    assert [read(code, block + n)[0] for n in range(4)] == [MOV, JEQ, JA, EXIT]
    assert read(code, block + 1)[3:] == (1, read(code, block)[4]), "the jump is taken: equal constants"
    assert sorted(_ends(code, 0)) == [4, block + 3]
    assert detour.back == [0, 1, 2, 3, 4, -1, -1, -1, -1]
    assert detour.original({0, 1, block, block + 3}) == {0, 1}


@pytest.mark.parametrize(("attach", "value"), [("cgroup_udp4_recvmsg", 1), ("cgroup_inet4_connect", 0)])
def test_the_exit_returns_what_its_hook_may_return(attach: str, value: int) -> None:
    subject = _subject([POISON, (MOV, 0), (EXIT,)], kind="cgroup_sock_addr", attach=ATTACH_TYPE[attach])
    assert read(neutralise(subject, [0]).load.insns, 3) == (MOV, 0, 0, 0, value)


def test_calls_and_func_info_follow_functions_that_moved() -> None:
    main = [POISON, (CALL, 0, 1, 0, 3), (MOV, 0), (CALL, 0, 1, 0, 3), (EXIT,)]
    subject = _subject(main, [(MOV, 0), (EXIT,)], [(MOV, 0, 0, 0, 1), (EXIT,)])
    detour = neutralise(subject, [0])
    code, starts = detour.load.insns, [detour.back.index(start) for start in (0, 5, 7)]
    assert [at + 1 + read(code, at)[4] for at in (1, 3)] == [starts[1], starts[2]]
    assert [row[0] for row in struct.iter_unpack("=II", detour.load.func_info)] == starts
    assert detour.load.line_info == b""


def test_poison_in_a_static_function_leaves_its_callers() -> None:
    main = [(CALL, 0, 1, 0, 2), (MOV, 0), (EXIT,)]
    subject = _subject(main, [POISON, (MOV, 0), (EXIT,)])
    detour = neutralise(subject, [3])
    code = detour.load.insns
    block = 1 + read(code, 0)[3]
    assert read(code, 0)[0] == JA
    op, _, src, _, imm = read(code, block)
    callee = block + 1 + imm
    assert (op, src, detour.back[callee]) == (CALL, 1, 3)
    assert read(code, block + 1) == (JEQ, 0, 0, 1, MAGIC)
    assert detour.original({block}) == {0}, "the call made from the block counts as the call"
    out = callee + 1 + read(code, callee)[3]
    assert read(code, out) == (MOV, 0, 0, 0, MAGIC)


def test_a_global_function_is_left_without_telling_its_callers() -> None:
    subject = _subject([(CALL, 0, 1, 0, 2), (MOV, 0), (EXIT,)], [POISON, (MOV, 0), (EXIT,)])
    subject.is_static = [False, False]
    code = neutralise(subject, [3]).load.insns
    assert read(code, 0) == (CALL, 0, 1, 0, 2)


def test_what_is_too_far_is_said() -> None:
    filler = [(MOV, 0)] * 33000
    with pytest.raises(TooFar, match="too far"):
        neutralise(_subject([POISON, *filler, (EXIT,)]), [0])


def test_records_leave_out_second_halves() -> None:
    code = b"".join(native(*i) for i in ((MOV, 0), (LDIMM64, 1), (0,), (LDIMM64, 2), (0,), (EXIT,)))
    rows = list(struct.iter_unpack("=IIII", records(code)))
    assert [row[0] for row in rows] == [0, 1, 3, 5]
    assert [(row[3] >> 10) - 1 for row in rows] == [0, 1, 3, 5]


def test_a_second_half_that_looks_like_ldimm64_is_none() -> None:
    """The second slot's first byte is 0 in valid code; hostile code must not shift everything behind it."""
    code = b"".join(native(*i) for i in ((LDIMM64, 1), (LDIMM64, 0), (MOV, 0), (EXIT,)))
    assert [row[0] for row in struct.iter_unpack("=IIII", records(code))] == [0, 2, 3]


@pytest.mark.parametrize(
    ("insn", "value"), [((MOV, 1, 0, 0, 0), 1), ((MOV, 1, 0, 0, 1), 0), ((LDIMM64, 3, 0, 0, 1), 0)]
)
def test_a_flip_inverts_one_immediate(insn: tuple[int, ...], value: int) -> None:
    code = native(*insn) + native(0) + native(EXIT)
    flipped = flip(code, 0)
    assert flipped is not None
    assert flipped[1] == value
    assert read(flipped[0], 0) == (*insn[:4], value)
    assert flipped[0][8:] == code[8:]


@pytest.mark.parametrize("insn", [(MOV, 1, 0, 0, 7), (CALL, 0, 0, 0, 1), (JEQ, 1, 0, 1, 1)])
def test_what_holds_no_check_is_not_flipped(insn: tuple[int, ...]) -> None:
    assert flip(native(*insn), 0) is None
