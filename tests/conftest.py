"""Shared by all tests: what needs a machine that can do more skips by name, and what shares a guest stays together."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Reasons to skip that ci/test has taken away: it installs, builds or fetches what is missing. There such a skip fails.
_TAKEN_AWAY = re.compile(r"not installed|cannot be had|cannot be fetched|cannot install|is not built|needs chromium")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n ... --dist loadgroup`: the tests of a file in tests/vm share its guests, so they must share a worker.

    By path and not by xdist_group marks: pytest-xdist 3.8 writes those where pytest 9.2 does not read them any more.
    """
    if config.getvalue("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadGroupScheduling

    class ByFile(LoadGroupScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return path if path.startswith("tests/vm/") else str(super()._split_scope(nodeid))

    return ByFile(config, log)


def pytest_configure() -> None:
    """What a shell starts with `&` inherits SIGINT ignored, and so would all it starts; Ctrl-C is tested here."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("vm") and shutil.which("qemu-system-x86_64") is None:
        pytest.skip("qemu-system-x86_64 is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where ci/test runs us (COREMATRIX_EVERYTHING), what it provides is no excuse."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and os.environ.get("COREMATRIX_EVERYTHING"):
        path, line, reason = report.longrepr
        if _TAKEN_AWAY.search(reason):
            report.outcome = "failed"
            report.longrepr = (
                f"{path}:{line}: skipped, though ci/test provides that: {reason.removeprefix('Skipped: ')}"
            )
    return report


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's collection of outside material (BTF of old kernels, seeds); not part of a clone."""
    path = Path(os.environ.get("COREMATRIX_SHARED", "/work/shared"))
    if not path.is_dir():
        pytest.skip(f"{path} is not there")
    return path
