"""Shared by all tests: what needs a machine that can do more skips by name, and what shares a guest stays together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("vm"):
            # With `-n ... --dist loadgroup`: the tests of a file share its guests, so they must share a worker.
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("vm") and shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's collection of outside material (BTF of old kernels, seeds); not part of a clone."""
    path = Path(os.environ.get("COREMATRIX_SHARED", "/work/shared"))
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path
