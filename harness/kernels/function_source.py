"""Which config switches a kernel function is compiled under: the Makefiles from its file's directory upwards.

kbuild's lists only (`obj-$(CONFIG_X) += file.o dir/`, `composite-y := file.o`); an #ifdef around the function itself
is not looked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from harness.kernels.struct_source import Condition

_DIRECTORIES = ("net", "kernel", "fs", "mm", "block", "security", "lib", "drivers/base")
_LIST = re.compile(r"^\s*([\w-]+?)-(y|objs|m|\$\((CONFIG_\w+)\))\s*[:+]?=(.*)$")


def conditions(tree: Path, function: str) -> tuple[Condition, ...]:
    """The switches on the way from a function's file to the top of the tree, the nearest first; none when it is not
    found, or always compiled.
    """
    file = _file_of(tree, function)
    return tuple(_upwards(tree, file)) if file is not None else ()


def _file_of(tree: Path, function: str) -> Path | None:
    """The file that defines it."""
    name = function.encode()
    begins = re.compile(rb"^(?:[A-Za-z_][\w \t*]*[ \t*])?" + re.escape(name) + rb"\([^;{}]*\)\s*\{", re.MULTILINE)
    for top in _DIRECTORIES:
        for directory, names, files in os.walk(tree / top):
            names.sort()
            for path in (Path(directory, file) for file in sorted(files) if file.endswith(".c")):
                data = path.read_bytes()
                if name in data and begins.search(data):
                    return path
    return None


def _upwards(tree: Path, file: Path) -> Iterator[Condition]:
    target, directory = f"{file.stem}.o", file.parent
    while directory != tree:
        makefile = next((path for path in (directory / "Kbuild", directory / "Makefile") if path.is_file()), None)
        if makefile is not None:
            yield from _listed(makefile, target, str(makefile.relative_to(tree)))
        target, directory = f"{directory.name}/", directory.parent
    if (tree / "Kbuild").is_file():
        yield from _listed(tree / "Kbuild", target, "Kbuild")


def _listed(makefile: Path, target: str, name: str, depth: int = 3) -> Iterator[Condition]:
    """The switch of the list that holds `target`, and of the composite that list makes."""
    for number, line in _lines(makefile):
        match = _LIST.match(line)
        if match is None or target not in match[4].split():
            continue
        if match[3]:
            yield Condition(option=match[3], file=name, line=number)
        if match[1] != "obj" and depth:
            yield from _listed(makefile, f"{match[1]}.o", name, depth - 1)


def _lines(makefile: Path) -> Iterator[tuple[int, str]]:
    """Lines without comments, those that go on put together, with the number of the first."""
    whole, first = "", 0
    for number, line in enumerate(makefile.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        first = first or number
        whole += line.partition("#")[0].removesuffix("\\") + " "
        if not line.endswith("\\"):
            yield first, whole.rstrip()
            whole, first = "", 0
