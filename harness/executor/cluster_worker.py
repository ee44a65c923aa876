"""What runs on a worker of a cluster: it says what it can do, gets what it lacks by hash, keeps guests between cells.

Functions here are called by name through Dask, in the worker's process, with values that pickle. They know nothing of
Dask: a worker is a process with this package, a cache of its own and QEMU.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from harness import __version__
from harness.boot import GuestPackages
from harness.errors import CorematrixError, InfrastructureError, Interrupted
from harness.executor.judging import Judging, cached_kernels, note_cached
from harness.executor.local import Guest
from harness.executor.plan import available_memory_mb, total_memory_mb
from harness.model.arch import ARCHITECTURES
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec
from harness.model.result import CellResult
from harness.rundir import PACKAGES, RunDirectory, file_name
from harness.store import Store, digest_of
from harness.vm import qemu
from harness.vm.halt import STOPPED

# A guest that nobody asked anything for this long is ended; a run of which nothing was heard for so long is over (its
# submitter has died).
_IDLE_GUEST_SECONDS = 30.0
_IDLE_RUN_SECONDS = 600.0
_WATCH_SECONDS = 2.0
# How long the end of a run waits for its cells to let go of their guests, which are killed. A download under way takes
# longer, and is not waited for.
_END_SECONDS = 5.0
# Runs that were ended and must not begin again: what was sent to begin one may come after what ends it.
_MOST_ENDED = 100
# Sources whose files this worker can get by itself. Others name files of the submitter's machine.
_REACHABLE = frozenset({"apt", "url"})
_SHIPPED = "shipped-kernel"


@dataclass(frozen=True, kw_only=True)
class Context:
    """What all cells of a run share, as sent to every worker once; `judging` is `Judging.portable()`."""

    run: str
    judging: Mapping[str, Any]
    isolate: bool
    retries: int
    slots: int


@dataclass(frozen=True, kw_only=True)
class Wanting:
    """A cell cannot be judged here before something has been sent: `run`, `object` or `kernel`; `why` for people."""

    what: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A result, with the files that belong to it (path below the run's directory, which was `directory` -> text) and
    what guests are made of.
    """

    result: CellResult
    files: Mapping[str, str]
    packages: Sequence[dict[str, Any]]
    directory: str = ""


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """A kernel whose files are named by hash: `files` maps a name below a directory to the SHA-256 of what it holds,
    `debs` are hashes of the guest's packages in order. Paths in `kernel` are relative to that directory.
    """

    kernel: Kernel
    files: Mapping[str, str]
    debs: tuple[str, ...] = ()
    provenance: tuple[dict[str, Any], ...] = ()

    def hashes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.files.values(), *self.debs]))


def announce() -> dict[str, Any]:
    """What this worker can do. Plain values: whoever asks may be of another version."""
    with Store.default() as store:
        return {
            "version": __version__, "code": code(), "python": platform.python_version(), "host": platform.node(),
            "dask": dask_version(),
            "arches": _emulators(), "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK),
            "memory_mb": available_memory_mb() * 3 // 4, "total_mb": total_memory_mb() * 3 // 4,
            "kernels": sorted(cached_kernels(store)),
            "cache": str(store.root),
        }  # fmt: skip


def dask_version() -> str | None:
    """Of Dask distributed, as installed here."""
    with suppress(metadata.PackageNotFoundError):
        return metadata.version("distributed")
    return None


