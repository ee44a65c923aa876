"""Which instructions the verifier kept, reached, or never saw: loads made only to find that out.

It needs nothing but a program as it was loaded: whoever loaded it (our loader, or libbpf) fills in a `Subject`.

- The evidence load differs from the verdict load only in `line_info`: one record for each instruction, its
  column-and-line word holding the instruction's number. Records that come back from BPF_OBJ_GET_INFO_BY_FD belong to
  instructions that are still there (bpf_remove_insns() drops those of removed code; kernel 5.1).
- The log at log_level 2 is the second witness: it is taken in the same load when the program is small, and is the only
  one when
  the program is rejected or the kernel cannot take line_info.
- Analysis loads look past a poisoned instruction that stopped the verifier (neutralise.py).
- Flips invert one existence check each: what changes then is what it protects.
"""

from __future__ import annotations

import os
import sys
from array import array

from . import insn as I
from . import raw_btf, verifier_log
from .btf import BTF_KIND_FUNC
from .neutralise import TooFar, neutralise
from .syscall import LOG_MAX, Bpf, ProgLoad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .bpf_object import BpfObject

_ENOSPC = 28
# Formatting one instruction costs the kernel as much as verifying hundreds: 4 microseconds here, ten times that in
# emulation. Beyond this many processed instructions an accepted program's second witness is not taken.
SECOND_WITNESS_MAX = 500
_POISON = I.native(I.CALL, 0, 0, 0, I.POISON_CORE_RELO)
_GUARDS = ("field_exists", "type_exists", "type_matches", "enumval_exists")
MAX_FLIPS = 64
MAX_ANALYSES = 64


class Subject:
    """A program as its verdict load had it.

    `load` is that load (its fds still open), `funcs` the functions as `(start, insns)` in final order, `is_static` of
    each, `relos` `(index of the relocation, instruction)`, `guards` those of them that are existence checks,
    `accepted` the verdict, `processed` the verifier's processed_insns (None: unknown), `void` functions that return
    nothing (their r0 is not set).
    """

    __slots__ = ("accepted", "funcs", "guards", "is_static", "load", "processed", "relos", "void")

    def __init__(self, load: ProgLoad, funcs: list[tuple[int, int]], accepted: bool) -> None:
        self.load = load
        self.funcs = funcs
        self.is_static = [False] + [True] * (len(funcs) - 1)
        self.void = [False] * len(funcs)
        self.relos: list[tuple[int, int]] = []
        self.guards: list[tuple[int, int]] = []
        self.accepted = accepted
        self.processed: int | None = None


