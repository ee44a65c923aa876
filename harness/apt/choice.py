"""What was chosen of a repository, kept in the cache while it is not older than an index may be."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from harness.apt.repository import AptOptions
from harness.model.lock import Package, pin, unpin


def entry_of(packages: Iterable[Package]) -> dict[str, Any]:
    """The cache's entry for what has just been chosen."""
    return {"checked": time.time(), "packages": [pin(package) for package in packages]}


def fresh(entry: dict[str, Any] | None, options: AptOptions) -> tuple[Package, ...] | None:
    """What was chosen last time; None when that is too long ago, or the entry is none of ours."""
    try:
        if entry is None or not (options.offline or 0 <= time.time() - entry["checked"] < options.max_age):
            return None
        return tuple(unpin(value) for value in entry["packages"])
    except (KeyError, TypeError, ValueError):
        return None
