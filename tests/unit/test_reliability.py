"""docs/reliability.md promises nothing without a test that is there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)))
# What would give a QEMU guest a way to the host: a network, a directory, a disk.
WAYS_OUT = ("-netdev", "-nic", "virtio-net", "-virtfs", "-fsdev", "virtiofs", "-drive", "-blockdev", "guestfwd")


@functools.cache
def functions(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda word: word)
def test_each_test_it_names_exists(path: str, name: str) -> None:
    assert name.startswith("test_")
    assert name in functions(path)


def test_each_promise_names_a_test() -> None:
    rows = [line for line in PAGE.partition("## Objects")[2].splitlines() if line.startswith("| ")]
    promises = [row for row in rows if not row.startswith("| promise")]
    assert len(promises) > 30
    assert not [row for row in promises if "::test_" not in row.rpartition(" | ")[2]]


def test_no_guest_is_given_a_network_or_a_directory() -> None:
    """`-nodefaults` takes QEMU's own away; nothing of ours adds one."""
    sources = [ROOT / "harness" / "boot.py", *sorted((ROOT / "harness" / "vm").glob("*.py"))]
    texts = {path.name: path.read_text(encoding="utf-8") for path in sources}
    assert any("-nodefaults" in text for text in texts.values())
    assert not [(name, word) for name, text in texts.items() for word in WAYS_OUT if word in text]
