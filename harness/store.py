"""The cache: content-addressed, shared by concurrent runs, safe against SIGKILL at any point.

    <root>/CACHEDIR.TAG               backup tools leave it out
    <root>/blobs/ab/<sha256>          files by the hash of what they hold; read-only, never changed
    <root>/trees/<kind>/<key>/...     directories of readable names, hard links to blobs: whole or absent
    <root>/entries/<kind>/<key>.json  small facts by name; replaced atomically
    <root>/locks/                     flock(2) files: the kernel drops a lock with its holder, whatever killed it
    <root>/tmp/<random>/              each writer's own scratch, guarded by a lock, swept once its owner is dead
    <root>/tmp/gone/<random>/         trees on their way out, swept by whoever writes next

Whatever appears under blobs, trees or entries got there by rename(2) or link(2), and a tree leaves by rename(2): a
reader sees all of it or nothing.
Locks only save double work and hold `prune` off; on a file system without them (some NFS mounts) the store stays
correct. A full or read-only disk is a CacheError that names the remedy; reading never needs to write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness import store_locks, store_upkeep
from harness.errors import CacheError
from harness.store_upkeep import Pruned

DEFAULT_CAP_BYTES = 10 << 30
# Use is noted in a file's mtime at most this often: a run that finds all it needs writes next to nothing.
_TOUCH_SECONDS = 3600.0


class Store:
    """One cache directory, for any number of threads. Cheap to make: nothing is touched until it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._scratch: store_locks.Scratch | None = None
        self._in_use: int | None = None

    @classmethod
    def default(cls, env: Mapping[str, str] = os.environ) -> Store:
        """$COREMATRIX_CACHE, else $XDG_CACHE_HOME/corematrix, else ~/.cache/corematrix (XDG base directories)."""
        if env.get("COREMATRIX_CACHE"):
            return cls(Path(env["COREMATRIX_CACHE"]).absolute())
        if env.get("XDG_CACHE_HOME"):
            return cls(Path(env["XDG_CACHE_HOME"]).absolute() / "corematrix")
        try:
            return cls(Path("~/.cache/corematrix").expanduser().absolute())
        except RuntimeError as error:  # no HOME, and no passwd entry either
            message = "no cache directory: HOME is not set"
            raise CacheError(message, remedy="set COREMATRIX_CACHE to a directory") from error

    def close(self) -> None:
        """Let go of scratch space and of the hold on `prune`. The store can be used again afterwards."""
        with self._guard:
            scratch, self._scratch = self._scratch, None
            held, self._in_use = self._in_use, None
        if scratch is not None:
            scratch.close()
        if held is not None:
            os.close(held)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # --- blobs

    def blob(self, sha256: str) -> Path | None:
        """The file that holds what has this hash, or None."""
        self._hold()
        path = self._blob_path(sha256)
        return path if _used(path) else None

    def put_bytes(self, data: bytes) -> str:
        """Store bytes; their SHA-256."""
        digest = hashlib.sha256(data).hexdigest()
        if self.blob(digest) is None:
            with self.scratch() as directory:
                path = directory / "blob"
                with store_locks.writing(path):
                    path.write_bytes(data)
                self._adopt(path, digest)
        return digest

    def put_file(self, path: Path, *, sha256: str | None = None) -> str:
        """Move a file of this store's scratch into the blobs; its SHA-256, computed unless the caller has just done
        so.
        """
        digest = sha256 or digest_of(path)
        self._adopt(path, digest)
        return digest

    def _adopt(self, path: Path, digest: str) -> None:
        target = self._blob_path(digest)
        with store_locks.writing(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            path.chmod(0o444)
            _flush(path)
            path.replace(target)

    def _blob_path(self, sha256: str) -> Path:
        return self.root / "blobs" / sha256[:2] / sha256

    # --- trees

    def tree(self, kind: str, key: str) -> Path | None:
        """The directory stored under this name, or None."""
        self._hold()
        path = self.root / "trees" / kind / key
        return path if _used(path) else None

    def trees(self, kind: str) -> dict[str, Path]:
        """All trees of a kind by key, for people to look at: none of them counts as used."""
        return {path.name: path for path in (self.root / "trees" / kind).glob("*") if path.is_dir()}

    def put_tree(self, kind: str, key: str, files: Mapping[str, str]) -> Path:
        """Make a directory of readable names for blobs (`files`: relative name -> SHA-256). First come, first kept."""
        target = self.root / "trees" / kind / key
        with self.scratch() as directory:
            made = directory / "tree"
            for name, digest in files.items():
                self._link(self._blob_path(digest), made / name)
            _publish(made, target)
        return target

    def put_derived(self, kind: str, key: str, files: Mapping[str, Path], *, mode: int = 0o444) -> Path:
        """The same of files in this store's scratch, which are moved: for what was made from something that is named
        by its content, and is asked for by that name only. Such a file is no blob, and nobody has hashed it. They get
        `mode` before they can be seen.
        """
        target = self.root / "trees" / kind / key
        with self.scratch() as directory:
            made = directory / "tree"
            for name, path in files.items():
                with store_locks.writing(made / name):
                    made.mkdir(exist_ok=True)
                    path.chmod(mode)
                    _flush(path)
                    path.replace(made / name)
            _publish(made, target)
        return target

    def drop_tree(self, kind: str, key: str) -> None:
        """Forget the directory stored under this name, if there is one; who has a file of it open keeps that.
        CacheError.
        """
        target = self.root / "trees" / kind / key
        with store_locks.writing(target):
            store_locks.discard(self.root, target)

    def _link(self, blob: Path, name: Path) -> None:
        with store_locks.writing(name):
            name.parent.mkdir(parents=True, exist_ok=True)
            try:
                _hard_link(blob, name)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
                    raise
                shutil.copyfile(blob, name)  # a file system without hard links

    # --- entries

    def entry(self, kind: str, key: str) -> dict[str, Any] | None:
        """The facts stored under this name, or None (also when the file is damaged: it will be made anew)."""
        self._hold()
        path = self._entry_path(kind, key)
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        _touch(path)
        return value if isinstance(value, dict) else None

    def put_entry(self, kind: str, key: str, value: Mapping[str, Any]) -> None:
        """Store facts under a name, in place of what was there."""
        target = self._entry_path(kind, key)
        with self.scratch() as directory:
            made = directory / "entry"
            with store_locks.writing(target):
                made.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
                target.parent.mkdir(parents=True, exist_ok=True)
                _flush(made)
                made.replace(target)

    def drop_entry(self, kind: str, key: str) -> None:
        """Forget the facts under this name."""
        target = self._entry_path(kind, key)
        with store_locks.writing(target):
            target.unlink(missing_ok=True)

    def _entry_path(self, kind: str, key: str) -> Path:
        return self.root / "entries" / kind / f"{key}.json"

    # --- scratch and locks

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A new empty directory on the cache's disk, removed afterwards (after a SIGKILL: by the next writer)."""
        self._hold()
        with self._guard:
            if self._scratch is None:
                self._scratch = store_locks.Scratch(self.root / "tmp")
            directory = self._scratch.new()
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self, name: str, *, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock `name` among all processes on this cache. It saves double work; it is not what correctness
        rests on.

        `timeout` in seconds (None: as long as it takes), then CacheError. A read-only cache gives no lock and needs
        none.
        """
        path = self.root / "locks" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.lock"
        descriptor = store_locks.open_lock(path)
        if descriptor is None:
            yield
            return
        try:
            store_locks.hold_lock(descriptor, fcntl.LOCK_EX, timeout, f"{self.root}: {name} is locked by another run")
            yield
        finally:
            os.close(descriptor)

    def _hold(self) -> None:
        """While this process uses the cache, nobody prunes it: a shared lock, until `close` or the process's end."""
        with self._guard:
            if self._in_use is not None:
                return
            descriptor = store_locks.open_lock(self.root / "locks" / "prune.lock")
            if descriptor is not None:
                store_locks.hold_lock(descriptor, fcntl.LOCK_SH, None, "")
                self._in_use = descriptor

    # --- upkeep

    def usage(self) -> int:
        """Bytes on disk, hard links counted once."""
        return sum(store_upkeep.sizes_below(self.root).values())

    def trim(self, kind: str, *, cap_bytes: int) -> tuple[str, ...]:
        """Remove trees of one kind, used longest ago first, until those left take at most `cap_bytes`; their keys. For
        what is cheap to make anew: unlike `prune` it does not ask who else uses the cache, so a reader must be ready
        to find a tree gone between looking and opening. CacheError.
        """
        with store_locks.writing(self.root):
            return store_upkeep.trim(self.root, kind, cap_bytes)

    def prune(self, *, cap_bytes: int = DEFAULT_CAP_BYTES) -> Pruned:
        """Remove what was used longest ago until at most `cap_bytes` are left. CacheError while another run uses the
        cache.

        A tree goes whole. Entries stay: they are small, and some must be remembered (the newest Release seen).
        """
        self.close()
        descriptor = store_locks.open_lock(self.root / "locks" / "prune.lock")
        try:
            if descriptor is not None:
                busy = f"{self.root}: in use by another run"
                store_locks.hold_lock(descriptor, fcntl.LOCK_EX, 0.0, busy)
            with store_locks.writing(self.root):
                return store_upkeep.prune(self.root, cap_bytes)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _publish(made: Path, target: Path) -> None:
    """A directory gets its name, unless another has it already."""
    with store_locks.writing(target):
        made.mkdir(exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            made.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise


def _used(path: Path) -> bool:
    """Whether it exists; notes the use for `prune`."""
    try:
        status = path.stat()
    except OSError:
        return False
    _touch(path, status)
    return True


def _touch(path: Path, status: os.stat_result | None = None) -> None:
    with contextlib.suppress(OSError):
        if time.time() - (status or path.stat()).st_mtime > _TOUCH_SECONDS:
            os.utime(path)


def _hard_link(blob: Path, name: Path) -> None:
    """link(2), again when another writer put the same blob in this one's place meanwhile: the file that was found has
    no name left then, and cannot be given one (ENOENT; fs/namei.c, vfs_link).
    """
    while True:
        try:
            os.link(blob, name)
        except FileNotFoundError:
            if not (blob.exists() and name.parent.exists()):
                raise
        else:
            return


def _flush(path: Path) -> None:
    """Data before name: after a power cut a renamed file must not be empty (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
