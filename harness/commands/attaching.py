"""Whether `--attach` may be: in a guest always, on a machine that is somebody's only when they say so."""

from __future__ import annotations

from collections.abc import Iterable

from harness.backends import MACHINES
from harness.errors import UsageError
from harness.model.kernel import KernelSpec


def check(kernels: Iterable[KernelSpec], attach: bool, confirmed: bool) -> None:
    """UsageError for a machine on which programs would run unconfirmed."""
    machines = [row.id for row in kernels if row.backend in MACHINES]
    if attach and machines and not confirmed:
        message = f"--attach would run the programs, for a moment, on {', '.join(machines)}: no guest of ours"
        raise UsageError(message, remedy="add --yes-on-this-machine when you mean it, or leave these kernels out")
