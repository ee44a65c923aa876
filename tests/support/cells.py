"""Kernels, objects and cells in one line, for tests of what handles them without looking inside."""

from __future__ import annotations

from pathlib import Path

from harness.model.arch import ARCHITECTURES
from harness.model.bpf_object import ObjectFile
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec
from harness.model.sources import AptRepository, AptSource

REPOSITORY = AptRepository(
    name="debian", uri="http://repository.invalid/debian", keyring="/nowhere.gpg", suites=("stable",)
)


def kernel_spec(
    name: str = "debian-6.1-cloud-amd64", *, arch: str = "x86_64", tags: str = "gate", memory: int = 256
) -> KernelSpec:
    """A row of a matrix; nothing of it exists."""
    source = AptSource(repositories=(REPOSITORY,), suites=("stable",), package="linux-image-*")
    return KernelSpec(
        id=name, arch=ARCHITECTURES[arch], variant="cloud", source=source, tags=frozenset(tags.split()),
        memory_mb=memory,
    )  # fmt: skip


def kernel(spec: KernelSpec | None = None) -> Kernel:
    """A kernel as fetched; its files do not exist."""
    return Kernel(
        spec=spec or kernel_spec(), release="6.1.0-50-cloud-amd64", vmlinuz=Path("/nowhere/vmlinuz"),
        vmlinuz_sha256="0" * 64,
        config=None, modules=(), btf=None, btf_sha256=None, source={"kind": "apt"},
    )  # fmt: skip


def object_file(name: str = "task_state", *, arch: str | None = None) -> ObjectFile:
    """An object that does not exist."""
    return ObjectFile(name=name, path=Path(f"/nowhere/{name}.bpf.o"), sha256="1" * 64, size=1, arch=arch)


def cell(kernel_name: str = "debian-6.1-cloud-amd64", object_name: str = "task_state", **others: object) -> Cell:
    """A cell of the two."""
    return Cell(kernel=kernel_spec(kernel_name), object=object_file(object_name), **others)  # type: ignore[arg-type]