@functools.cache
def code() -> str:
    """A hash of this package's modules: two that differ in it must not judge for each other."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(b"%s\0%s\0" % (path.relative_to(root).as_posix().encode(), path.read_bytes()))
    return digest.hexdigest()


def _emulators() -> dict[str, str]:
    found = {}
    for arch in ARCHITECTURES.values():
        try:
            found[arch.name] = qemu.version(qemu.binary(arch))
        except CorematrixError:
            continue
    return found


def begin(context: Context) -> None:
    """A run begins, or goes on, here; unless it has been ended."""
    with _guard:
        if context.run not in _runs and context.run not in _ended:
            _runs[context.run] = _Run(context)


def lacking(hashes: Sequence[str]) -> tuple[str, ...]:
    """Those of these blobs that are not in this worker's cache; what lies there under a hash and has another is no
    longer there.
    """
    with Store.default() as store:
        return tuple(digest for digest in hashes if _sound(store, digest) is None)


def _sound(store: Store, digest: str) -> Path | None:
    """The blob of this hash, if that is what it has."""
    path = store.blob(digest)
    if path is not None and digest_of(path) != digest:
        path.unlink(missing_ok=True)
        return None
    return path


def receive(run: str, blobs: Sequence[bytes], shipment: Shipment | None = None) -> None:
    """Put what the submitter sent into the cache, each under the hash of what really came; with a shipment, the kernel
    it makes is this run's. InfrastructureError when a blob of it has not come, or the run is over.
    """
    found = _runs.get(run)
    if found is None:
        message = "the run is over here"
        raise InfrastructureError(message)
    for blob in blobs:
        found.store.put_bytes(blob)
    if shipment is not None:
        found.adopt(shipment)


def judge_cell(run: str, cell: Cell) -> Judged | Wanting | None:
    """One cell: its result, or what has to be sent first. None when the run was ended meanwhile."""
    found = _runs.get(run)
    if found is None:
        return Wanting(what="run", why="this worker does not know the run")
    with found.busy() as on:
        return found.judge(cell) if on else None


def end(run: str) -> dict[str, str]:
    """End every guest of the run, whatever it is doing, and forget the run. What their consoles said, by file name."""
    with _guard:
        found = _runs.pop(run, None)
        _ended.append(run)
    return found.end() if found is not None else {}


@dataclass
class _Idle:
    guest: Guest
    since: float = field(default_factory=time.monotonic)


class _Run:
    """A run on this worker: its judging, its kernels, its guests."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.store = Store.default()
        self._held = ExitStack()
        self._held.callback(self.store.close)
        # In the cache, where the next writer removes it if this worker is killed.
        self._directory = self._held.enter_context(self.store.scratch())
        self._judging = Judging(store=self.store, directory=RunDirectory(self._directory), rerun=str, **context.judging)
        self._services = self._judging.services()
        self._kernels: dict[str, Kernel] = {}
        self._idle: list[_Idle] = []
        self._in_use: set[Guest] = set()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._fetching = threading.Lock()
        self._stopped = threading.Event()
        self._working = 0
        self._abandoned = False
        self._heard = time.monotonic()
        threading.Thread(target=self._watch, name=f"idle-{context.run[:8]}", daemon=True).start()

    # --- cells

    @contextmanager
    def busy(self) -> Iterator[bool]:
        """While a cell is being judged its run is not forgotten. False when it has been ended: nothing may be begun."""
        with self._lock:
            on = not self._stopped.is_set()
            self._working += 1
            self._heard = time.monotonic()
        try:
            yield on
        finally:
            with self._lock:
                self._working -= 1
                self._heard = time.monotonic()
                last = self._abandoned and not self._working
                self._changed.notify_all()
            if last:
                self._held.close()

    def judge(self, cell: Cell) -> Judged | Wanting | None:
        path = _sound(self.store, cell.object.sha256)
        if path is None:
            return Wanting(what="object", why=f"{cell.object.name} is not in this worker's cache")
        kernel = self._kernel(cell.kernel)
        if isinstance(kernel, Wanting):
            return kernel
        here = replace(cell, object=replace(cell.object, path=path))
        try:
            result = self._judge(here, kernel)
        except Interrupted:
            return None
        if self._stopped.is_set():
            return None
        packages = self._judging.guest_packages().get(cell.kernel.arch.name, [])
        files = self._collect(str(cell.id))
        return Judged(result=result, files=files, packages=packages, directory=str(self._directory))

    def _judge(self, cell: Cell, kernel: Kernel) -> CellResult:
        guest = self._take(kernel)
        try:
            return guest.judge(cell, retries=self.context.retries, on_progress=lambda _message: None)
        except Interrupted:
            raise
        except Exception as error:  # the cell must come out, with what went wrong
            return self._services.give_up(cell, kernel, error)
        finally:
            self._give_back(guest)

    def _collect(self, identity: str) -> dict[str, str]:
        """Take what was written since the last result; other cells' logs are theirs to take."""
        root = self._directory
        logs = f"logs/{file_name(identity.partition('@')[0])}"
        files = {}
        with self._lock:
            for path in sorted(path for path in root.rglob("*") if path.is_file() and not path.name.endswith(".tmp")):
                name = path.relative_to(root).as_posix()
                if name != PACKAGES and (name.startswith(logs) or not name.startswith("logs/")):
                    files[name] = path.read_text(encoding="utf-8")
                    path.unlink()
        return files

    # --- kernels

    def _kernel(self, spec: KernelSpec) -> Kernel | Wanting:
        with self._fetching:
            known = self._kernels.get(spec.id)
            if known is not None:
                return known
            if spec.source.kind not in _REACHABLE or (spec.btf is not None and spec.btf.kind != "url"):
                return Wanting(what="kernel", why=f"{spec.id}: its files are the submitter's")
            try:
                kernel = self._services.provide(spec, lambda _line: None)
            except CorematrixError as error:
                return Wanting(what="kernel", why=error.message)
            return self._know(spec, kernel)

    def _know(self, spec: KernelSpec, kernel: Kernel) -> Kernel:
        self._kernels[spec.id] = kernel
        note_cached(self.store, kernel)
        return kernel

    def adopt(self, shipment: Shipment) -> None:
        kernel = shipment.kernel
        names = "\n".join(f"{name} {digest}" for name, digest in sorted(shipment.files.items()))
        key = hashlib.sha256(names.encode()).hexdigest()[:32]
        for digest in shipment.hashes():
            if self.store.blob(digest) is None:
                message = f"{kernel.spec.id}: a part of it has not come: SHA-256 {digest}"
                raise InfrastructureError(message, remedy="the submitter's cache is damaged, or changed meanwhile")
        tree = self.store.tree(_SHIPPED, key)
        if tree is not None and any(digest_of(tree / name) != digest for name, digest in shipment.files.items()):
            self.store.drop_tree(_SHIPPED, key)
            tree = None
        tree = tree or self.store.put_tree(_SHIPPED, key, shipment.files)
        here = replace(
            kernel,
            vmlinuz=tree / kernel.vmlinuz if kernel.vmlinuz else None,
            config=tree / kernel.config if kernel.config else None,
            modules=tuple(tree / module for module in kernel.modules),
            btf=tree / kernel.btf if kernel.btf else None,
        )
        paths = tuple(path for digest in shipment.debs if (path := self.store.blob(digest)))
        if paths:
            packages = GuestPackages(paths=paths, provenance=shipment.provenance)
            self._judging.adopt_packages(kernel.spec.arch.name, packages)
        self._know(kernel.spec, here)

    # --- guests

    def _take(self, kernel: Kernel) -> Guest:
        """An idle guest of this kernel, or a new one; then one of another kernel has to go where slots are full."""
        with self._lock:
            if self._stopped.is_set():
                raise Interrupted(STOPPED)
            own = next((idle for idle in self._idle if idle.guest.kernel.spec.id == kernel.spec.id), None)
            if own is not None:
                self._idle.remove(own)
            full = len(self._in_use) + len(self._idle) >= self.context.slots
            leaving = self._idle.pop(0) if own is None and full and self._idle else None
            guest = own.guest if own else Guest(kernel, self._services, lambda _kernel, _line: None)
            self._in_use.add(guest)
        if leaving is not None:
            leaving.guest.close()
        return guest

    def _give_back(self, guest: Guest) -> None:
        if self.context.isolate:
            guest.end()
        with self._lock:
            self._in_use.discard(guest)
            keep = guest.session is not None and not self._stopped.is_set()
            if keep:
                self._idle.append(_Idle(guest))
        if not keep:
            guest.close()

    def _watch(self) -> None:
        while not self._stopped.wait(_WATCH_SECONDS):
            now = time.monotonic()
            with self._lock:
                old = [idle for idle in self._idle if now - idle.since > _IDLE_GUEST_SECONDS]
                self._idle = [idle for idle in self._idle if idle not in old]
                forgotten = not self._working and now - self._heard > _IDLE_RUN_SECONDS
            for idle in old:
                idle.guest.close()
            if forgotten:
                end(self.context.run)

    def end(self) -> dict[str, str]:
        with self._lock:
            self._stopped.set()
            guests = [*self._in_use, *(idle.guest for idle in self._idle)]
            self._idle = []
        for guest in guests:
            guest.close()
        self._judging.halt()  # those that are only coming up
        with self._changed:
            over = self._changed.wait_for(lambda: not self._working, _END_SECONDS)
            self._abandoned = not over  # then the last cell tidies up
        consoles = {name: text for name, text in self._collect("").items() if name.startswith("consoles/")}
        if over:
            self._held.close()
        return consoles


_runs: dict[str, _Run] = {}
_ended: deque[str] = deque(maxlen=_MOST_ENDED)
_guard = threading.Lock()
