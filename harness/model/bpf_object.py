"""An object under test: a file, its name in the matrix, its digest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.model.arch import Architecture


@dataclass(frozen=True, kw_only=True)
class ObjectFile:
    """`name` is the identity (path below the given directory without `.bpf.o`), `sha256` is of the file's bytes.

    `arch` is the architecture in the file's name (`x.arm64.bpf.o`), None for an object
    meant for all of its byte order. `size` is in bytes.
    """

    name: str
    path: Path
    sha256: str
    size: int
    arch: str | None = None
    byteorder: str = "little"

    def fits(self, arch: Architecture) -> bool:
        """Whether a kernel of `arch` can be given this object."""
        return self.arch in (None, arch.name) and self.byteorder == arch.byteorder
