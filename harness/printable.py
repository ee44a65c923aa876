"""Text that may hold anything, made harmless for a screen."""

from __future__ import annotations

import re

# Controls (C0 but newline and tab, DEL, C1), line separators, and what reorders or hides text on screen (bidi, zero
# width, joiners, fillers, variation selectors, tags).
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    "\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\ud800-\udfff\ufffe\uffff"
    "\U000e0000-\U000e0fff]"
)


def _visible(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def lines(text: str) -> str:
    """Printable text of several lines: every control character but newline and tab spelled out as an escape."""
    return _UNSAFE.sub(_visible, text)


def line(text: str) -> str:
    """Printable text of one line: newlines and tabs become spaces."""
    return lines(text.replace("\r\n", " ").replace("\n", " ").replace("\t", " "))
