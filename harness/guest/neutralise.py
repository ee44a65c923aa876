"""Looking past poison: a program in which poisoned instructions lead to an exit instead of to a rejection.

A poisoned instruction at p becomes a jump to a block at the end of its function:

    r0 = RET ; if r0 == RET goto +1 ; goto p+1 ; exit

so that the verifier ends the path there, while p+1 stays reachable in the control flow graph (a plain jump would make
it unreachable code, an error of its own). Comparing for equality with the same constant is what verifiers before 4.16
decide, too.

In a static function the path must end in the callers as well: the block returns MAGIC, and each call of the function
is made from a block that leaves when it gets it back. A global function is verified on its own; its callers know
nothing of what it returns.
"""

from __future__ import annotations

import struct
import sys

from . import insn as I
from .prog_types import ATTACH_TYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .evidence import Subject
    from .syscall import ProgLoad

_ORDER = sys.byteorder
_MOV64_K, _JEQ_K, _JA, _JA32 = 0xB7, 0x15, 0x05, 0x06
MAGIC = 0x5AFE_0DD5
# These hooks may return nothing but 1 (check_return_code() in kernel/bpf/verifier.c); all others accept 0.
_RETURN_1 = frozenset(
    ATTACH_TYPE[name]
    for name in (
        "cgroup_udp4_recvmsg", "cgroup_udp6_recvmsg", "cgroup_unix_recvmsg", "cgroup_inet4_getpeername",
        "cgroup_inet6_getpeername", "cgroup_unix_getpeername", "cgroup_inet4_getsockname", "cgroup_inet6_getsockname",
        "cgroup_unix_getsockname",
    )
)  # fmt: skip
_SOCK_ADDR = 18


class TooFar(Exception):
    """A jump that would not fit its instruction."""


class Detour:
    """The changed program: `load` to be loaded, `back` the original number of each instruction (-1: one of ours)."""

    __slots__ = ("back", "load")

    def __init__(self, load: ProgLoad, back: list[int]) -> None:
        self.load = load
        self.back = back

    def original(self, numbers: set[int]) -> set[int]:
        """These instructions in the original's numbers."""
        return {self.back[n] for n in numbers if n < len(self.back) and self.back[n] >= 0}


def neutralise(subject: Subject, poisons: list[int]) -> Detour:
    """The program with each of `poisons` (instruction numbers) led to an exit. Raises TooFar."""
    return _Rewriter(subject, poisons).run()


