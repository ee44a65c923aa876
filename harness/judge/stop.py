"""Where a refused load's verifier log ends: the instruction, the verifier's own words, the source line it stood at.

The figures below the words (print_verification_stats() of kernel/bpf/verifier.c) are no cause, and neither is a line
of states or of an instruction.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.model.result import Relocation, Source

STATISTICS = ("processed ", "insns processed", "verification time", "stack depth", "peak_states")
_INSN_LINE = re.compile(r"^([0-9]{1,9}): \([0-9a-f]{2}\)", re.MULTILINE)
# verbose_linfo(): "; text", from 6.10 on (commit 4de59102bad2) with the place: "; text @ file.c:31".
_SOURCE_LINE = re.compile(r"^; (?P<text>.*?)(?: @ (?P<file>[^:@]+):(?P<line>[0-9]{1,9}))?$")
_STATE = re.compile(r"^(?:\d+:|from \d+ to \d+|last_idx |regs=|parent |mark_precise|frame\d| R\d| ?func#\d)")


def listed(log: str) -> list[int]:
    """The instructions the log shows, in its order."""
    return [int(number) for number in _INSN_LINE.findall(log)]


def last_words(log: str) -> str | None:
    """What the verifier said last: neither a figure, nor an instruction, a state, or a source line. None: nothing."""
    for line in reversed(log.splitlines()):
        if line.strip() and not line.startswith((*STATISTICS, ";")) and not _STATE.match(line):
            return line.strip()
    return None


# How an oops or a panic begins, and what in it is registers and machine code, no word on the cause.
_DEATH = re.compile(
    r"BUG: |Oops|Unable to handle kernel|general protection fault|kernel BUG at |Kernel panic|invalid opcode"
)
_REGISTERS = re.compile(
    r"^\s*(?!RIP:)(?:Code:|[A-Z]{1,2}[0-9SFIPABCDX]{1,2}:|x[0-9]+ ?:|sp : |pstate: |Modules linked in:|<)"
)


def last_report(console: str, most: int) -> tuple[str, ...]:
    """The kernel's report of its own death out of a console's last lines: what happened, where, and the trace, `most`
    lines of it; without a report the last lines as they are.
    """
    lines = [line.rstrip() for line in console.splitlines() if line.strip()]
    start = next((at for at, line in enumerate(lines) if _DEATH.search(line)), None)
    if start is None:
        return tuple(lines[-most:])
    return tuple(line for line in lines[start:] if not _REGISTERS.match(line))[:most]


def source_at(log: str, insn: int, relocations: Sequence[Relocation]) -> Source | None:
    """The source line the log printed last before `insn` where it gave up there; file and line from a relocation of
    the same text when the kernel prints none.
    """
    lines = log.splitlines()
    ends = [at for at, line in enumerate(lines) if line.startswith(f"{insn}: (")]
    said = next((line for line in reversed(lines[: ends[-1]]) if line.startswith("; ")), None) if ends else None
    match = _SOURCE_LINE.match(said) if said else None
    if match is None:
        return None
    text = match["text"].strip()
    if match["file"]:
        return Source(file=match["file"].rpartition("/")[2], line=int(match["line"]), text=text)
    twin = next((relo.source for relo in relocations if relo.source and relo.source.text == text), None)
    return twin or Source(file="", line=0, text=text)