class Collector:
    """Collects evidence on one kernel. `line_info` says whether it takes BTF and really removes dead code (probed)."""

    def __init__(self, bpf: Bpf, line_info: bool) -> None:
        self._bpf = bpf
        self._line_info = line_info
        self._stand_in = 0
        self._numbered: tuple[bytes, bytes] = (b"", b"")

    def close(self) -> None:
        """Give back the stand-in BTF."""
        if self._stand_in:
            os.close(self._stand_in)
            self._stand_in = 0

    def collect(self, subject: Subject, progress: Callable[[str], None]) -> dict[str, Any]:
        """The `evidence` part of a program's facts (docs/facts.md); `progress` is told "evidence", once: a frame costs
        an emulated guest as much as a load."""
        progress("evidence")
        facts: dict[str, Any] = {
            "verdict_log_visited": None,
            "line_info": {"loaded": False, "errno": None, "survived": None, "reason": None},
            "analysis": [],
            "flips": [],
        }
        if not subject.accepted:
            self._rejected(subject, facts)
            return facts
        live = self._accepted(subject, facts)
        if subject.guards and len(subject.relos) > 1:
            self._flips(subject, live, facts)
        return facts

    # -- accepted programs

    def _accepted(self, subject: Subject, facts: dict[str, Any]) -> set[int]:
        """Fill in both witnesses; returns the instructions that are there, by the better one."""
        small = (subject.processed or 0) <= SECOND_WITNESS_MAX
        if not self._line_info:
            facts["line_info"]["reason"] = "this kernel takes no line_info, or does not remove dead code"
            outcome = self._run(without_lines(subject.load), 2)
            seen = outcome.visited if outcome.loaded else None
        else:
            outcome, facts["line_info"] = self._with_records(subject.load, 2 if small else 0)
            seen = outcome.visited
            if outcome.survived is None:
                seen = self._run(without_lines(subject.load), 2).visited
        facts["verdict_log_visited"] = _ranges(seen, subject.load.insns)
        return outcome.survived if outcome.survived is not None else seen or set()

    def _with_records(self, load: ProgLoad, level: int) -> tuple[Outcome, dict[str, Any]]:
        """The evidence load itself; a log that does not fit is dropped, for the records are the better witness."""
        marked = self._marked(load)
        outcome = self._run(marked, level, records=True)
        if outcome.errno == _ENOSPC and level:
            outcome = self._run(marked, 0, records=True)
        survived = _ranges(outcome.survived, load.insns)
        why = (
            None
            if outcome.loaded
            else f"the evidence load was refused: {outcome.reason or os.strerror(outcome.errno or 0)}"
        )
        return outcome, {"loaded": outcome.loaded, "errno": outcome.errno, "survived": survived, "reason": why}

    def _flips(self, subject: Subject, live: set[int], facts: dict[str, Any]) -> None:
        poisoned = _POISON in subject.load.insns
        for relo, at in [guard for guard in subject.guards if guard[1] in live][:MAX_FLIPS]:
            flipped = flip(subject.load.insns, at)
            if flipped is None:
                continue
            code, value = flipped
            load = subject.load.copy()
            load.insns = code
            if self._line_info:
                # An accepted flip is told by its records. A refused one only by its log: taken at once where there is
                # poison to run into, and the log is short.
                log = poisoned and (subject.processed or 0) <= SECOND_WITNESS_MAX
                outcome = self._run(self._marked(load), 2 if log else 0, records=True)
                if not outcome.loaded and not log:
                    outcome = self._run(without_lines(load), 2)
            else:
                outcome = self._run(without_lines(load), 2)
            facts["flips"].append({
                "relo": relo, "insn": at, "value": value, "loaded": outcome.loaded, "errno": outcome.errno,
                "survived": _ranges(outcome.survived, code), "visited": _ranges(outcome.visited, code),
            })  # fmt: skip

    # -- rejected programs

    def _rejected(self, subject: Subject, facts: dict[str, Any]) -> None:
        facts["line_info"]["reason"] = "the program is rejected: no instruction is translated"
        first = self._run(without_lines(subject.load), 2)
        facts["verdict_log_visited"] = _ranges(first.visited, subject.load.insns)
        stop = first.stop
        past: list[int] = []
        while stop is not None and _is_poison(subject.load.insns, stop) and len(past) < MAX_ANALYSES:
            if stop in past:
                return
            past.append(stop)
            step = self._analyse(subject, past)
            facts["analysis"].append(step)
            stop = step["stop"]["insn"] if step["stop"] is not None and step["stop"]["poison"] else None

    def _analyse(self, subject: Subject, past: list[int]) -> dict[str, Any]:
        step: dict[str, Any] = {
            "neutralised": list(past),
            "loaded": False,
            "errno": None,
            "visited": None,
            "stop": None,
        }
        try:
            detour = neutralise(subject, past)
        except TooFar as error:
            step["stop"] = {"insn": past[-1], "poison": False, "message": str(error)}
            return step
        outcome = self._run(detour.load, 2)
        step["loaded"], step["errno"] = outcome.loaded, outcome.errno
        if outcome.visited is not None:
            step["visited"] = _ranges(detour.original(outcome.visited), subject.load.insns)
        if not outcome.loaded:
            at = None if outcome.stop is None else detour.back[outcome.stop]
            poison = at is not None and at >= 0 and _is_poison(subject.load.insns, at)
            step["stop"] = {"insn": at if at is None or at >= 0 else None, "poison": poison, "message": outcome.reason}
        return step

    # -- loads

    def _marked(self, load: ProgLoad) -> ProgLoad:
        marked = load.copy()
        if not marked.btf_fd:
            marked.btf_fd = self._stand_in_btf()
            marked.func_info = b""
        marked.line_info, marked.line_info_size = self._records(load.insns), 16
        return marked

    def _records(self, code: bytes) -> bytes:
        """`records` of the code; a flip has the opcodes, so the records, of the program it was made from."""
        ops = code[:: I.INSN_SIZE]
        if ops != self._numbered[0]:
            self._numbered = (ops, records(code))
        return self._numbered[1]

    def _stand_in_btf(self) -> int:
        """The least BTF there is: line_info needs one even when the object has none, or has one the kernel refuses."""
        if not self._stand_in:
            self._stand_in = self._bpf.btf_load(raw_btf.blob(raw_btf.integer(1), b"\0int\0"))
        return self._stand_in

    def _run(self, load: ProgLoad, level: int, records: bool = False) -> Outcome:
        outcome = Outcome()
        fd = -1
        try:
            fd = self._bpf.prog_load(load, level, LOG_MAX)
            outcome.loaded = True
            if records:
                outcome.survived = survivors(self._bpf, fd, len(load.insns) // I.INSN_SIZE)
        except OSError as error:
            outcome.errno = error.errno
        finally:
            if fd >= 0:
                os.close(fd)
        if level:
            outcome.read(self._bpf.log_buffer().text())
        return outcome


class Outcome:
    """One load: `visited` is None when the log is incomplete, `survived` when there are no records to read."""

    __slots__ = ("errno", "loaded", "reason", "stop", "survived", "visited")

    def __init__(self) -> None:
        self.loaded = False
        self.errno: int | None = None
        self.visited: set[int] | None = None
        self.survived: set[int] | None = None
        self.stop: int | None = None
        self.reason: str | None = None

    def read(self, log: bytes) -> None:
        """Take what a log at level 2 says."""
        if self.errno != _ENOSPC and log:
            visited = verifier_log.visited(log)
            # A walk begins at the first instruction: a log without it shows none, and absence in it says nothing.
            self.visited = visited if 0 in visited or not self.loaded else None
        if not self.loaded:
            self.stop = verifier_log.last_insn(log)
            self.reason = verifier_log.reason(log[-4096:].decode("utf-8", "replace"))


def records(code: bytes) -> bytes:
    """A line_info record for each instruction but second halves of ldimm64: its number + 1 as the line (the upper 22
    bits of line_col), offset 0, the empty string, as file name and text."""
    numbers = array("I", _first_slots(code))
    found = array("I", bytes(16 * len(numbers)))
    found[0::4] = numbers
    found[3::4] = array("I", [(number + 1) << 10 for number in numbers])
    return found.tobytes()


def _first_slots(code: bytes) -> list[int]:
    """Numbers of all instructions; the second slot of an ldimm64 is none."""
    ops = code[:: I.INSN_SIZE]
    found = list(range(len(ops)))
    at = ops.find(I.LDIMM64)
    seconds = set()
    while at >= 0:
        seconds.add(at + 1)
        at = ops.find(I.LDIMM64, at + 2)
    return [number for number in found if number not in seconds] if seconds else found


def survivors(bpf: Bpf, fd: int, count: int) -> set[int]:
    """Original numbers of the instructions a loaded program still has a record for. Raises OSError."""
    return {(col >> 10) - 1 for col in bpf.prog_line_cols(fd, count)}


def removes_dead_code(bpf: Bpf) -> bool:
    """Probe: does this kernel drop the record of an instruction that cannot be reached? (line_info 5.0, removal 5.1)"""
    code = b"".join(I.native(*insn) for insn in ((0xB7,), (0x15, 0, 0, 1, 0), (0xB7, 0, 0, 0, 1), (I.EXIT,)))
    try:
        btf = bpf.btf_load(raw_btf.blob(raw_btf.integer(1), b"\0int\0"))
    except OSError:
        return False
    load = ProgLoad(1, code)
    load.btf_fd, load.line_info = btf, records(code)
    try:
        fd = bpf.prog_load(load)
    except OSError:
        return False
    finally:
        os.close(btf)
    try:
        kept = survivors(bpf, fd, 4)
    except OSError:
        return False
    finally:
        os.close(fd)
    return 0 in kept and 2 not in kept and 3 in kept


_JEQ_K, _JGT_K = 0x15, 0x25


def prunes_constants(bpf: Bpf) -> bool:
    """Probe: does this verifier follow only one side of a comparison of two constants that are not equal?

    Until about 4.16 it did so for equal ones only (check_cond_jmp_op(); 4.15 of Ubuntu has it by backport), and refuses
    this program for the dead read of r5. What is dead in it is harmless for kernels that do not sanitise dead code.
    """
    return _follows_one_side(bpf, _JEQ_K, 0)


def prunes_ranges(bpf: Bpf) -> bool:
    """The same for any comparison that is decided (is_branch_taken(), 4.20 and by backport 4.19.y)."""
    return _follows_one_side(bpf, _JGT_K, 7)


def _follows_one_side(bpf: Bpf, jump: int, than: int) -> bool:
    """Whether a program is accepted that reads an unset register where 1 is equal to, or greater, `than`."""
    code = ((0xB7,), (0xB7, 1, 0, 0, 1), (jump, 1, 0, 1, than), (I.EXIT,), (0xBF, 0, 5), (I.EXIT,))
    try:
        os.close(bpf.prog_load(ProgLoad(1, b"".join(I.native(*insn) for insn in code))))
    except OSError:
        return False
    return True


def without_lines(load: ProgLoad) -> ProgLoad:
    """The same load without line_info: it decides nothing and would only make the log longer."""
    twin = load.copy()
    twin.line_info = b""
    return twin


def flip(code: bytes, at: int) -> tuple[bytes, int] | None:
    """The code with the 0 or 1 at instruction `at` inverted, and the new value; None when it holds neither."""
    op, dst, src, off, imm = I.read(code, at, sys.byteorder)
    if imm not in (0, 1) or (op != I.LDIMM64 and op & 7 not in (I.BPF_ALU, I.BPF_ALU64)):
        return None
    changed = bytearray(code)
    I.write(changed, at, op, dst, src, off, 1 - imm, sys.byteorder)
    return bytes(changed), 1 - imm


def is_guard(kind: str, outcome: str) -> bool:
    """Whether a relocation of this kind and outcome is an existence check with an answer: what a flip can invert."""
    return kind in _GUARDS and outcome == "resolved"


def returns_nothing(obj: BpfObject | None, name: str) -> bool:
    """Whether a function of the object is void by its BTF; False where BTF does not tell."""
    btf = obj.btf if obj is not None else None
    func = btf.find(name, BTF_KIND_FUNC) if btf is not None else None
    return btf is not None and func is not None and btf.type(btf.type(func).type).type == 0


def _is_poison(code: bytes, at: int) -> bool:
    op, _, src, _, imm = I.read(code, at, sys.byteorder)
    return op == I.CALL and src == 0 and imm == I.POISON_CORE_RELO


def _ranges(numbers: set[int] | None, code: bytes) -> list[list[int]] | None:
    """Ranges, with the second half of an ldimm64 where its first half is."""
    if numbers is None:
        return None
    opcodes, whole = code[:: I.INSN_SIZE], set(numbers)
    at = opcodes.find(I.LDIMM64)
    while at >= 0:
        if at in numbers:
            whole.add(at + 1)
        at = opcodes.find(I.LDIMM64, at + 1)
    return verifier_log.ranges(whole)
