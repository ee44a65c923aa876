"""How the cache is kept small: what was used longest ago goes first, and nothing that a tree still holds."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from harness.store_locks import discard, sweep


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """What `Store.prune` removed and what is left, in bytes; `removed` holds paths below the root."""

    removed: tuple[str, ...]
    freed: int
    left: int


def sizes_below(root: Path) -> dict[tuple[int, int], int]:
    """Bytes on disk of every inode below `root`."""
    sizes: dict[tuple[int, int], int] = {}
    for directory, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):
                status = os.lstat(Path(directory, name))
                sizes[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sizes


def prune(root: Path, cap_bytes: int) -> Pruned:
    """Oldest use first, trees (with the blobs only they hold) and lone blobs alike. Entries are small and stay."""
    sweep(root / "tmp", mine=root)
    sizes = sizes_below(root)
    before = left = sum(sizes.values())
    blobs = {_inode(path): path for path in root.glob("blobs/??/*")}
    lone = [path for path in blobs.values() if path.stat().st_nlink == 1]
    removed: list[str] = []
    for path in sorted([*root.glob("trees/*/*"), *lone], key=lambda path: path.stat().st_mtime):
        if left <= cap_bytes:
            break
        inodes = [_inode(file) for file in _files(path)]
        discard(root, path) if path.is_dir() else path.unlink()
        for inode in set(inodes):
            blob = blobs.get(inode)
            if blob is not None and blob.exists() and blob.stat().st_nlink == 1:
                blob.unlink()
            if blob is None or not blob.exists():
                left -= sizes.pop(inode, 0)
        removed.append("/".join(path.relative_to(root).parts))
    left = sum(sizes_below(root).values())
    return Pruned(removed=tuple(removed), freed=before - left, left=left)


def trim(root: Path, kind: str, cap_bytes: int) -> tuple[str, ...]:
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
        discard(root, path)
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
