"""Debian version numbers in order (Debian policy 5.6.12), as `dpkg --compare-versions` has it."""

from __future__ import annotations

import re

_PARTS = re.compile(r"(\D*)(\d*)")


def version_key(version: str) -> tuple[object, ...]:
    """A key that sorts as dpkg does: [epoch:]upstream[-revision]. Any text is accepted, and sorts somewhere."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, _, revision = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return (int(epoch) if epoch.isdecimal() else 0, _part_key(upstream), _part_key(revision))


def compare(left: str, right: str) -> int:
    """-1, 0 or 1, as dpkg orders them."""
    a, b = version_key(left), version_key(right)
    return (a > b) - (a < b)


def _part_key(part: str) -> tuple[tuple[tuple[int, ...], int], ...]:
    """Alternating non-digit and digit stretches, the former by character order, the latter by value."""
    stretches = [(text, digits) for text, digits in _PARTS.findall(part) if text or digits] or [("", "")]
    # The end of a string compares like an empty stretch: after a tilde, before everything else.
    return tuple((_text_key(text), int(digits or 0)) for text, digits in (*stretches, ("", "")))


def _text_key(text: str) -> tuple[int, ...]:
    return (*(_order(character) for character in text), 0)


def _order(character: str) -> int:
    """Tilde before the end, the end (0) before letters, letters before all others."""
    if character == "~":
        return -1
    return ord(character) if character.isalpha() else ord(character) + 256
