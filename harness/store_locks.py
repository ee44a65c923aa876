"""Locks of the cache, and each writer's own scratch in it (`harness.store` has the layout).

flock(2): the kernel drops a lock with its holder, whatever killed it, so that a scratch whose lock can be had is that
of a writer that is no more. Where a file system has no locks (some NFS mounts) everything counts as locked.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from harness.errors import CacheError

_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# This directory is a cache made by corematrix.\n"
_NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_GONE = "gone"


class Scratch:
    """This process's directory below tmp/, with a lock that says it is alive."""

    def __init__(self, tmp: Path) -> None:
        with writing(tmp):
            tmp.mkdir(parents=True, exist_ok=True)
            tag = tmp.parent / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_text(_TAG, encoding="utf-8")
            self._directory, self._descriptor = _own_directory(tmp)
        sweep(tmp, mine=self._directory)

    def new(self) -> Path:
        path = self._directory / secrets.token_hex(8)
        with writing(path):
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


def sweep(tmp: Path, mine: Path) -> None:
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


def discard(root: Path, tree: Path) -> None:
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


def open_lock(path: Path) -> int | None:
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


def hold_lock(descriptor: int, operation: int, timeout: float | None, message: str) -> None:
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


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
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
