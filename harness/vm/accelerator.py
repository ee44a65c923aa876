"""KVM or TCG. KVM is believed only after a guest has really booted with it, once per boot of the host; a /dev/kvm
that opens, creates machines and then hangs every guest exists (the CI machine of this project has one).
"""

from __future__ import annotations

import os
import platform
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.errors import CacheError, GuestLostError
from harness.model.arch import Architecture
from harness.store import Store

KVM = "kvm"
TCG = "tcg"
# A guest under a KVM that works answers within two seconds; one that hangs burns system time until it is killed.
PROBE_SECONDS = 10.0

# What this process has seen, for caches that cannot be written (and give no locks).
_SEEN: dict[tuple[Path, str], dict[str, object]] = {}
_ALONE = threading.Lock()

_DEVICE = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """`name` is `kvm` or `tcg`; `reason` says why, for people."""

    name: str
    reason: str


def choose(arch: Architecture, qemu_version: str, store: Store, attempt: Callable[[], None]) -> Accelerator:
    """KVM where it has been seen to work since the host started, TCG otherwise.

    `attempt` boots a real guest with KVM and raises GuestLostError when it does not answer within PROBE_SECONDS. It
    is called at most once per host boot and QEMU (and process, where the cache cannot be written); parallel callers
    wait for the first.
    """
    impossible = _impossible(arch)
    if impossible is not None:
        return Accelerator(name=TCG, reason=impossible)
    number = qemu_version.partition(" ")[0]
    key = f"{arch.name}-{number}-{_BOOT_ID.read_text().strip()}"
    seen = store.root, key
    known = store.entry("kvm", key) or _SEEN.get(seen)
    if known is None:
        with _ALONE, store.lock(f"kvm {key}"):
            known = _SEEN[seen] = store.entry("kvm", key) or _SEEN.get(seen) or _tried(attempt)
            with suppress(CacheError):
                store.put_entry("kvm", key, known)
    name = KVM if known.get("works") is True else TCG
    return Accelerator(name=name, reason=str(known.get("reason")))


def _impossible(arch: Architecture) -> str | None:
    """Why KVM need not be tried, or None."""
    if platform.machine() != arch.uname:
        return f"the host is {platform.machine()}, the guest {arch.name}"
    if not _DEVICE.exists():
        return f"there is no {_DEVICE}"
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{_DEVICE} cannot be opened: {error.strerror}"
    return None


def _tried(attempt: Callable[[], None]) -> dict[str, object]:
    try:
        attempt()
    except GuestLostError as lost:
        return {"works": False, "reason": f"a guest was tried with KVM and lost: {lost.message}"}
    return {"works": True, "reason": "a guest has booted with KVM"}
