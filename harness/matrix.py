"""Kernels x objects x settings x loaders -> cells, and choosing among them. Pure: nothing here touches a file or a
guest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from itertools import product

from harness.errors import NothingJudgedError, UsageError
from harness.model.arch import ARCHITECTURES
from harness.model.bpf_object import ObjectFile
from harness.model.cell import Cell
from harness.model.expectation import NONE, Expectations
from harness.model.kernel import KernelSpec


@dataclass(frozen=True, kw_only=True)
class KernelSelector:
    """`-k GLOB` (any of them), `--tag`, `--arch`; an empty field selects everything."""

    globs: tuple[str, ...] = ()
    tag: str | None = None
    arch: str | None = None

    def __call__(self, kernel: KernelSpec) -> bool:
        return (
            (not self.globs or any(fnmatchcase(kernel.id, glob) for glob in self.globs))
            and (self.tag is None or self.tag in kernel.tags)
            and (self.arch is None or kernel.arch.name == self.arch)
        )


def select_kernels(kernels: Sequence[KernelSpec], selector: KernelSelector) -> tuple[KernelSpec, ...]:
    """The chosen rows in the matrix's order. A glob that matches no row is an error: it is nearly always a typing slip.

    NothingJudgedError when a selection as a whole is empty, naming what there is to choose from.
    """
    for glob in selector.globs:
        check_glob(glob)
        if not any(fnmatchcase(kernel.id, glob) for kernel in kernels):
            message = f"no kernel of the matrix matches {glob!r}"
            ids = [kernel.id for kernel in kernels]
            raise NothingJudgedError(
                message, remedy=_hint(glob, ids, f"`corematrix kernels list` shows all {len(ids)}")
            )
    chosen = tuple(kernel for kernel in kernels if selector(kernel))
    if not chosen:
        asked = {"matches": ", ".join(selector.globs), "has tag": selector.tag, "is of architecture": selector.arch}
        tags = sorted({tag for kernel in kernels for tag in kernel.tags})
        arches = dict.fromkeys(kernel.arch.name for kernel in kernels)
        message = "no kernel of the matrix " + " and ".join(f"{what} {word!r}" for what, word in asked.items() if word)
        remedy = f"tags in use: {', '.join(tags) or 'none'}; architectures: {', '.join(arches)}"
        raise NothingJudgedError(message, remedy=remedy)
    return chosen


def expand(
    kernels: Sequence[KernelSpec],
    objects: Sequence[ObjectFile],
    expectations: Mapping[str, Expectations],
    *,
    loaders: Sequence[str] = ("python",),
    exclude: Sequence[str] = (),
) -> tuple[Cell, ...]:
    """Every cell, kernel by kernel, in the order given; cells whose identity matches an `exclude` glob are left out.

    Objects of one name and several architectures are one row: each kernel takes the file of its architecture.
    `expectations` is by object name, for their `arches` and `settings`; a name it lacks has neither.
    """
    rows = group_by_name(objects)
    cells = (
        _cell(kernel, rows[name], expectations.get(name, NONE), settings, loader)
        for kernel in kernels
        for name in rows
        for settings, loader in product(expectations.get(name, NONE).settings, loaders)
    )
    return tuple(cell for cell in cells if not any(fnmatchcase(str(cell.id), escape(glob)) for glob in exclude))


def only(cells: Sequence[Cell], patterns: Sequence[str]) -> tuple[Cell, ...]:
    """The cells that `--only` names, by exact identity or glob on it. NothingJudgedError for a pattern without a
    match.
    """
    for pattern in patterns:
        if not any(_names(pattern, cell) for cell in cells):
            message = f"no cell is named {pattern!r}"
            names = [str(cell.id) for cell in cells]
            example = (
                f"a cell is KERNEL/OBJECT@LOADER, as {names[0]} (one of {len(names)} here)" if names else "no cell"
            )
            raise NothingJudgedError(message, remedy=_hint(pattern, names, example))
    return tuple(cell for cell in cells if not patterns or any(_names(pattern, cell) for pattern in patterns))


def group_by_name(objects: Iterable[ObjectFile]) -> dict[str, list[ObjectFile]]:
    """Objects by name, in order. UsageError when two files would be the same cell on some kernel."""
    rows: dict[str, list[ObjectFile]] = {}
    for candidate in objects:
        row = rows.setdefault(candidate.name, [])
        for other in row:
            if any(candidate.fits(arch) and other.fits(arch) for arch in ARCHITECTURES.values()):
                message = f"two objects are named {candidate.name!r}: {other.path} and {candidate.path}"
                raise UsageError(message, remedy="rename one, or give their common parent directory")
        row.append(candidate)
    return rows


def check_glob(glob: str) -> None:
    """UsageError when `glob` cannot mean what its writer thinks: empty, or a bracket that is never closed."""
    if not glob or "\n" in glob:
        message = f"{glob!r} is not a glob: it can match nothing"
        raise UsageError(message)
    rest = glob
    while "[" in rest:
        _, _, rest = rest.partition("[")
        # fnmatch takes a `]` right after `[` or `[!` as a member of the set, as glob(7) says.
        body = rest.removeprefix("!")
        close = body.find("]", 1)
        if close < 0:
            message = f"bad glob {glob!r}: '[' without ']'"
            raise UsageError(message, remedy="write [[] for a literal bracket")
        rest = body[close + 1 :]


def escape(pattern: str) -> str:
    """A cell pattern as fnmatch wants it: identities hold brackets around settings, so here `[` and `]` mean
    themselves.
    """
    return pattern.replace("[", "[[]")


def _names(pattern: str, cell: Cell) -> bool:
    return fnmatchcase(str(cell.id), escape(pattern))


def _cell(
    kernel: KernelSpec,
    files: Sequence[ObjectFile],
    expectations: Expectations,
    settings: tuple[tuple[str, str], ...],
    loader: str,
) -> Cell:
    fitting = next((file for file in files if file.fits(kernel.arch)), None)
    reason = None
    if expectations.arches and kernel.arch.name not in expectations.arches:
        reason = expectations.reason or f"meant for {', '.join(expectations.arches)} only"
    elif fitting is None:
        built = ", ".join(sorted(file.arch or f"{file.byteorder}-endian kernels" for file in files))
        reason = f"compiled for {built} only, not for {kernel.arch.name}"
    chosen = fitting or files[0]
    return Cell(kernel=kernel, object=chosen, settings=tuple(sorted(settings)), loader=loader, not_applicable=reason)


def _hint(wanted: str, names: Sequence[str], otherwise: str) -> str:
    near = get_close_matches(wanted, names, n=3, cutoff=0.4)
    return f"nearest: {', '.join(near)}" if near else otherwise
