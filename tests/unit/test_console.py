"""Console evidence: the kernel's last words, no terminal escapes, bounded memory."""

from __future__ import annotations

import socket

import pytest

from harness.vm import console
from harness.vm.console import Console, clean, last_words

# Lines as kernels print them (6.1 and 4.6, as booted here).
PANIC = "[    3.233080] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00\n"
OOPS = "[   12.1] BUG: unable to handle kernel NULL pointer dereference at           (null)\n"
FATAL = "[   12.2] Kernel panic - not syncing: Fatal exception\n"
LOCKUP = "[   40.1] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [python3.11:1]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (PANIC, "panic: Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00"),
        (OOPS + PANIC, "panic: Kernel panic - not syncing: Attempted to kill init! exitcode=0x00007f00"),
        (OOPS + FATAL, "oops: BUG: unable to handle kernel NULL pointer dereference at           (null)"),
        (FATAL, "panic: Kernel panic - not syncing: Fatal exception"),
        ("[    3.5] invalid opcode: 0000 [#1] PREEMPT SMP NOPTI\n", "oops: invalid opcode: 0000 [#1] PREEMPT SMP"),
        (OOPS, "oops: BUG: unable to handle kernel NULL pointer dereference at           (null)"),
        ("[1.0] general protection fault, maybe for address 0x0: 0000 [#1]\n", "oops: general protection fault, maybe"),
        (LOCKUP, "soft lockup: watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [python3.11:1]"),
        ("[9.0] INFO: task python3:1 blocked for more than 120 seconds.\n", "hung task: INFO: task python3:1 blocked"),
        ("[9.0] Out of memory: Killed process 1\n", "out of memory: Out of memory: Killed process 1"),
        ("[    1.0] reboot: Power down\n", None),
        ("", None),
    ],
)
def test_last_words(text: str, words: str | None) -> None:
    found = last_words(text)
    assert found is None if words is None else found is not None and found.startswith(words)


def test_escapes_and_controls_do_not_get_through() -> None:
    assert clean(b"a\x1b[31mred\x1b[0m \x1b]0;t\x07 b\x00\x9b c\r\nd\xff") == "ared ]0;t b\ufffd c\nd\ufffd"


def drained(*pieces: bytes) -> Console:
    ours, theirs = socket.socketpair()
    kept = Console(ours)
    for piece in pieces:
        theirs.sendall(piece)
    theirs.close()
    kept.finish()
    return kept


def test_it_keeps_beginning_and_end_of_endless_talk() -> None:
    line = b"x" * 99 + b"\n"
    kept = drained(b"the beginning\n", *([line * 1000] * 20), b"the end\n")
    text = kept.text()
    assert text.startswith("the beginning\n")
    assert text.endswith("the end\n")
    assert "bytes not kept" in text
    assert len(text) < console._KEEP_HEAD + console._KEEP_TAIL + 100


def test_the_tail_begins_with_what_the_kernel_died_of() -> None:
    lines = [f"line {number}" for number in range(100)]
    lines[50] = "BUG: kernel NULL pointer dereference, address: 0000000000000000"
    lines[99] = "Kernel panic - not syncing: Fatal exception"
    assert drained("\n".join(lines).encode()).tail(3).splitlines() == lines[50:]
    lines[40:40] = ["line"] * 400
    lines[0] = "Oops: of long ago"
    assert len(drained("\n".join(lines).encode()).tail(3).splitlines()) == 200


def test_the_tail_is_the_last_lines() -> None:
    assert drained(*(b"line %d\n" % number for number in range(100))).tail(3) == "line 97\nline 98\nline 99"


def test_our_own_fault_is_told_from_the_kernels() -> None:
    ours = b"corematrix: PID 1 failed: OSError: no virtio-serial port\n"
    assert drained(ours).blames_us()
    assert not drained(PANIC.encode() + ours).blames_us()
