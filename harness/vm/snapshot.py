"""Saved guests: a guest that has booted and waits, kept in the cache and restored in a fraction of a second.

A saved guest is three files: `memory`, its RAM as a sparse file that every restore maps privately (so parallel guests
share its pages and none can change it), `state`, QEMU's migration stream with the RAM left out (capability
`x-ignore-shared`), and `sha256sums` of the latter. The key names everything the guest depends on: the same key, the
same guest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import CacheError
from harness.store import Store, digest_of
from harness.vm.devices import RESULT_CHARDEV
from harness.vm.qmp import Qmp, QmpError

_KIND = "guests"
# Thirty guests. Each change of a kernel, of QEMU or of our guest's code leaves the one before it behind.
CAP_BYTES = 4 << 30
_PAGE = 4096
_BLOCK = 256 * _PAGE
_ZERO_PAGE = bytes(_PAGE)
_ZERO_BLOCK = bytes(_BLOCK)


@dataclass(frozen=True, kw_only=True)
class SavedGuest:
    """The directory of a saved guest; `bytes` is what it takes on disk."""

    tree: Path

    @property
    def memory(self) -> Path:
        return self.tree / "memory"

    @property
    def state(self) -> Path:
        return self.tree / "state"

    @property
    def sums(self) -> Path:
        return self.tree / "sha256sums"

    @property
    def bytes(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in (self.memory, self.state))


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A saved guest as the cache has it: `kernel` its id in the matrix (None: saved before that was written down),
    `release` what `uname -r` says in it, `bytes` on disk, `used` when it was last restored (seconds since 1970, to the
    hour).
    """

    key: str
    kernel: str | None
    release: str | None
    bytes: int
    used: float


