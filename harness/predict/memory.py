"""A frame's stack: what was stored where (check_stack_write(), check_stack_read() in the kernel)."""

from __future__ import annotations

from collections.abc import Iterator

from harness.predict import values as V
from harness.predict.values import NUM, Value, const

Stack = dict[int, tuple[int, Value]]  # offset from the frame pointer -> (bytes, value); what is not there is not known


def slot(stack: Stack, place: int, size: int) -> Value | None:
    """What a stack slot holds: a value spilled there in that size, or zeros."""
    found = stack.get(place)
    if found is not None and found[0] == size:
        return found[1]
    zeros = [(offset, width) for offset, (width, value) in stack.items() if V.known(value) == 0]
    covered = sum(_overlap(offset, width, place, size) for offset, width in zeros)
    return const(0) if covered == size else None


def _overlap(offset: int, width: int, place: int, size: int) -> int:
    return max(0, min(offset + width, place + size) - max(offset, place))


def write(stack: Stack, place: int | None, size: int, value: Value | None) -> None:
    """Store a value (None: something) into a frame; at a place not known, everything may be overwritten."""
    if place is None:
        stack.clear()
        return
    for offset, (width, old) in list(_touched(stack, place, size)):
        del stack[offset]
        if V.known(old) == 0:  # what is left of zeros stays zero
            for start, end in ((offset, place), (place + size, offset + width)):
                if start < end:
                    stack[start] = (end - start, old)
    if value is not None and (size == 8 or value[0] in (NUM, V.OPAQUE)):
        stack[place] = (size, _fitting(value, size))


def _touched(stack: Stack, place: int, size: int) -> Iterator[tuple[int, tuple[int, Value]]]:
    return (
        (offset, slot) for offset, slot in stack.items() if offset < place + size and place < offset + slot[0]
    )


def _fitting(value: Value, size: int) -> Value:
    if size == 8 or value[0] == V.OPAQUE:
        return value
    top = (1 << 8 * size) - 1
    number = V.known(value)
    if number is not None:
        return const(number & top)
    return (NUM, value[1], value[2], 0) if value[2] <= top else (NUM, 0, top, 0)
