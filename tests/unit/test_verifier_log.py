"""Reading verifier logs. The texts of 6.18 and 7.2 were printed by those kernels; older forms follow their sources."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.guest import verifier_log as vl
from harness.guest.loader import with_its_end

LOG_7_2 = """\
0: R1=ctx() R10=fp0
; struct task_struct *task = (void *)bpf_get_current_task(); @ fsbase_as_published.bpf.c:45
0: (85) call bpf_get_current_task#35          ; R0=scalar()
1: (b7) r1 = 5856                     ; R1=5856
5: (18) r1 = 0xffffc900004db000       ; R1=map_value(map=fsbase_.kconfig,ks=4,vs=4)
7: (61) r1 = *(u32 *)(r1 +0)          ; R1=0x7020c
9: (85) call unknown#195896080
invalid func unknown#195896080
verification time 2593 usec
stack depth 16 max 0
insns processed 9
processed 9 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
LOG_6_18 = """\
func#0 @0
Live regs before insn:
      0: .......... (b7) r0 = 0
      1: 0......... (95) exit
0: R1=ctx() R10=fp0
0: (b7) r0 = 0                        ; R0=0
1: (95) exit
verification time 72 usec
stack depth 8+16+0
processed 2 insns (limit 1000000) max_states_per_insn 1 total_states 3 peak_states 2 mark_read 0
"""
# kernel/bpf/verifier.c of 4.9: no figures but the count, state on a line of its own.
LOG_4_9 = "0: (bf) r6 = r1\n1: (85) call 5\nfrom 1 to 3: R0=inv\n3: (85) call 195896080\ninvalid func 195896080\n"
# 4.15 to 5.1 print the stack depth behind the count.
LOG_4_19 = "0: (b7) r0 = 0\n1: (95) exit\nprocessed 2 insns, stack depth 0+8\n"
FULL = (
    "processed_insns",
    "insn_limit",
    "max_states_per_insn",
    "total_states",
    "peak_states",
    "stack_depth",
    "verification_usec",
)


@pytest.mark.parametrize(
    ("log", "numbers"),
    [
        (LOG_7_2, (9, 1000000, 0, 0, 0, 16, 2593)),
        (LOG_6_18, (2, 1000000, 1, 3, 2, 24, 72)),
        (LOG_4_19, (2, None, None, None, None, 8, None)),
    ],
    ids=["7.2", "6.18", "4.19"],
)
def test_figures(log: str, numbers: tuple[int | None, ...]) -> None:
    assert vl.figures(log) == dict(zip(FULL, numbers, strict=True))


def test_a_log_without_figures_has_none() -> None:
    assert vl.figures(LOG_4_9) is None
    assert vl.figures("") is None


@pytest.mark.parametrize(
    ("log", "seen", "last", "reason"),
    [
        (LOG_7_2, {0, 1, 5, 7, 9}, 9, "invalid func unknown#195896080"),
        (LOG_6_18, {0, 1}, 1, None),
        (LOG_4_9, {0, 1, 3}, 3, "invalid func 195896080"),
    ],
    ids=["7.2", "6.18", "4.9"],
)
def test_what_was_walked_through_and_why_it_ended(log: str, seen: set[int], last: int, reason: str | None) -> None:
    assert vl.visited(log.encode()) == seen
    assert vl.last_insn(log.encode()) == last
    assert vl.reason(log) == reason
    assert vl.is_poison_message(vl.reason(log)) == (reason is not None)


def test_the_table_of_live_registers_is_no_walk() -> None:
    table = LOG_6_18[: LOG_6_18.index("0: R1=ctx")].encode()
    assert vl.visited(table) == set()
    assert vl.last_insn(table) is None


def test_a_long_table_of_live_registers_is_no_walk_either() -> None:
    """From the hundredth line on it is not indented; a walk that ends before its first instruction stops nowhere."""
    log = b"100: .......... (b7) r0 = 0\n101: (95) exit\n0: R1=ctx() R10=fp0\nR2 !read_ok\n"
    assert vl.visited(log) == set()
    assert vl.last_insn(log) is None
    assert vl.last_insn(b": R" * 1000 + b"\n3: (95) exit\n") == 3


def test_a_log_cut_at_its_end_gets_its_end() -> None:
    """5.10 and 6.1 keep the beginning of a log that does not fit, 6.4 and later its end."""
    short = b"BPF program is too large. Processed 1000001 insn\nprocessed 1000001 insns (limit 1000000)\n"
    begin, end = b"3: (07) r1 += -1\n4: (55) if r1 != 0x0 go", b"4: (55) if r1 != 0x0 goto pc-2\n" + short
    whole = with_its_end(begin, short)
    assert whole.startswith(begin)
    assert whole.endswith(short)
    assert with_its_end(end, short) == end
    assert vl.reason(whole.decode()) == vl.reason(end.decode()) == "BPF program is too large. Processed 1000001 insn"


