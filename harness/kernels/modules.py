"""Kernel modules out of a package: which files, in which order.

Debian packages carry no modules.dep (depmod writes it on installation), so dependencies come from each module's own
`.modinfo` (`depends=`, MODULE_INFO), and what is built in from modules.builtin.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.kernels.decompress import DecompressError, decompress
from harness.kernels.vmlinux import elf_section

_PROBE_FUNCTIONS = {
    "virtio_pci": b"virtio_pci_probe",
    "virtio_mmio": b"virtio_mmio_probe",
    "virtio_ccw": b"virtio_ccw_probe",
    "virtio_console": b"virtcons_probe",
}
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


class ModuleError(UsageError):
    """A module's file cannot be read, or modules depend on each other in a circle."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """`order`: module names, dependencies first; `builtin`: those that need no file; `missing`: neither of these."""

    order: tuple[str, ...]
    builtin: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ModuleFiles:
    """Modules on disk: absolute paths in insmod order, uncompressed; `builtin` and `missing` as in `Resolved`."""

    paths: tuple[Path, ...]
    builtin: tuple[str, ...]
    missing: tuple[str, ...]


def module_name(path: str) -> str | None:
    """`.../virtio-rng.ko.xz` -> `virtio_rng`, the name the kernel uses; None when the file is no module."""
    base = posixpath.basename(path)
    for suffix in _SUFFIXES:
        if base.endswith(suffix):
            return base.removesuffix(suffix).replace("-", "_")
    return None


def builtin_names(modules_builtin: bytes) -> frozenset[str]:
    """The module names in a modules.builtin file: one path a line."""
    lines = modules_builtin.decode("utf-8", "replace").splitlines()
    return frozenset(name for line in lines if (name := module_name(line.strip())) is not None)


def builtin_by_btf(btf: bytes) -> frozenset[str]:
    """Which of the modules boot needs are in the kernel itself, by a function of theirs in its BTF: for packages that
    come without modules.builtin."""
    return frozenset(name for name, function in _PROBE_FUNCTIONS.items() if b"\0" + function + b"\0" in btf)


def unpack(data: bytes, name: str) -> bytes:
    """A module's ELF file, decompressed if need be: the guest's kernel may not read compressed ones."""
    try:
        plain = data if data.startswith(b"\x7fELF") else decompress(data)
    except DecompressError as error:
        message = f"{name}: {error}"
        raise ModuleError(message) from error
    if not plain.startswith(b"\x7fELF"):
        message = f"{name}: not a kernel module"
        raise ModuleError(message)
    return plain


def depends(module: bytes, name: str) -> tuple[str, ...]:
    """The names in a module's `depends=`; ModuleError when it has no .modinfo."""
    info = elf_section(module, ".modinfo")
    if info is None:
        message = f"{name}: no .modinfo section"
        raise ModuleError(message)
    for entry in info.split(b"\0"):
        if entry.startswith(b"depends="):
            names = entry.removeprefix(b"depends=").decode("ascii", "replace").split(",")
            return tuple(item.replace("-", "_") for item in names if item)
    return ()


def resolve(names: Iterable[str], builtin: frozenset[str], load: Callable[[str], bytes | None]) -> Resolved:
    """Order modules for insmod. `load` gives a module's ELF file by name, None when the package has none.

    What a module depends on and is neither a file nor built in is `missing`, like what was asked for.
    """
    order: dict[str, None] = {}
    found: dict[str, set[str]] = {"builtin": set(), "missing": set()}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in order or name in found["builtin"] or name in found["missing"]:
            return
        if name in path:
            message = f"modules depend on each other: {' -> '.join((*path, name))}"
            raise ModuleError(message)
        module = load(name)
        if module is None:
            found["builtin" if name in builtin else "missing"].add(name)
            return
        for needed in depends(module, name):
            visit(needed, (*path, name))
        order[name] = None

    for name in names:
        visit(name.replace("-", "_"), ())
    return Resolved(
        order=tuple(order), builtin=tuple(sorted(found["builtin"])), missing=tuple(sorted(found["missing"]))
    )


def index(paths: Iterable[str]) -> Mapping[str, str]:
    """Module name -> path in the package."""
    return {name: path for path in paths if (name := module_name(path)) is not None}
