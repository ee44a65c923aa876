"""`select` of the sources of which a lock has nothing to pin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.apt.repository import AptOptions
from harness.model.kernel import KernelSpec
from harness.model.lock import Package
from harness.store import Store


def select(
    spec: KernelSpec,  # noqa: ARG001
    source: Any,  # noqa: ARG001
    store: Store,  # noqa: ARG001
    on_event: Callable[[str], None],  # noqa: ARG001
    options: AptOptions,  # noqa: ARG001
) -> tuple[Package, ...]:
    """Nothing: a hash cannot change, a file or a tree of the user's is the user's, a machine runs what it runs."""
    return ()
