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
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import CacheError

DEFAULT_CAP_BYTES = 10 << 30
_GONE = "gone"
# Use is noted in a file's mtime at most this often: a run that finds all it needs writes next to nothing.
_TOUCH_SECONDS = 3600.0
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This directory is a cache made by corematrix.\n"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `Store.prune` removed and what is left, in bytes; `removed` holds paths below the root."""

    removed: tuple[str, ...]
    freed: int
    left: int


class Store:
    """One cache directory, for any number of threads. Cheap to make: nothing is touched until it is asked for."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._guard = threading.Lock()
        self._scratch: _Scratch | None = None
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
                with _writing(path):
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
        with _writing(target):
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
                with _writing(made / name):
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
        with _writing(target):
            _discard(self.root, target)

    def _link(self, blob: Path, name: Path) -> None:
        with _writing(name):
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
            with _writing(target):
                made.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")
                target.parent.mkdir(parents=True, exist_ok=True)
                _flush(made)
                made.replace(target)

    def drop_entry(self, kind: str, key: str) -> None:
        """Forget the facts under this name."""
        target = self._entry_path(kind, key)
        with _writing(target):
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
                self._scratch = _Scratch(self.root / "tmp")
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
        descriptor = _open_lock(path)
        if descriptor is None:
            yield
            return
        try:
            _flock(descriptor, fcntl.LOCK_EX, timeout, f"{self.root}: {name} is locked by another run")
            yield
        finally:
            os.close(descriptor)

    def _hold(self) -> None:
        """While this process uses the cache, nobody prunes it: a shared lock, until `close` or the process's end."""
        with self._guard:
            if self._in_use is not None:
                return
            descriptor = _open_lock(self.root / "locks" / "prune.lock")
            if descriptor is not None:
                _flock(descriptor, fcntl.LOCK_SH, None, "")
                self._in_use = descriptor

    # --- upkeep

    def usage(self) -> int:
        """Bytes on disk, hard links counted once."""
        return sum(_sizes(self.root).values())

    def trim(self, kind: str, *, cap_bytes: int) -> tuple[str, ...]:
        """Remove trees of one kind, used longest ago first, until those left take at most `cap_bytes`; their keys. For
        what is cheap to make anew: unlike `prune` it does not ask who else uses the cache, so a reader must be ready
        to find a tree gone between looking and opening. CacheError.
        """
        with _writing(self.root):
            return _trim(self.root, kind, cap_bytes)

    def prune(self, *, cap_bytes: int = DEFAULT_CAP_BYTES) -> Pruned:
        """Remove what was used longest ago until at most `cap_bytes` are left. CacheError while another run uses the
        cache.

        A tree goes whole. Entries stay: they are small, and some must be remembered (the newest Release seen).
        """
        self.close()
        descriptor = _open_lock(self.root / "locks" / "prune.lock")
        try:
            if descriptor is not None:
                busy = f"{self.root}: in use by another run"
                _flock(descriptor, fcntl.LOCK_EX, 0.0, busy)
            with _writing(self.root):
                return _prune(self.root, cap_bytes)
        finally:
            if descriptor is not None:
                os.close(descriptor)


class _Scratch:
    """This process's directory below tmp/, with a lock that says it is alive."""

    def __init__(self, tmp: Path) -> None:
        with _writing(tmp):
            tmp.mkdir(parents=True, exist_ok=True)
            tag = tmp.parent / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text(_TAG, encoding="utf-8")
            self._directory, self._descriptor = _own_directory(tmp)
        _sweep(tmp, mine=self._directory)

    def new(self) -> Path:
        path = self._directory / secrets.token_hex(8)
        with _writing(path):
            path.mkdir(parents=True)
        return path

    def close(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._directory.with_suffix(".lock").unlink()
        os.close(self._descriptor)


def _own_directory(tmp: Path) -> tuple[Path, int]:
    """A new directory and its lock, held. Between the lock's making and its taking another writer's sweep can take it
    for that of a dead one and remove it: then this begins again with another name.
    """
    while True:
        directory = tmp / secrets.token_hex(8)
        lock = directory.with_suffix(".lock")
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            swept = not lock.exists()
        except OSError as error:
            swept = error.errno not in _NO_LOCKS
        if not swept:
            directory.mkdir()
            return directory, descriptor
        os.close(descriptor)


def _sweep(tmp: Path, mine: Path) -> None:
    """Remove the scratch of writers that are no more: whose lock can be had."""
    with contextlib.suppress(OSError):
        for lock in tmp.glob("*.lock"):
            if lock.stem == mine.name:
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)
            except OSError:
                continue  # alive, or no locks here
            finally:
                os.close(descriptor)
        for path in (tmp / _GONE).glob("*"):
            shutil.rmtree(path, ignore_errors=True)


