"""A kernel: a row of the matrix as asked for (`KernelSpec`), and as found on disk (`Kernel`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.model.arch import Architecture
from harness.model.sources import BtfSource


class KernelSource(Protocol):
    """Where a kernel comes from: one frozen dataclass per kind, its settings as fields (see `model.sources`)."""

    @property
    def kind(self) -> str:
        """The name in kernels.yaml and in the registry of `harness.kernels`."""


@dataclass(frozen=True, kw_only=True)
class KernelSpec:
    """One row of kernels.yaml. `id` is its identity and never holds the exact release (docs/contract.md).

    `btf` is where BTF comes from that takes the place of the kernel's own, None for its own. `root` is the directory a
    guest of virtme-ng has for its root file system, None for this machine's own.
    """

    id: str
    arch: Architecture
    variant: str
    source: KernelSource
    tags: frozenset[str] = frozenset()
    cpu: str | None = None
    memory_mb: int = 256
    kernel_args: tuple[str, ...] = ()
    backend: str = "qemu"
    btf: BtfSource | None = None
    root: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A kernel's files in the cache, and where they came from.

    `modules` are absolute paths in insmod order (dependencies first), uncompressed. `btf` is the raw .BTF of vmlinux,
    None when the kernel has none; with `btf_external` it came from elsewhere, and the guest must be given it. `source`
    is provenance for the report (package, version, sha256, repository; `btf` for an external one). `substituted` says,
    in words, what stands in for a locked version that could not be had. A machine that already runs (`model.machines`)
    has no files here: its `vmlinuz` is None, and its `release` is empty until it has been asked.
    """

    spec: KernelSpec
    release: str
    vmlinuz: Path | None
    vmlinuz_sha256: str
    config: Path | None
    modules: tuple[Path, ...]
    btf: Path | None
    btf_sha256: str | None
    btf_external: bool = False
    config_sha256: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    substituted: str | None = None
