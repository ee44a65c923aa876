"""What a load shows and what it does not, with a kernel that answers as told: a log that is not whole proves nothing.

Real kernels are asked in tests/loader/test_witnesses.py and test_analysis.py.
"""

from __future__ import annotations

import errno
import os
import sys
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from harness.guest import evidence
from harness.guest import insn as I
from harness.guest.evidence import Collector, Outcome, Subject
from harness.guest.syscall import Bpf, ProgLoad

MOV, EXIT = I.native(0xB7), I.native(I.EXIT)
POISON = I.native(I.CALL, 0, 0, 0, I.POISON_CORE_RELO)
STATES = b"0: R1=ctx() R10=fp0\n"


def walked(*numbers: int) -> bytes:
    return STATES + b"".join(b"%d: (b7) r0 = 0\n" % number for number in numbers) + b"processed 2 insns (limit 9)\n"


def stopped(*numbers: int) -> bytes:
    return (
        walked(*numbers).partition(b"processed")[0] + b"invalid func unknown#195896080\nprocessed 2 insns (limit 9)\n"
    )


@dataclass
class Kernel:
    """What each load comes to, in turn: an errno (0: loaded), the log it leaves, the records that survive."""

    answers: list[tuple[int, bytes, list[int]]]
    levels: list[int] = field(default_factory=list)
    marked: list[bool] = field(default_factory=list)
    _now: tuple[int, bytes, list[int]] = (0, b"", [])

    def prog_load(self, load: ProgLoad, level: int, _size: int) -> int:
        self._now = self.answers.pop(0)
        self.levels.append(level)
        self.marked.append(bool(load.line_info))
        if self._now[0]:
            raise OSError(self._now[0], os.strerror(self._now[0]))
        return os.open(os.devnull, os.O_RDONLY)

    def log_buffer(self) -> Any:
        return self

    def text(self) -> bytes:
        return self._now[1]

    def prog_line_cols(self, _fd: int, _count: int) -> list[int]:
        return [(number + 1) << 10 for number in self._now[2]]