def test_other_errors_are_not_poison() -> None:
    log = "0: (61) r0 = *(u32 *)(r0 +0)\nR0 invalid mem access 'scalar'\nprocessed 1 insns (limit 1000000)\n"
    assert vl.reason(log) == "R0 invalid mem access 'scalar'"
    assert not vl.is_poison_message(vl.reason(log))


@pytest.mark.parametrize(
    ("numbers", "ranges"),
    [((), []), ((3,), [[3, 4]]), ((0, 1, 2, 5, 7, 8), [[0, 3], [5, 6], [7, 9]]), ((4, 2, 3), [[2, 5]])],
)
def test_ranges(numbers: tuple[int, ...], ranges: list[list[int]]) -> None:
    assert vl.ranges(numbers) == ranges


def test_tables_before_the_walk_are_no_visits():
    """From Linux 7.2.12, level 2, shortened: tables indent by "%3d", so the hundredth line looks like a walk's."""
    log = b"""func#0 @0
subprog#0: analyzing (depth 0)...
subprog#0 ipv4_bind_exit:
  0: (bf) r6 = r1
 99: (85) call unknown#195896080 // r1=fp0-96
100: (85) call bpf_probe_read_kernel#113
233: (85) call bpf_map_delete_elem#3   ; use: fp0-4h
Live regs before insn:
      0: .1.345.... (bf) r6 = r1
    233: .12....... (85) call bpf_map_delete_elem#3
0: R1=ctx() R10=fp0
; int BPF_KRETPROBE(ipv4_bind_exit) @ bindsnoop.bpf.c:125
0: (bf) r6 = r1                       ; R1=ctx() R6=ctx()
101: (18) r1 = 0xffffc9000018a000     ; R1=map_value(map=bindsnoo.rodata,ks=4,vs=10)
77: (85) call unknown#195896080
invalid func unknown#195896080
"""
    assert vl.visited(log) == {0, 77, 101}


_WALKED = st.lists(
    st.builds(
        lambda head, middle, tail: f"{head}{middle}{tail}",
        st.sampled_from(["0", "7", "12", "99999999", "123456789", " 5", "", "x3", "from 4 to 9", "3: R2", "8\t"]),
        st.sampled_from([": (", ": R", ": ", ":(", " "]),
        st.sampled_from(["85) call f#1", "12: (07) r1 += 2", "1=ctx() R10=fp0", "", "b7) r0 = 0 ; x: (y"]),
    )
)


@given(_WALKED)
def test_every_line_that_is_walked_through_counts_and_no_other(lines: list[str]) -> None:
    """Line by line, as the sentences of `visited` say it."""
    expected: set[int] = set()
    walking = False
    for line in lines:
        match = re.match(r"([0-9]{1,8}): (.?)", line)
        if match and match[2] == "(":
            expected.add(int(match[1]))
        elif match and match[2] == "R" and not walking:
            walking = True
            expected.clear()
    assert vl.visited("\n".join(lines).encode()) == expected


@given(_WALKED)
def test_the_last_line_that_is_walked_through_is_where_it_stopped(lines: list[str]) -> None:
    """Below the walk's beginning, where the log shows one."""
    starts = [at for at, line in enumerate(lines) if re.match(r"[0-9]{1,8}: R", line)]
    walked = [re.match(r"([0-9]{1,8}): \(", line) for line in lines[starts[0] if starts else 0 :]]
    expected = next((int(match[1]) for match in reversed(walked) if match), None)
    assert vl.last_insn("\n".join(lines).encode()) == expected


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("R1 !read_ok", "R1 !read_ok"),
        ("arg#0 reference type('UNKNOWN ') size cannot be determined: -22",
         "arg#0 reference type('UNKNOWN ') size cannot be determined: -22"),
        ("func 'f': (bad)", "func 'f': (bad)"),
        ("12: no such thing", "12: no such thing"),
        ("3: (95) exit", None), ("3: R0=1", None), ("3: frame1: R0=1", None), ("3: safe", None),
    ],
)  # fmt: skip
def test_the_reason_is_the_last_line_that_is_no_state_and_no_instruction(line: str, said: str | None) -> None:
    found = vl.reason(f"0: R1=ctx() R10=fp0\n0: (b7) r0 = 0\n{line}\nverification time 5 usec\nprocessed 1 insns\n")
    assert found == said


def test_words_about_time_and_depth_are_no_figures_of_their_own() -> None:
    found = vl.figures("time 7 depth 9\nverification time 5 usec\nstack depth 8+16\nprocessed 3 insns (limit 10)\n")
    assert found is not None
    assert (found["verification_usec"], found["stack_depth"]) == (5, 24)
    found = vl.figures("processed 3 insns (limit 10)\ntime 7 depth 9\n")
    assert found is not None
    assert (found["verification_usec"], found["stack_depth"]) == (None, None)