class _Rewriter:
    def __init__(self, subject: Subject, poisons: list[int]) -> None:
        self._subject = subject
        self._code = bytearray(subject.load.insns)
        self._owner = self._owners()
        self._calls = self._call_sites()
        self._poisons = set(poisons)
        self._escaping = self._escaping_functions()
        self._links: list[tuple[int, int, int]] = []  # (place in the new code, original target, opcode) of calls to set
        load = subject.load
        only_1 = load.prog_type == _SOCK_ADDR and load.expected_attach_type in _RETURN_1
        self._ret = 1 if only_1 else 0

    def _owners(self) -> list[int]:
        owner = []
        for number, (_, count) in enumerate(self._subject.funcs):
            owner += [number] * count
        return owner

    def _function_at(self, target: int) -> int | None:
        for number, (start, _) in enumerate(self._subject.funcs):
            if start == target:
                return number
        return None

    def _call_sites(self) -> dict[int, int]:
        """Instruction -> function it calls."""
        found = {}
        for at in range(len(self._code) // I.INSN_SIZE):
            op, _, src, _, imm = I.read(self._code, at, _ORDER)
            callee = self._function_at(at + imm + 1) if op == I.CALL and src == I.BPF_PSEUDO_CALL else None
            if callee is not None:
                found[at] = callee
        return found

    def _escaping_functions(self) -> set[int]:
        """Static functions out of which a path must leave its callers too."""
        todo = [self._owner[p] for p in self._poisons]
        found: set[int] = set()
        while todo:
            function = todo.pop()
            if function == 0 or not self._subject.is_static[function] or function in found:
                continue
            found.add(function)
            todo += [self._owner[at] for at, callee in self._calls.items() if callee == function]
        return found

    def run(self) -> Detour:
        new = bytearray()
        back: list[int] = []
        moved: dict[int, int] = {}
        for number, (start, count) in enumerate(self._subject.funcs):
            moved[start] = len(back)
            base = len(back) - start
            new += self._code[start * I.INSN_SIZE : (start + count) * I.INSN_SIZE]
            back += range(start, start + count)
            for at in range(start, start + count):
                self._replace(new, back, base, number, at)
        self._relink(new, back, moved)
        load = self._subject.load.copy()
        load.insns = bytes(new)
        load.line_info = b""
        load.func_info = self._func_info(moved)
        return Detour(load, back)

    def _replace(self, new: bytearray, back: list[int], base: int, number: int, at: int) -> None:
        callee = self._calls.get(at)
        op = self._code[at * I.INSN_SIZE]
        if at in self._poisons:
            ret = MAGIC if number in self._escaping else self._ret
            # r0 = ret; if r0 == ret goto exit; (on) ; exit
            self._block(new, back, base, at, [(_MOV64_K, 0, 0, 0, ret), (_JEQ_K, 0, 0, 1, ret), None, (I.EXIT,)])
        elif callee is not None and callee in self._escaping:
            ret = MAGIC if number in self._escaping else self._ret
            call = len(back)
            self._block(
                new, back, base, at,
                [(I.CALL, 0, I.BPF_PSEUDO_CALL), (_JEQ_K, 0, 0, 1, MAGIC), None, (_MOV64_K, 0, 0, 0, ret), (I.EXIT,)],
            )  # fmt: skip
            self._links.append((call, self._subject.funcs[callee][0], I.CALL))
            back[call] = at
        elif op == I.EXIT and number in self._escaping and self._subject.void[number]:
            self._block(new, back, base, at, [(_MOV64_K, 0, 0, 0, 0), (I.EXIT,)])

    def _block(self, new: bytearray, back: list[int], base: int, at: int, insns: list[tuple[int, ...] | None]) -> None:
        """Append a block and jump to it from `at`; None in it stands for the jump back behind `at`."""
        _jump(new, at + base, len(back))
        for insn in insns:
            here = len(back)
            back.append(-1)
            if insn is None:
                new += bytes(I.INSN_SIZE)
                _jump(new, here, at + base + 1)
            else:
                new += I.native(*insn)

    def _relink(self, new: bytearray, back: list[int], moved: dict[int, int]) -> None:
        """Calls and function addresses again, now that functions lie elsewhere."""
        for at, callee in self._calls.items():
            if callee not in self._escaping:
                self._links.append((back.index(at), self._subject.funcs[callee][0], I.CALL))
        for at in range(len(self._code) // I.INSN_SIZE):
            op, _, src, _, imm = I.read(self._code, at, _ORDER)
            if op == I.LDIMM64 and src == I.BPF_PSEUDO_FUNC:
                self._links.append((back.index(at), at + imm + 1, I.LDIMM64))
        for place, target, _ in self._links:
            op, dst, src, off, _ = I.read(new, place, _ORDER)
            I.write(new, place, op, dst, src, off, moved[target] - place - 1, _ORDER)

    def _func_info(self, moved: dict[int, int]) -> bytes:
        load = self._subject.load
        size = load.func_info_size
        found = []
        for start in range(0, len(load.func_info), size):
            record = load.func_info[start : start + size]
            (offset,) = struct.unpack_from("=I", record)
            found.append(struct.pack("=I", moved.get(offset, offset)) + record[4:])
        return b"".join(found)


def _jump(code: bytearray, at: int, target: int) -> None:
    distance = target - at - 1
    if not -32768 <= distance <= 32767:
        raise TooFar(f"instruction {at} is too far from the end of its function to look past it")
    I.write(code, at, _JA, 0, 0, distance, 0, _ORDER)
