"""A cgroup (v2) of our own, with no process in it: what is attached there sees nothing."""

from __future__ import annotations

import os

from .libc import mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_OWN = "/tmp/corematrix-cgroup2"


def empty_cgroup() -> tuple[int, Callable[[], None]]:
    """A descriptor of a fresh cgroup, and what closes and removes it. Raises OSError where there is no cgroup v2."""
    root = _mounted() or _mount()
    path = "%s/corematrix-%d" % (root, os.getpid())
    os.mkdir(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def remove() -> None:
        os.close(descriptor)
        os.rmdir(path)

    return descriptor, remove


def _mounted() -> str | None:
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        places = [words[1] for words in map(str.split, file) if len(words) > 2 and words[2] == "cgroup2"]
    return places[0] if places else None


def _mount() -> str:
    os.makedirs(_OWN, exist_ok=True)
    mount("cgroup2", _OWN, 0)
    return _OWN
