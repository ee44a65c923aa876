"""What a worker lacks for a cell is sent from the submitter's cache: the run, the object, or a kernel with the packages
of its guests. A worker names what it has not by SHA-256 and takes what comes under the hash of what came.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path

from harness.boot import GuestPackages
from harness.errors import CorematrixError, InfrastructureError
from harness.executor import cluster_worker
from harness.executor.cluster_client import Connection, failure
from harness.executor.cluster_worker import Context, Shipment, Wanting
from harness.executor.judging import Judging, bytes_of
from harness.model.cell import Cell
from harness.model.kernel import Kernel
from harness.store import digest_of

# What one message to a worker may hold.
_BATCH_BYTES = 64 << 20


class Supplier:
    """Sends things to workers, each once; for any thread. `context` gives what a worker has to know of the run."""

    def __init__(self, dask: Connection, judging: Judging, run: str, context: Callable[[str], Context]) -> None:
        self._dask = dask
        self._judging = judging
        self._run = run
        self._context = context
        self._sent: set[tuple[str, str, str]] = set()
        self._guard = threading.Lock()
        self._turns: dict[tuple[str, str, str], threading.Lock] = defaultdict(threading.Lock)

    def has_sent(self, worker: str, cell: Cell, wanting: Wanting) -> bool:
        """Whether the worker wants what it was given already."""
        return _what(worker, cell, wanting) in self._sent

    def forget(self, worker: str) -> None:
        """The worker is gone; another may come by that name, and have nothing."""
        with self._guard:
            self._sent = {what for what in self._sent if what[0] != worker}

    def send(self, worker: str, cell: Cell, wanting: Wanting) -> CorematrixError | None:
        """Send what is wanted. None when the worker has it now, else why it has not."""
        what = _what(worker, cell, wanting)
        with self._turns[what]:  # several cells of a kernel want it at once
            try:
                error = _SENDERS[wanting.what](self, worker, cell)
            except CorematrixError as own:
                error = own
            except Exception as other:
                error = InfrastructureError(f"worker {worker}: {type(other).__name__}: {other}")
        if error is None and wanting.what != "run":
            with self._guard:
                self._sent.add(what)
        return error

    def _send_run(self, worker: str, _cell: Cell) -> CorematrixError | None:
        return failure(worker, self._dask.ask(cluster_worker.begin, self._context(worker), worker=worker))

    def _send_object(self, worker: str, cell: Cell) -> CorematrixError | None:
        return self._receive(worker, [bytes_of(cell.object)])

    def _send_kernel(self, worker: str, cell: Cell) -> CorematrixError | None:
        """The kernel from our own cache (or wherever we get it), as far as the worker has not its files already."""
        kernel, packages = self._judging.provide(cell.kernel, lambda _line: None)
        shipment, places = shipment_of(kernel, packages)
        missing = self._dask.ask(cluster_worker.lacking, shipment.hashes(), worker=worker)
        if isinstance(missing, BaseException):
            return failure(worker, missing)
        for batch in _batches([places[digest] for digest in missing]):
            error = self._receive(worker, [path.read_bytes() for path in batch])
            if error is not None:
                return error
        return self._receive(worker, [], shipment)

    def _receive(self, worker: str, blobs: list[bytes], shipment: Shipment | None = None) -> CorematrixError | None:
        return failure(worker, self._dask.ask(cluster_worker.receive, self._run, blobs, shipment, worker=worker))


_SENDERS: dict[str, Callable[[Supplier, str, Cell], CorematrixError | None]] = {
    "run": Supplier._send_run,
    "object": Supplier._send_object,
    "kernel": Supplier._send_kernel,
}


def _what(worker: str, cell: Cell, wanting: Wanting) -> tuple[str, str, str]:
    names = {"object": cell.object.sha256, "kernel": cell.kernel.id}
    return worker, wanting.what, names.get(wanting.what, "")


def shipment_of(kernel: Kernel, packages: GuestPackages | None) -> tuple[Shipment, dict[str, Path]]:
    """A kernel as it travels, and where its parts lie here, by hash. InfrastructureError when one of them is not what
    it was when it was stored.
    """
    parts = {"vmlinuz": kernel.vmlinuz, "config": kernel.config, "vmlinux.btf": kernel.btf}
    parts |= {f"modules/{path.name}": path for path in kernel.modules}
    present = {name: path for name, path in parts.items() if path is not None}
    files = {name: digest_of(path) for name, path in present.items()}
    debs = {digest_of(path): path for path in (packages.paths if packages else ())}
    known = {"vmlinuz": kernel.vmlinuz_sha256, "config": kernel.config_sha256, "vmlinux.btf": kernel.btf_sha256}
    for name, digest in known.items():
        if digest and name in files and files[name] != digest:
            raise _damaged(kernel, present[name], digest)
    sums = {str(package["sha256"]) for package in (packages.provenance if packages else ()) if "sha256" in package}
    for digest, path in debs.items():
        if sums and digest not in sums:
            raise _damaged(kernel, path, path.name)
    shipped = replace(
        kernel,
        vmlinuz=Path("vmlinuz") if kernel.vmlinuz else None,
        config=Path("config") if kernel.config else None,
        modules=tuple(Path("modules", path.name) for path in kernel.modules),
        btf=Path("vmlinux.btf") if kernel.btf else None,
    )
    shipment = Shipment(
        kernel=shipped, files=files, debs=tuple(debs), provenance=packages.provenance if packages else ()
    )
    return shipment, {**{files[name]: path for name, path in present.items()}, **debs}


def _damaged(kernel: Kernel, path: Path, digest: str) -> InfrastructureError:
    message = (
        f"{kernel.spec.id}: {path}: the cache is damaged: this is not the file of SHA-256 {digest} that was stored"
    )
    return InfrastructureError(message, remedy="remove the cache's directory, or name another in COREMATRIX_CACHE")


def _batches(paths: Iterable[Path]) -> Generator[list[Path], None, None]:
    batch: list[Path] = []
    size = 0
    for path in paths:
        length = path.stat().st_size
        if batch and size + length > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(path)
        size += length
    if batch:
        yield batch
