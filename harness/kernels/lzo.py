"""LZO1X blocks (Documentation/staging/lzo.rst)."""

from __future__ import annotations


class LzoError(Exception):
    """The block is damaged."""


def lzo1x_decompress(block: bytes, size: int) -> bytes:
    """Decompress one block to its `size` bytes. LzoError when it does not come to that."""
    try:
        out = _decode(block, size)
    except IndexError as error:
        message = "the LZO block ends early"
        raise LzoError(message) from error
    if len(out) != size:
        message = f"the LZO block gives {len(out)} bytes instead of {size}"
        raise LzoError(message)
    return bytes(out)


def _decode(block: bytes, size: int) -> bytearray:
    # The number of literals the last instruction copied (4: four or more) changes what a low opcode means.
    out = bytearray()
    at, state = 0, 0
    if block[0] > 17:
        count = block[0] - 17
        out += block[1 : 1 + count]
        at, state = 1 + count, min(count, 4)
    while len(out) <= size:
        opcode = block[at]
        at += 1
        if opcode < 16 and state == 0:
            count, at = _length(block, at, opcode, 15)
            out += _literals(block, at, count + 3)
            at, state = at + count + 3, 4
            continue
        if opcode < 16:
            distance = (block[at] << 2) + (opcode >> 2) + (2049 if state == 4 else 1)
            length, trailer, at = (3 if state == 4 else 2), opcode, at + 1
        elif opcode < 64:
            base, mask = (2, 7) if opcode < 32 else (2, 31)
            length, at = _length(block, at, opcode & mask, mask)
            length += base
            trailer = block[at]
            distance = (block[at + 1] << 6) + (trailer >> 2)
            at += 2
            if opcode < 32:
                distance += ((opcode & 8) << 11) + 16384
                if distance == 16384:
                    return out
            else:
                distance += 1
        else:
            length = (opcode >> 5) + 1
            distance = (block[at] << 3) + ((opcode >> 2) & 7) + 1
            trailer, at = opcode, at + 1
        _match(out, distance, length)
        state = trailer & 3
        out += _literals(block, at, state)
        at += state
    message = f"the LZO block is longer than its {size} bytes"
    raise LzoError(message)


def _length(block: bytes, at: int, start: int, full: int) -> tuple[int, int]:
    """A length in an opcode, or when its bits are zero in the bytes that follow: each zero byte stands for 255."""
    if start:
        return start, at
    length = full
    while block[at] == 0:
        length += 255
        at += 1
    return length + block[at], at + 1


def _literals(block: bytes, at: int, count: int) -> bytes:
    if at + count > len(block):
        raise IndexError
    return block[at : at + count]


def _match(out: bytearray, distance: int, length: int) -> None:
    start = len(out) - distance
    if start < 0:
        message = f"a match reaches {distance} bytes back, before the start"
        raise LzoError(message)
    pattern = bytes(out[start : start + length])
    out += (pattern * (length // len(pattern) + 1))[:length]
