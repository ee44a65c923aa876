"""A new variant's build directory starts as a copy of another variant's, so that make builds only what differs.

kbuild notes for each object its command line and the switches and files it depends on (Documentation/kbuild, `.cmd`
files and include/config/), and paths in a directory made with `O=` count from it: a copy with its times is a build
under way, in which `olddefconfig` has changed a few switches. How much is saved depends on the switch: one that a
header of everything has (`sched.h`) saves nothing.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from harness import proc
from harness.store import Store

_COPY_SECONDS = 900


def seed(
    out: Path, *, image: str, arch: str, wishes: Mapping[str, str], store: Store, on_event: Callable[[str], None]
) -> None:
    """Fill the new build directory `out` from the variant of the same tree whose configuration is the nearest to
    `wishes` (switch -> its line). Nothing where `out` has been used, or no other variant was built to its end.

    `image` is the file a finished build of `arch` (the directory below arch/) has.
    """
    others = [] if any(out.iterdir()) else list(_finished(out, image, arch))
    if not others:
        return
    nearest = min(others, key=lambda path: (_apart(path, wishes), path.name))
    own_id, other_id = (path.name.rpartition("-")[0] for path in (out, nearest))
    copy = out.with_name(f".{out.name}")
    # Who builds there holds this lock; it never waits for ours, because its directory is not new.
    with store.lock(f"build {other_id}"), suppress(proc.CommandError, OSError):
        shutil.rmtree(copy, ignore_errors=True)
        on_event(f"{own_id}: starting from what was built of {other_id}")
        proc.run(["cp", "-a", "--reflink=auto", nearest, copy], timeout=_COPY_SECONDS)
        copy.rename(out)  # onto the empty directory: whole, or not at all
    shutil.rmtree(copy, ignore_errors=True)


def _finished(out: Path, image: str, arch: str) -> Iterator[Path]:
    """Other variants of the same tree (its name's end) and architecture."""
    end = out.name.rpartition("-")[2]
    for path in out.parent.glob(f"[!.]*-{end}"):
        if path != out and (path / image).is_file() and (path / "arch" / arch).is_dir():
            yield path


def _apart(path: Path, wishes: Mapping[str, str]) -> int:
    """In how many switches what was built there is not what is wished for."""
    try:
        have = set((path / ".config").read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return len(wishes)
    return sum(line not in have for line in wishes.values())
