"""Real guests for tests: kernels of the built-in matrix out of the cache, and guest code with faults built in.

The faulty `judge` is put in place of the real one in a test's own bundle; nothing of it is in what is shipped.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from harness import kernels, payload
from harness.apt.guest import fetch_guest
from harness.boot import GuestPackages
from harness.config import builtin_matrix, load_matrix
from harness.errors import CacheError, FetchError
from harness.model.arch import Architecture
from harness.model.kernel import Kernel
from harness.session import SessionOptions
from harness.store import Store

FAULTY_JUDGE = Path(__file__).with_name("faulty_judge.py")


@functools.cache
def store() -> Store:
    """The user's cache: kernels are large, and fetched once."""
    return Store.default()


@functools.cache
def kernel(identity: str) -> Kernel:
    """A kernel of the built-in matrix; skips the test when it is neither in the cache nor to be had."""
    matrix = load_matrix(builtin_matrix())
    spec = next(spec for spec in matrix.kernels if spec.id == identity)
    try:
        return kernels.provide(spec, store(), matrix.lock, lambda _line: None)
    except (FetchError, CacheError) as error:
        pytest.skip(f"{identity} cannot be had: {error.message}")


@functools.cache
def packages(arch: Architecture) -> GuestPackages:
    """The guest's user space of the built-in matrix."""
    matrix = load_matrix(builtin_matrix())
    try:
        debs = fetch_guest(matrix.guest, arch, store(), matrix.lock, lambda _line: None)
    except (FetchError, CacheError) as error:
        pytest.skip(f"the guest's packages cannot be had: {error.message}")
    return GuestPackages(paths=debs.paths, provenance=tuple(debs.provenance()))


def options(of: Kernel, **changes: Any) -> SessionOptions:
    """Options for a session under emulation, which every machine can do."""
    return SessionOptions(
        **{"store": store(), "packages": packages(of.spec.arch), "accelerator": "tcg", **changes}  # type: ignore[arg-type]
    )


# The guest without its loader: what brings it up and talks to the host.
_FRAME = ("__init__", "__main__", "init", "libc", "port", "quick_json", "server", "wire")


def faulty_sources() -> dict[str, bytes]:
    """The guest's frame with a `judge` that does what a request's `name` says (see faulty_judge.py)."""
    frame = {"__main__.py", *(f"guest/{name}.py" for name in _FRAME)}
    kept = {name: data for name, data in payload.sources().items() if name in frame}
    return {**kept, "guest/judge.py": FAULTY_JUDGE.read_bytes()}
