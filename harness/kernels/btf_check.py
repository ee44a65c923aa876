"""Is this BTF of this kernel? What speaks for it and against it, from what is known before anything boots.

Wrong BTF gives wrong offsets and loads all the same: whatever can be held against the kernel is. What remains is told
by the guest, which counts the functions of the BTF that the kernel's own symbol table does not know (`by_kallsyms`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.errors import UsageError
from harness.guest import btf as guest_btf
from harness.guest.errors import GuestError

_REMEDY = "name the BTF of this kernel, made from its own vmlinux"
# A release in a file's name: 4.19.90-24.4.v2101.ky10.aarch64, 5.10.0-46-cloud-amd64.
_RELEASE = re.compile(r"\d+\.\d+\.\d+\S*")
# Of the functions in right BTF the symbol table knows all; see docs/kernels.md for what was measured on wrong ones.
_MOST_MISSING = 0.005


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`proves` is True where it could not be so by accident, `text` says what was compared."""

    proves: bool
    text: str


def open_btf(data: bytes, name: str, byteorder: str) -> guest_btf.Btf:
    """Raw BTF, opened. UsageError when it cannot be read or is of another byte order than the kernel."""
    try:
        opened = guest_btf.Btf(data, name)
    except GuestError as error:
        raise UsageError(error.message, remedy=_REMEDY) from error
    if opened.byteorder != byteorder:
        message = f"{name}: {opened.byteorder}-endian BTF for a {byteorder}-endian kernel"
        raise UsageError(message, remedy=_REMEDY)
    return opened


def by_name(file_name: str, release: str) -> Finding | None:
    """By the release in a file's name; None where there is none. UsageError when it is another's."""
    stem = file_name.removesuffix(".tar.xz").removesuffix(".deb").removesuffix(".btf")
    if release in stem:
        return Finding(proves=False, text=f"its name says {release}")
    other = _RELEASE.search(stem)
    if other is None:
        return None
    message = f"{file_name}: BTF of {other[0]}, the kernel is {release}"
    raise UsageError(message, remedy=f"{_REMEDY}; rename the file if its name is wrong")


def by_build_id(theirs: str | None, ours: str | None, name: str) -> Finding | None:
    """By the build id of the file it was made from and the kernel's; None where one has none. UsageError."""
    if theirs is None or ours is None:
        return None
    if theirs == ours:
        return Finding(proves=True, text=f"made from the kernel's own build ({ours})")
    message = f"{name}: debug information of build {theirs}, the kernel is build {ours}"
    raise UsageError(message, remedy=_REMEDY)


def by_own_btf(given: guest_btf.Btf, own: guest_btf.Btf) -> Finding:
    """By the layouts of the structures in the kernel's own BTF: every one that both have under a name of one meaning
    must agree. UsageError when they do not.
    """
    ours, theirs = _layouts(own), _layouts(given)
    common = sorted(ours.keys() & theirs.keys())
    differing = [name for name in common if ours[name] != theirs[name]]
    if common and not differing:
        return Finding(proves=True, text=f"{len(common)} structures are laid out as in the kernel's own BTF")
    shown = ", ".join(sorted(differing, key=lambda name: (name != "task_struct", name))[:3])
    message = (
        f"{given.name}: of another kernel: {len(differing)} of {len(common)} structures are laid out otherwise than in "
        f"the kernel's own BTF ({shown or 'none in common'})"
    )
    raise UsageError(message, remedy=_REMEDY)


def by_kallsyms(counts: Mapping[str, int], name: str) -> Finding | None:
    """By what the guest counted (`functions` in the BTF, `missing` among them); None without functions. UsageError."""
    functions, missing = counts["functions"], counts["missing"]
    if not functions:
        return None
    if not missing:
        return Finding(proves=True, text=f"all its {functions} functions are in the kernel's symbol table")
    text = f"{missing} of its {functions} functions are not in the kernel's symbol table"
    if missing <= functions * _MOST_MISSING:
        return Finding(proves=False, text=text)
    message = f"{name}: of another kernel: {text}"
    raise UsageError(message, remedy=_REMEDY)


def _layouts(btf: guest_btf.Btf) -> dict[str, tuple[int, tuple[tuple[str, int], ...]]]:
    """Size and member offsets (bits) of each structure by name, without names that stand for several layouts."""
    found: dict[str, tuple[int, tuple[tuple[str, int], ...]]] = {}
    ambiguous: set[str] = set()
    for name, layout in _structures(btf):
        if found.setdefault(name, layout) != layout:
            ambiguous.add(name)
    return {name: layout for name, layout in found.items() if name not in ambiguous}


def _structures(btf: guest_btf.Btf) -> Iterator[tuple[str, tuple[int, tuple[tuple[str, int], ...]]]]:
    kinds = (guest_btf.BTF_KIND_STRUCT, guest_btf.BTF_KIND_UNION)
    for identity in range(1, btf.count):
        if btf.kind(identity) in kinds:
            kind = btf.type(identity)
            if kind.name:
                members = tuple((name, offset) for name, _type, offset, _size in btf.members(kind))
                yield kind.name, (kind.size, members)
