"""Whether `--attach` may be: in a guest always, on a machine that is somebody's only when they say so; and the
binaries that guests get for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from harness.backends import MACHINES
from harness.backends.execution import GuestFile, gather
from harness.errors import UsageError
from harness.model.kernel import KernelSpec


def check(kernels: Iterable[KernelSpec], attach: bool, confirmed: bool) -> None:
    """UsageError for a machine on which programs would run unconfirmed."""
    machines = [row.id for row in kernels if row.backend in MACHINES]
    if attach and machines and not confirmed:
        message = f"--attach would run the programs, for a moment, on {', '.join(machines)}: no guest of ours"
        raise UsageError(message, remedy="add --yes-on-this-machine when you mean it, or leave these kernels out")


def files(words: Sequence[str], attach: bool) -> tuple[GuestFile, ...]:
    """What `--file` names. UsageError for a file that cannot be read, or where nothing is attached."""
    if words and not attach:
        message = "--file is for programs that are attached to a binary"
        raise UsageError(message, remedy="add --attach, or leave it out; `exec --file` runs a command with files")
    return gather(words)
