"""Where in this tree a source file lies that BTF names: annotations on a line are shown only under the tree's own path.

BTF has the name the compiler was given, which counts from where it ran (`make -C programs` makes `x.bpf.c` of
programs/x.bpf.c). It is text out of an object: nothing is read, only looked for, and nothing outside the tree is named.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def source_path(root: Path, object_path: str, file: str) -> str:
    """The path below `root` of the file: as it is named, or counted from the object's directory or one above it;
    `file` itself where there is none.
    """
    top = root.resolve()
    for place in _places(top, object_path, file):
        try:
            found = place.resolve()
            if found.is_relative_to(top) and found.is_file():
                return found.relative_to(top).as_posix()
        except (OSError, ValueError, RuntimeError):  # too long, a NUL, a loop of links
            continue
    return file


def _places(top: Path, object_path: str, file: str) -> Iterator[Path]:
    yield top / file
    for directory in (top / object_path).parents:
        if not directory.is_relative_to(top):
            return
        yield directory / file
