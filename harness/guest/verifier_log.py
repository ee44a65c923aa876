"""What the verifier's log says: figures, the instructions it went through, where and why it stopped.

Formats differ between kernels; what holds for all of them since 4.4 is the line "N: (xx) text" at the start of a line
for an instruction walked through (the "Live regs" table of 6.16+ lists all instructions, but with leading blanks).
"""

from __future__ import annotations

from .insn import POISON_CORE_RELO

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

# word of the log's last lines -> name of the figure (print_verification_stats(), kernel/bpf/verifier.c)
_FIGURES = {
    "max_states_per_insn": "max_states_per_insn",
    "total_states": "total_states",
    "peak_states": "peak_states",
}
# Lines of print_verification_stats(); "insns processed" is new in 7.x, where each subprogram has its own figures.
_STATISTICS = ("processed ", "insns processed", "verification time", "stack depth")
TAIL = 1200  # the figures are the log's last lines


def figures(log: str) -> dict[str, int | None] | None:
    """Numbers of the verifier's statistics; None when the log has none, and None for a number this kernel does not
    give.

    `stack_depth` is the sum over the subprograms, as veristat prints it. Before 5.2 only processed_insns (and from 4.15
    stack_depth) are there.
    """
    found: dict[str, int | None] = dict.fromkeys(
        (
            "processed_insns",
            "total_states",
            "peak_states",
            "max_states_per_insn",
            "stack_depth",
            "verification_usec",
            "insn_limit",
        )
    )
    words = log[-TAIL:].replace(",", " ").replace("(", " ").replace(")", " ").split()
    for before, word, after in zip(["", *words], words, words[1:]):
        if word == "processed":
            found["processed_insns"] = _number(after)
        elif word == "limit":
            found["insn_limit"] = _number(after)
        elif word == "time" and before == "verification":
            found["verification_usec"] = _number(after)
        elif word == "depth" and before == "stack":
            found["stack_depth"] = sum(_number(part) or 0 for part in after.split("+"))
        elif word in _FIGURES:
            found[_FIGURES[word]] = _number(after)
    return found if found["processed_insns"] is not None else None


def _number(word: str) -> int | None:
    return int(word) if word.isdigit() else None


def visited(log: bytes) -> set[int]:
    """Instructions the log shows as walked through. Absence means something only when the log is complete.

    7.x lists every instruction in tables before it walks (subprog arg tracking, live registers), indented by "%3d":
    from the hundredth on they look like the walk's own lines. A walk begins with a line of registers,
    `0: R1=ctx() R10=fp0`.
    """
    pieces = (b"\n" + log[_walk(log) :]).split(b": (")
    pieces.pop()
    numbers = {piece[piece.rfind(b"\n") :] for piece in pieces}  # a number is a line's beginning, and comes many times
    return {
        int(number) for number in numbers if len(number) < 10 and number[:1] == b"\n" and number[1:].isdigit()
    }


def last_insn(log: bytes) -> int | None:
    """The instruction the verifier looked at last: where it stopped, in a rejected load's log."""
    begin, end = _walk(log), len(log)
    while end > begin:
        start = log.rfind(b"\n", 0, end) + 1
        line = log[start:end]
        at = line.find(b": (")
        if 0 < at < 9 and line[:at].isdigit():
            return int(line[:at])
        end = start - 1
    return None


def _walk(log: bytes) -> int:
    """Where the walk begins (see `visited`): behind 7.x's tables; 0 where no line of registers says so."""
    at = log.find(b": R")
    while at >= 0:
        start = log.rfind(b"\n", max(at - 9, 0), at) + 1
        if (start or at < 9) and log[start:at].isdigit():
            return start
        at = log.find(b": R", at + 1)
    return 0


def reason(log: str) -> str | None:
    """The verifier's own words for a rejection: the last line that is neither an instruction, a state, nor a figure."""
    for line in reversed(log.rstrip("\n").split("\n")):
        text = line.strip()
        if not text or text.startswith(_STATISTICS):
            continue
        head, colon, rest = text.partition(":")
        if colon and head.isdigit() and rest.startswith((" (", " R", " frame", " safe")):
            return None
        return text
    return None


def is_poison_message(text: str | None) -> bool:
    """Whether the reason is the call libbpf puts in place of what could not be relocated ("invalid func
    unknown#195896080", on 4.14 and older "invalid func 195896080")."""
    return text is not None and str(POISON_CORE_RELO) in text


def ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Half-open ranges that cover exactly these numbers, rising."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1][1] = number + 1
        else:
            found.append([number, number + 1])
    return found