def _discard(root: Path, tree: Path) -> None:
    """Remove a tree: out of sight at once, then bit by bit. Killed in between, half a tree would be taken for whole,
    or keep its place from a whole one for ever. On a disk too full to rename it goes where it is.
    """
    gone = root / "tmp" / _GONE / secrets.token_hex(8)
    try:
        gone.parent.mkdir(parents=True, exist_ok=True)
        tree.rename(gone)
    except FileNotFoundError:
        return  # another was quicker
    except OSError:
        shutil.rmtree(tree)
    else:
        shutil.rmtree(gone, ignore_errors=True)


def _open_lock(path: Path) -> int | None:
    """A descriptor to lock, or None on a read-only cache."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, flags, 0o666)
        return None
    except OSError:
        return None


def _flock(descriptor: int, operation: int, timeout: float | None, message: str) -> None:
    """flock(2), waiting up to `timeout` seconds. A file system without locks counts as locked."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, operation if deadline is None else operation | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if deadline is not None and time.monotonic() >= deadline:
                raise CacheError(message, remedy="wait for it to end") from error
            time.sleep(0.05)  # flock has no timeout of its own
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return
            raise


def _publish(made: Path, target: Path) -> None:
    """A directory gets its name, unless another has it already."""
    with _writing(target):
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


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """OSError -> CacheError with what to do about it."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = (
            "free some space: `corematrix kernels prune`, or name another directory in COREMATRIX_CACHE"
            if full
            else "name a directory that can be written in COREMATRIX_CACHE"
        )
        message = f"{error.filename or path}: the cache cannot be written: {error.strerror}"
        raise CacheError(message, remedy=remedy) from error


def _sizes(root: Path) -> dict[tuple[int, int], int]:
    """Bytes on disk of every inode below `root`."""
    sizes: dict[tuple[int, int], int] = {}
    for directory, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(Path(directory, name))
                sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sizes


def _prune(root: Path, cap_bytes: int) -> Pruned:
    """Oldest use first, trees (with the blobs only they hold) and lone blobs alike. Entries are small and stay."""
    _sweep(root / "tmp", mine=root)
    sizes = _sizes(root)
    before = left = sum(sizes.values())
    blobs = {_inode(path): path for path in root.glob("blobs/??/*")}
    lone = [path for path in blobs.values() if path.stat().st_nlink == 1]
    removed: list[str] = []
    for path in sorted([*root.glob("trees/*/*"), *lone], key=lambda path: path.stat().st_mtime):
        if left <= cap_bytes:
            break
        inodes = [_inode(file) for file in _files(path)]
        _discard(root, path) if path.is_dir() else path.unlink()
        for inode in set(inodes):
            blob = blobs.get(inode)
            if blob is not None and blob.exists() and blob.stat().st_nlink == 1:
                blob.unlink()
            if blob is None or not blob.exists():
                left -= sizes.pop(inode, 0)
        removed.append("/".join(path.relative_to(root).parts))
    left = sum(_sizes(root).values())
    return Pruned(removed=tuple(removed), freed=before - left, left=left)


def _trim(root: Path, kind: str, cap_bytes: int) -> tuple[str, ...]:
    """Oldest use first, with the blobs only they hold. Who has a file of them open keeps it."""
    trees = {path: [(_inode(file), file.stat().st_blocks * 512) for file in _files(path)]
             for path in root.glob(f"trees/{kind}/*")}  # fmt: skip
    left = sum(size for files in trees.values() for _, size in files)
    if left <= cap_bytes:
        return ()
    blobs = {_inode(path): path for path in root.glob("blobs/??/*")}
    removed: list[str] = []
    for path in sorted(trees, key=lambda path: path.stat().st_mtime):
        if left <= cap_bytes:
            break
        _discard(root, path)
        for inode, size in trees[path]:
            blob = blobs.get(inode)
            if blob is not None and blob.stat().st_nlink == 1:
                blob.unlink()
            left -= size
        removed.append(path.name)
    return tuple(removed)


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
