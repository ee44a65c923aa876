"""Constants folded into instructions: what is folded reads the same bytes, what may not be folded stays."""

from __future__ import annotations

import pytest

from harness.guest.folding import Site, fold
from harness.guest.insn import CALL, EXIT, LDIMM64, native, read

DATA = bytes(range(1, 17)) + (0xFFFFFFFF00000000).to_bytes(8, "little") + (2**64 - 5).to_bytes(8, "little")
LDX = {1: 0x71, 2: 0x69, 4: 0x61, 8: 0x79}
MOV, JEQ, MOV_X = 0xB7, 0x15, 0xBF
POISONED = [(CALL, 0, 0, 0, 2001000000)] * 2


def _code(*insns: tuple[int, ...]) -> bytearray:
    return bytearray(b"".join(native(*insn) for insn in insns))


def _fold(code: bytearray, offset: int = 0, register: int = 1) -> int:
    return fold(code, [Site(0, DATA, offset)], {0: register})


def _value(code: bytearray, at: int) -> int:
    """What the move at `at` leaves in its register."""
    op, _, _, _, imm = read(code, at)
    return imm & 0xFFFFFFFF if op == 0xB4 else imm & (2**64 - 1)


@pytest.mark.parametrize("size", LDX)
@pytest.mark.parametrize(("base", "off"), [(0, 0), (0, 3), (8, 4), (24, 0)])
def test_a_read_becomes_what_it_would_read(size: int, base: int, off: int) -> None:
    code = _code(*POISONED, (LDX[size], 1, 1, off), (EXIT,))
    wanted = int.from_bytes(DATA[base + off : base + off + size], "little")
    folded = _fold(code, base)
    if wanted >= 1 << 32 and wanted < 2**64 - 2**31:
        assert folded == -1, "no single instruction can say it"
        return
    assert folded == 1
    assert _value(code, 2) == wanted
    assert read(code, 0) == (LDIMM64, 1, 0, 0, 0)


@pytest.mark.parametrize(
    "use",
    [
        [(MOV_X, 6, 1), (EXIT,)],
        [(CALL, 0, 0, 0, 4), (EXIT,)],
        [(0x7B, 10, 1, -8), (EXIT,)],
        [(0x63, 1, 2, 0), (EXIT,)],
        [(0x0F, 1, 2), (EXIT,)],
        [(JEQ, 1, 0, 0, 0), (EXIT,)],
        [(JEQ, 3, 0, 1, 0), (EXIT,), (LDX[4], 2, 1, 0), (EXIT,)],
    ],
    ids=["copied", "passed", "stored", "written through", "computed with", "compared", "read behind a jump"],
)
def test_an_address_used_otherwise_is_left(use: list[tuple[int, ...]]) -> None:
    code = _code(*POISONED, (LDX[4], 2, 1, 0), *use)
    before = bytes(code)
    assert _fold(code) == -1
    assert bytes(code) == before


def test_reads_of_a_register_that_dies_at_a_branch() -> None:
    code = _code(*POISONED, (LDX[4], 2, 1, 0), (JEQ, 2, 0, 1, 0), (MOV, 1), (MOV, 0), (EXIT,))
    assert _fold(code) == 1


def test_a_read_outside_the_data_is_left() -> None:
    code = _code(*POISONED, (LDX[8], 2, 1, 4), (EXIT,))
    assert _fold(code, len(DATA) - 8) == -1
