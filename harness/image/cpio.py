"""The newc cpio format, as the kernel unpacks it (Documentation/driver-api/early-userspace/buffer-format.rst).

Reproducible: the same entries in any order of insertion give the same bytes. Times are zero, owners are root, inode
numbers count up.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One member: `mode` holds type and permissions, `data` a file's content or a link's target, `device` (major,
    minor) of a node.
    """

    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(data: bytes, *, executable: bool = False) -> Entry:
    """A regular file."""
    return Entry(mode=stat.S_IFREG | (0o755 if executable else 0o644), data=data)


def directory() -> Entry:
    """A directory; parents of other members are added by `archive`, so only empty ones need naming."""
    return Entry(mode=stat.S_IFDIR | 0o755)


def symlink(target: str) -> Entry:
    """A symbolic link to `target`."""
    return Entry(mode=stat.S_IFLNK | 0o777, data=target.encode())


def character_device(major: int, minor: int) -> Entry:
    """A character device node."""
    return Entry(mode=stat.S_IFCHR | 0o600, device=(major, minor))


def archive(members: Mapping[str, Entry]) -> bytes:
    """The whole archive. `members` maps a path without leading slash to its entry.

    Raises ValueError for a path that is absolute, empty, or climbs with `..`.
    """
    complete = {**{parent: directory() for path in members for parent in _parents(path)}, **members}
    # Sorted by component, so that a directory always comes before what it holds: the kernel creates in order.
    ordered = sorted(complete.items(), key=lambda item: item[0].split("/"))
    chunks = [_member(number, path, entry) for number, (path, entry) in enumerate(ordered, start=1)]
    chunks.append(_member(0, _TRAILER, Entry(mode=0)))
    return b"".join(chunks)


def _parents(path: str) -> Iterable[str]:
    parts = path.split("/")
    if not path or any(part in ("", ".", "..") for part in parts):
        message = f"{path!r} is not a relative path without dots"
        raise ValueError(message)
    return ("/".join(parts[:count]) for count in range(1, len(parts)))


def _member(number: int, path: str, entry: Entry) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    fields = (
        number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0,
    )  # fmt: skip
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
