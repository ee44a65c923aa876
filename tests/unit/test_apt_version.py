"""Debian versions against dpkg itself."""

from __future__ import annotations

import itertools
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.apt.version import compare

# Each is less than or equal to the next, by Debian policy 5.6.12 and the kernel team's habits.
ASCENDING = [
    "5.10.218-1", "5.10.262-1", "6.1~rc1-1", "6.1.9-1", "6.1.170-3", "6.1.176-1~bpo11+1", "6.1.176-1", "6.1.192-2",
    "6.12.95-1~deb12u1", "6.12.95-1", "6.12.117-1", "7.2.12-1~bpo13+1", "7.2.13-1", "7.3~rc7-1~exp1", "7.3-1",
    "1:1.0-1",
]  # fmt: skip

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not installed")


def _dpkg(left: str, right: str) -> int | None:
    """dpkg's answer, None when it finds one of them malformed."""
    results = {}
    for operator in ("lt", "eq"):
        done = subprocess.run(["dpkg", "--compare-versions", left, operator, right], capture_output=True, check=False)
        if done.stderr:
            return None
        results[operator] = done.returncode == 0
    return -1 if results["lt"] else 0 if results["eq"] else 1


@pytest.mark.parametrize(("left", "right"), list(itertools.pairwise(ASCENDING)))
def test_order(left: str, right: str) -> None:
    assert (compare(left, right), compare(right, left), compare(left, left)) == (-1, 1, 0)


@needs_dpkg
@pytest.mark.parametrize(
    ("left", "right"),
    [("1", "1-0"), ("0:1", "1"), ("1~", "1"), ("1~~", "1~"), ("1.0a", "1.0+"), ("1.01", "1.1"), ("1.a", "1.1"),
     ("1-1", "1-1~"), ("1+b1", "1-1"), ("1.", "1.0"), ("10", "9"), ("1a", "1~a")],
)  # fmt: skip
def test_corners_as_dpkg_has_them(left: str, right: str) -> None:
    assert compare(left, right) == _dpkg(left, right)


_versions = st.from_regex(r"\A[0-9][0-9a-c.+~]{0,5}(-[0-9a-c.+~]{1,3})?\Z")


@needs_dpkg
@settings(max_examples=60, deadline=None)
@given(_versions, _versions)
def test_any_two_as_dpkg_has_them(left: str, right: str) -> None:
    expected = _dpkg(left, right)
    if expected is not None:
        assert compare(left, right) == expected
