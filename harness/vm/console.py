"""The guest's console: kept as evidence, searched for the kernel's last words, never parsed for verdicts."""

from __future__ import annotations

import contextlib
import re
import socket
import threading

# What is kept of a console that talks without end: its beginning (boot) and its end (death).
_KEEP_HEAD = 64 << 10
_KEEP_TAIL = 192 << 10
_CHUNK = 1 << 16
_TAIL_LINES = 40
_MOST_LINES = 200

# The kernel's own words for its own death, in the order a reader cares about: kernel/panic.c, arch/*/kernel/traps.c,
# kernel/watchdog.c, kernel/hung_task.c, mm/oom_kill.c.
_OUR_FAULT = "guest code"
_MARKERS = (
    # "Fatal exception" is what `oops=panic` makes of an oops: the oops says what went wrong.
    ("panic", re.compile(r"Kernel panic - not syncing(?!: Fatal exception).*")),
    (
        "oops",
        re.compile(
            r"(?:BUG: (?!soft lockup)|Oops[: ]|Unable to handle kernel|general protection fault|kernel BUG at |"
            r"invalid opcode: ).*"
        ),
    ),
    ("panic", re.compile(r"Kernel panic - not syncing.*")),
    ("soft lockup", re.compile(r"watchdog: BUG: soft lockup.*")),
    ("stall", re.compile(r"rcu: INFO: .*(?:stall|self-detected).*")),
    ("hung task", re.compile(r"INFO: task .* blocked for more than .*")),
    ("out of memory", re.compile(r"(?:Out of memory|oom-kill|Memory cgroup out of memory).*")),
    (_OUR_FAULT, re.compile(r"corematrix: PID 1 failed: .*")),
)
_CONTROLS = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|[^\t\n\x20-\x7e\xa0-\U0010ffff]")


class Console:
    """Drains the console's socket on a thread of its own, so that a chatty guest never blocks and never fills our
    memory.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._head = bytearray()
        self._tail = bytearray()
        self._dropped = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._drain, name="console", daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What was said so far, without terminal escapes; a gap in the middle is marked."""
        with self._lock:
            gap = f"\n[... {self._dropped} bytes not kept ...]\n".encode() if self._dropped else b""
            said = bytes(self._head) + gap + bytes(self._tail)
        return clean(said)

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines, and those before them that begin with what the kernel died of."""
        said = self.text().splitlines()
        begins = (at for at, line in enumerate(said) if any(pattern.search(line) for _, pattern in _MARKERS))
        start = max(next(begins, len(said)), len(said) - _MOST_LINES)
        return "\n".join(said[min(start, max(len(said) - lines, 0)) :])

    def last_words(self) -> str | None:
        """The kernel's own report of its death, as one line (`panic: Kernel panic - not syncing: ...`), or None."""
        return last_words(self.text())

    def blames_us(self) -> bool:
        """Whether our own code in the guest said that it failed, and the kernel had no part in it."""
        return (self.last_words() or "").startswith(_OUR_FAULT)

    def finish(self, timeout: float = 2.0) -> None:
        """Take in what is left once QEMU has ended, and let go of the socket."""
        self._thread.join(timeout)
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout)
        self._end.close()

    def _drain(self) -> None:
        while True:
            try:
                data = self._end.recv(_CHUNK)
            except OSError:
                return
            if not data:
                return
            with self._lock:
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        room = _KEEP_HEAD - len(self._head)
        self._head += data[:room] if room > 0 else b""
        self._tail += data[max(room, 0) :]
        excess = len(self._tail) - _KEEP_TAIL
        if excess > 0:
            del self._tail[:excess]
            self._dropped += excess


def clean(said: bytes) -> str:
    """Console bytes as text: no escapes, no control characters but newline and tab."""
    return _CONTROLS.sub("", said.decode("utf-8", "replace").replace("\r\n", "\n"))


def last_words(text: str) -> str | None:
    """The first marker of `text`, by the table's order, with its name."""
    for name, pattern in _MARKERS:
        match = pattern.search(text)
        if match:
            return f"{name}: {match[0].strip()}"
    return None