def key(facts: dict[str, Any]) -> str:
    """The name of a guest that depends on `facts` (JSON values) and on nothing else."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def find(store: Store, name: str) -> SavedGuest | None:
    """The saved guest of that key, or None."""
    tree = store.tree(_KIND, name)
    if tree is None:
        return None
    saved = SavedGuest(tree=tree)
    return saved if all(path.is_file() for path in (saved.memory, saved.state, saved.sums)) else None


def inventory(store: Store) -> tuple[Listed, ...]:
    """All saved guests, used longest ago first."""
    found = []
    for name, tree in store.trees(_KIND).items():
        with contextlib.suppress(OSError):  # another process may be evicting
            size = SavedGuest(tree=tree).bytes
            known = store.entry(_KIND, name) or {}
            kernel, release = known.get("kernel"), known.get("release")
            found.append(Listed(key=name, kernel=kernel, release=release, bytes=size, used=tree.stat().st_mtime))
    return tuple(sorted(found, key=lambda guest: guest.used))


def evict(store: Store, *, cap_bytes: int = CAP_BYTES) -> tuple[str, ...]:
    """Remove those used longest ago until the rest keeps within the cap; their keys. A run that is about to restore one
    boots cold. CacheError.
    """
    gone = store.trim(_KIND, cap_bytes=cap_bytes)
    for name in gone:
        store.drop_entry(_KIND, name)
    return gone


def drop(store: Store, name: str) -> None:
    """Forget a saved guest that does not come up. A cache that cannot be written keeps it; the caller boots cold
    either way.
    """
    with contextlib.suppress(CacheError):
        store.drop_tree(_KIND, name)


def check(saved: SavedGuest, memory_mb: int) -> None:
    """Is it what was saved? The state by its SHA-256; the memory by its size alone: to read all of it would take as
    long as everything else a restored guest does. Raises CacheError, OSError.
    """
    if f"{digest_of(saved.state)}  state\n" != saved.sums.read_text(encoding="utf-8", errors="replace"):
        message = f"{saved.state} is not what was saved"
        raise CacheError(message)
    if saved.memory.stat().st_size != memory_mb << 20:
        message = f"{saved.memory} is not as large as the guest's memory"
        raise CacheError(message)


def obstacle(store: Store, memory_mb: int) -> str | None:
    """Why a guest of so much memory cannot be saved, found out before it is made ready for that; None when nothing is
    in the way.
    """
    try:
        with store.scratch() as scratch:
            free = shutil.disk_usage(scratch).free >> 20
    except CacheError as error:
        return error.message
    return None if free >= memory_mb else f"{store.root}: {free} MB are free, {memory_mb} may be needed"


def save(
    store: Store, name: str, monitor: Qmp, memory: int, deadline: float, *, about: dict[str, str] | None = None
) -> SavedGuest:
    """Save the guest behind `monitor`, whose RAM is the file open as `memory`; the guest stands still afterwards.
    `about` is what `inventory` tells people of it: kernel, release.

    The port to the guest must have been hung up: a guest saved with its host there would not notice the next one
    coming. It must not be stopped first: a guest saved while paused wakes up paused. Saved guests together keep within
    CAP_BYTES: those used longest ago go. Raises QmpError, CacheError, OSError.
    """
    _await_hang_up(monitor, deadline)
    _set_capabilities(monitor, deadline)
    with store.scratch() as scratch:
        made = SavedGuest(tree=scratch)
        with made.state.open("wb") as file:
            monitor.execute("getfd", deadline=deadline, descriptor=file.fileno(), fdname="state")
            monitor.execute("migrate", deadline=deadline, uri="fd:state")
            _await_migrated(monitor, deadline, "saved")
        made.sums.write_text(f"{digest_of(made.state)}  state\n", encoding="utf-8")
        with made.memory.open("wb") as file:
            copy_sparse(memory, file.fileno())
        if find(store, name) is None:
            drop(store, name)  # what an older version left there when it was killed would keep the place
        # QEMU opens a private mapping's file for writing all the same (see `boot._template`).
        files = {path.name: path for path in (made.memory, made.state, made.sums)}
        tree = store.put_derived(_KIND, name, files, mode=0o644)
    with contextlib.suppress(CacheError, FileNotFoundError):  # two at once, or a cache that cannot be written
        store.put_entry(_KIND, name, about or {})
        evict(store)
    return SavedGuest(tree=tree)


def load(monitor: Qmp, state: int, deadline: float) -> None:
    """Tell the QEMU behind `monitor`, which waits for a guest, to take in the one whose state it has open as
    descriptor `state`, and wait until it runs. Raises QmpError.

    Nothing may be said to it before: a UART takes a byte that comes early, and forgets it when its state is loaded.
    """
    _set_capabilities(monitor, deadline)
    monitor.execute("migrate-incoming", deadline=deadline, uri=f"fd:{state}")
    _await_migrated(monitor, deadline, "restored")


def _set_capabilities(monitor: Qmp, deadline: float) -> None:
    """Memory that lies in a file stays out of the stream; what becomes of the migration is told by events."""
    capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
    monitor.execute("migrate-set-capabilities", deadline=deadline, capabilities=capabilities)


def _await_hang_up(monitor: Qmp, deadline: float) -> None:
    """QEMU's main loop sees the closed socket and our question in the same turn, or the next."""
    while True:
        chardevs = monitor.execute("query-chardev", deadline=deadline)
        port = next((chardev for chardev in chardevs if chardev["label"] == RESULT_CHARDEV), {"filename": ""})
        if str(port["filename"]).startswith("disconnected"):
            return
        if time.monotonic() > deadline:
            message = f"QEMU keeps the guest's port open: {port['filename']}"
            raise QmpError(message)


def _await_migrated(monitor: Qmp, deadline: float, what: str) -> None:
    while True:
        status = monitor.await_event("MIGRATION", deadline).get("status")
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            error = monitor.execute("query-migrate", deadline=deadline).get("error-desc", "no reason given")
            message = f"the guest cannot be {what}: {error}"
            raise QmpError(message)


def copy_sparse(source: int, target: int) -> None:
    """Copy an open file into an empty one, leaving holes where it has holes or zeros. Raises OSError."""
    for start, end in _data_ranges(source):
        for offset in range(start, end, _BLOCK):
            _write_pages(target, os.pread(source, min(_BLOCK, end - offset), offset), offset)
    os.ftruncate(target, os.fstat(source).st_size)


def _data_ranges(descriptor: int) -> Iterator[tuple[int, int]]:
    end = 0
    while True:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing but a hole up to the end
            return
        end = os.lseek(descriptor, start, os.SEEK_HOLE)
        yield start, end


def _write_pages(descriptor: int, block: bytes, offset: int) -> None:
    """Write the runs of pages that hold something."""
    if block == _ZERO_BLOCK[: len(block)]:
        return
    start: int | None = None
    for place in range(0, len(block) + _PAGE, _PAGE):
        page = block[place : place + _PAGE]
        empty = page == _ZERO_PAGE[: len(page)]
        if not empty and start is None:
            start = place
        elif empty and start is not None:
            os.pwrite(descriptor, block[start:place], offset + start)
            start = None
