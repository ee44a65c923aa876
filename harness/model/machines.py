"""Machines that already run the kernel to be asked: this one, or one reached by SSH. Data only, like `model.sources`;
what talks to them lives in `harness.backends`.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from harness.model.arch import ARCHITECTURES, Architecture
from harness.model.kernel import KernelSpec

LOCAL = "local"
MACHINE_VARIANT = "machine"


@dataclass(frozen=True, kw_only=True)
class LocalSource:
    """The kernel this machine runs."""

    kind: ClassVar[str] = "local"


@dataclass(frozen=True, kw_only=True)
class SshTarget:
    """A machine and how to get in. What is None is taken from ~/.ssh/config, then from ssh's own defaults.

    `key` is a private key file (None: the agent's keys and the default files), `known_hosts` a file of host keys
    read besides the user's own, `jump` the machine to go through.
    """

    host: str
    user: str | None = None
    port: int | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    jump: SshTarget | None = None

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"{user}{self.host}{port}"


@dataclass(frozen=True, kw_only=True)
class SshSource:
    """The kernel of a machine reached by SSH. `sudo`: become root with `sudo -n`; `python` is its interpreter."""

    kind: ClassVar[str] = "ssh"
    target: SshTarget
    sudo: bool = False
    python: str = "python3"


def local_architecture() -> Architecture | None:
    """The row of this machine; None when we have none for it."""
    machine = platform.machine()
    return next((row for row in ARCHITECTURES.values() if row.uname == machine), None)


def local_spec(arch: Architecture) -> KernelSpec:
    """The row that `-k local` asks for where the matrix has none of that name."""
    return KernelSpec(id=LOCAL, arch=arch, variant=MACHINE_VARIANT, source=LocalSource(), backend=LOCAL)


def parse_target(text: str) -> SshTarget:
    """[USER@]HOST[:PORT], as ssh -J takes it (of several hops, separated by commas, the last is the nearest)."""
    *before, last = text.split(",")
    user, _, place = last.rpartition("@")
    host, colon, port = place.rpartition(":")
    jump = parse_target(",".join(before)) if before else None
    if not colon or not port.isdigit():
        return SshTarget(host=place, user=user or None, jump=jump)
    return SshTarget(host=host, user=user or None, port=int(port), jump=jump)


def with_this_machine(rows: Sequence[KernelSpec], names: Sequence[str]) -> Sequence[KernelSpec]:
    """The rows without those that are this machine, unless `names` has them in so many words (no glob finds them, and
    no tag); with one more for `-k local` where no row is called that.
    """
    asked = [row for row in rows if row.backend != LOCAL or row.id in names]
    arch = local_architecture()
    if LOCAL not in names or arch is None or any(row.id == LOCAL for row in rows):
        return asked
    return [*asked, local_spec(arch)]