def collected(
    kernel: Kernel, code: bytes, *, accepted: bool = True, line_info: bool = True, processed: int = 4,
    guards: tuple[tuple[int, int], ...] = (),
) -> dict[str, Any]:  # fmt: skip
    load = ProgLoad(1, code)
    load.btf_fd = 1
    subject = Subject(load, [(0, len(code) // 8)], accepted)
    subject.processed, subject.guards = processed, list(guards)
    subject.relos = [(number, number) for number in range(len(code) // 8)]
    found = Collector(cast(Bpf, kernel), line_info).collect(subject, lambda _phase: None)
    assert kernel.answers == []
    return found


def test_both_witnesses_of_a_small_program_come_of_one_load() -> None:
    kernel = Kernel([(0, walked(0, 2), [0, 2])])
    found = collected(kernel, MOV * 2 + EXIT)
    assert found["line_info"] == {"loaded": True, "errno": None, "survived": [[0, 1], [2, 3]], "reason": None}
    assert found["verdict_log_visited"] == [[0, 1], [2, 3]]
    assert (kernel.levels, kernel.marked) == ([2], [True])


@pytest.mark.parametrize(
    ("processed", "level"), [(evidence.SECOND_WITNESS_MAX, 2), (evidence.SECOND_WITNESS_MAX + 1, 0)]
)
def test_a_large_program_has_its_records_only(processed: int, level: int) -> None:
    kernel = Kernel([(0, walked(0) if level else b"left from another load", [0, 2])])
    found = collected(kernel, MOV * 2 + EXIT, processed=processed)
    assert kernel.levels == [level]
    assert found["verdict_log_visited"] == ([[0, 1]] if level else None)


def test_a_log_that_does_not_fit_is_no_witness_and_the_records_are_taken_without() -> None:
    kernel = Kernel([(errno.ENOSPC, walked(0), []), (0, b"", [0, 2])])
    found = collected(kernel, MOV * 2 + EXIT)
    assert kernel.levels == [2, 0]
    assert found["line_info"]["survived"] == [[0, 1], [2, 3]]
    assert found["verdict_log_visited"] is None


def test_where_the_evidence_load_is_refused_the_log_of_one_without_records_stands_in() -> None:
    kernel = Kernel([(errno.EINVAL, b"", []), (0, walked(0, 2), [])])
    found = collected(kernel, MOV * 2 + EXIT)
    assert kernel.marked == [True, False]
    assert (found["line_info"]["loaded"], found["line_info"]["errno"]) == (False, errno.EINVAL)
    assert found["line_info"]["survived"] is None
    assert found["verdict_log_visited"] == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("answer", "visited"),
    [
        ((0, walked(0, 2), [0, 1, 2]), [[0, 1], [2, 3]]),
        ((0, walked(1, 2), []), None),  # a log whose beginning is gone
        ((0, b"", []), None),
        ((errno.ENOSPC, walked(0, 2), []), None),
        ((errno.EINVAL, walked(0, 2), []), None),  # refused where it was accepted before: its log is another walk
    ],
)
def test_a_kernel_without_records_has_the_log_of_a_load_that_was_accepted(answer: Any, visited: Any) -> None:
    found = collected(Kernel([answer]), MOV * 2 + EXIT, line_info=False)
    assert found["verdict_log_visited"] == visited
    assert found["line_info"]["survived"] is None and found["line_info"]["loaded"] is False


def test_a_refused_programs_log_that_does_not_fit_shows_nothing() -> None:
    found = collected(Kernel([(errno.ENOSPC, stopped(0, 1), [])]), MOV + MOV + EXIT, accepted=False)
    assert (found["verdict_log_visited"], found["analysis"]) == (None, [])
    found = collected(Kernel([(errno.EACCES, walked(0, 1), [])]), MOV + MOV + EXIT, accepted=False)
    assert (found["verdict_log_visited"], found["analysis"]) == ([[0, 2]], [])


def test_one_poison_after_the_other_is_looked_past_until_it_loads() -> None:
    kernel = Kernel(
        [(errno.EINVAL, stopped(0, 1), []), (errno.EINVAL, stopped(0, 1, 2), []), (0, walked(0, 1, 2, 3), [])]
    )
    found = collected(kernel, MOV + POISON + POISON + EXIT, accepted=False)
    first, second = found["analysis"]
    assert (first["neutralised"], first["loaded"]) == ([1], False)
    assert (first["stop"]["insn"], first["stop"]["poison"]) == (2, True)
    assert (second["neutralised"], second["loaded"], second["stop"]) == ([1, 2], True, None)
    assert kernel.marked == [False] * 3


def test_a_poison_that_stops_it_again_though_looked_past_ends_the_search() -> None:
    kernel = Kernel([(errno.EINVAL, stopped(0, 1), []), (errno.EINVAL, stopped(0, 1), [])])
    assert len(collected(kernel, MOV + POISON + EXIT, accepted=False)["analysis"]) == 1


@pytest.mark.parametrize("most", [1, 2])
def test_the_search_is_bounded(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MAX_ANALYSES", most)
    kernel = Kernel([(errno.EINVAL, stopped(0, number), []) for number in range(1, most + 2)])
    assert len(collected(kernel, MOV + POISON * 4 + EXIT, accepted=False)["analysis"]) == most


def test_a_check_that_is_live_is_flipped_and_one_that_is_dead_is_not() -> None:
    one = I.native(0xB7, 1, 0, 0, 1)
    kernel = Kernel([(0, walked(0, 3), [0, 3]), (0, b"", [0, 1, 3])])
    found = collected(kernel, one + one + MOV + EXIT, guards=((7, 0), (8, 1)))
    (flip,) = found["flips"]
    assert (flip["relo"], flip["insn"], flip["value"], flip["loaded"]) == (7, 0, 0, True)
    assert flip["survived"] == [[0, 2], [3, 4]] and flip["visited"] is None


def test_a_flip_that_is_refused_is_told_by_its_log() -> None:
    kernel = Kernel([(0, walked(0, 3), [0, 3]), (errno.EINVAL, b"", []), (errno.EINVAL, stopped(0, 1), [])])
    (flip,) = collected(kernel, I.native(0xB7, 1, 0, 0, 1) + MOV * 2 + EXIT, guards=((7, 0),))["flips"]
    assert (flip["loaded"], flip["survived"], flip["visited"]) == (False, None, [[0, 2]])


@pytest.mark.parametrize("value", [0, 1])
def test_a_flip_inverts_the_value_and_says_which_it_is_then(value: int) -> None:
    flipped = evidence.flip(MOV + I.native(0xB7, 3, 0, 0, value), 1)
    assert flipped is not None
    code, now = flipped
    assert now == 1 - value
    assert (code[:8], I.read(code, 1, sys.byteorder)) == (MOV, (0xB7, 3, 0, 0, 1 - value))


def test_what_holds_no_check_is_not_flipped() -> None:
    assert evidence.flip(I.native(0xB7, 0, 0, 0, 2), 0) is None
    assert evidence.flip(EXIT, 0) is None


@pytest.mark.parametrize(
    ("kind", "outcome", "expected"),
    [("field_exists", "resolved", True), ("field_exists", "poisoned", False), ("byte_off", "resolved", False)],
)
def test_a_guard_is_an_existence_check_that_has_an_answer(kind: str, outcome: str, expected: bool) -> None:
    assert evidence.is_guard(kind, outcome) is expected


def test_a_log_of_nothing_is_not_read() -> None:
    outcome = Outcome()
    outcome.loaded = True
    outcome.read(b"")
    assert outcome.visited is None
