"""From what a source found of a kernel to a `Kernel` in the cache: made once, by a key of the source's choice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.kernels import modules, vmlinux
from harness.model.arch import Architecture
from harness.model.kernel import Kernel, KernelSpec
from harness.store import Store

# Bump when what is kept of a kernel changes: kernels in the cache are made anew.
_LAYOUT = 1
_EM_OFFSET = 18  # e_machine in an ELF header


@dataclass(frozen=True, kw_only=True)
class Found:
    """A kernel's parts in memory. `vmlinuz` is the file as it came; `files` are the ELF files of the modules in
    `resolved`, by name.
    """

    release: str
    vmlinuz: bytes
    btf: bytes | None
    config: bytes | None
    files: Mapping[str, bytes]
    resolved: modules.Resolved


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A kernel in the cache: its directory, and the facts about it."""

    tree: Path
    facts: Mapping[str, Any]

    def kernel(self, spec: KernelSpec, source: Mapping[str, Any]) -> Kernel:
        """The kernel of a row; `source` is its provenance, to which the facts about modules are added."""
        facts, tree = self.facts, self.tree
        return Kernel(
            spec=spec,
            release=facts["release"],
            vmlinuz=tree / "vmlinuz",
            vmlinuz_sha256=facts["vmlinuz"],
            config=tree / "config" if facts["config"] else None,
            modules=tuple(tree / "modules" / f"{name}.ko" for name in facts["modules"]),
            btf=tree / "vmlinux.btf" if facts["btf"] else None,
            btf_sha256=facts["btf"],
            config_sha256=facts["config"],
            source={**source, "modules_builtin": facts["builtin"], "modules_missing": facts["missing"]},
        )


def key(arch: Architecture, *parts: Any) -> str:
    """A name for a kernel made of `parts` (whatever JSON can hold) with the modules this architecture boots with."""
    text = json.dumps([_LAYOUT, arch.boot_modules, *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def kept(store: Store, name: str, make: Callable[[], Found]) -> Kept:
    """The kernel stored as `name`, made now unless it is there. Raises what `make` raises, and CacheError."""
    found = _look(store, name)
    if found is None:
        with store.lock(f"kernel {name}"):
            found = _look(store, name) or _store(store, name, make())
    return found


def _look(store: Store, name: str) -> Kept | None:
    facts, tree = store.entry("kernel", name), store.tree("kernel", name)
    return None if facts is None or tree is None else Kept(tree=tree, facts=facts)


def _store(store: Store, name: str, found: Found) -> Kept:
    parts = {"vmlinuz": vmlinux.bootable(found.vmlinuz), "config": found.config, "vmlinux.btf": found.btf}
    parts.update({f"modules/{module}.ko": data for module, data in found.files.items()})
    hashes = {part: store.put_bytes(data) for part, data in parts.items() if data is not None}
    facts = {
        "release": found.release,
        "vmlinuz": hashes["vmlinuz"],
        "config": hashes.get("config"),
        "btf": hashes.get("vmlinux.btf"),
        "modules": list(found.resolved.order),
        "builtin": list(found.resolved.builtin),
        "missing": list(found.resolved.missing),
    }
    tree = store.put_tree("kernel", name, hashes)
    store.put_entry("kernel", name, facts)
    return Kept(tree=tree, facts=facts)


def check_arch(kernel: bytes, vmlinuz: bytes, arch: Architecture, name: str) -> None:
    """UsageError when a `kernel` (or the file it came in) is for another architecture: QEMU would only hang."""
    order: Any = arch.byteorder
    if kernel.startswith(b"\x7fELF"):
        fits = int.from_bytes(kernel[_EM_OFFSET : _EM_OFFSET + 2], order) == arch.elf_machine
    else:
        place, magic = arch.image_magic or (0, b"\x7fELF")
        fits = kernel.startswith(magic, place) or vmlinuz.startswith(magic, place)
    if not fits:
        message = f"{name}: not a kernel for {arch.name}"
        raise UsageError(message, remedy="correct `arch` in kernels.yaml, or name another file")
