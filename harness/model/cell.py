"""The cell: kernel x object x settings x loader, and its one printable identity (docs/contract.md)."""

from __future__ import annotations

from dataclasses import dataclass

from harness.model.bpf_object import ObjectFile
from harness.model.kernel import KernelSpec


@dataclass(frozen=True, kw_only=True, order=True)
class CellId:
    """`debian-6.1-cloud-amd64/fancy_helper[use_fancy_helper=1]@python`; selectors, logs, files and JUnit use only
    this.
    """

    kernel: str
    object: str
    settings: tuple[tuple[str, str], ...] = ()
    loader: str = "python"

    def __str__(self) -> str:
        settings = ",".join(f"{name}={value}" for name, value in self.settings)
        return f"{self.kernel}/{self.object}{f'[{settings}]' if settings else ''}@{self.loader}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to judge. `not_applicable` is set when it is known before any boot that there is nothing to judge,
    and says why.
    """

    kernel: KernelSpec
    object: ObjectFile
    settings: tuple[tuple[str, str], ...] = ()
    loader: str = "python"
    not_applicable: str | None = None

    @property
    def id(self) -> CellId:
        return CellId(kernel=self.kernel.id, object=self.object.name, settings=self.settings, loader=self.loader)
