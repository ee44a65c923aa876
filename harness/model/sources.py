"""The kinds of kernel source, as kernels.yaml spells them. Data only: the code that fetches lives in
`harness.kernels`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class AptRepository:
    """An apt repository (`repositories:` in kernels.yaml); `keyring` verifies its InRelease.

    `suites` are those it serves: a kernel names suites only, and each belongs to the repository that lists it.
    """

    name: str
    uri: str
    keyring: str
    components: tuple[str, ...] = ("main",)
    suites: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AptSource:
    """A kernel package chosen from suites, each served by the one of `repositories` that lists it (Debian keeps its
    security suites in an archive of their own).

    `package` is a glob over package names (`linux-image-6.1.*-cloud-amd64`); the newest version that matches is taken.
    """

    kind: ClassVar[str] = "apt"
    repositories: tuple[AptRepository, ...]
    suites: tuple[str, ...]
    package: str


@dataclass(frozen=True, kw_only=True)
class GuestPackages:
    """What the guest's user space is made of (`guest:` in kernels.yaml): packages of the guest's architecture."""

    repositories: tuple[AptRepository, ...]
    suites: tuple[str, ...]
    packages: tuple[str, ...]
    arches: Mapping[str, GuestPackages] = field(default_factory=dict)

    def for_arch(self, name: str) -> GuestPackages:
        """The packages for an architecture (its `name`): `arches` holds those whose user space comes from elsewhere."""
        return self.arches.get(name) or replace(self, arches={})


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file somewhere else, and the SHA-256 it must have."""

    url: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PathSource:
    """A kernel in files on this machine. `packages` are .deb files to look into, in place of the three others.

    `vmlinuz` is what a boot loader takes (bzImage, Image, zboot, a vmlinux with a PVH entry), `modules` a directory
    with modules below it, as /lib/modules/RELEASE. Paths are absolute.
    """

    kind: ClassVar[str] = "path"
    vmlinuz: Path | None = None
    config: Path | None = None
    modules: Path | None = None
    packages: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class UrlSource:
    """The same in files elsewhere: downloaded once, kept by hash. There are no directories on the web: modules come in
    `packages`.
    """

    kind: ClassVar[str] = "url"
    vmlinuz: RemoteFile | None = None
    config: RemoteFile | None = None
    packages: tuple[RemoteFile, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MainlineSource:
    """A build of Ubuntu's mainline archive, by its directory there (`v6.12`, `v6.12-rc3`)."""

    kind: ClassVar[str] = "mainline"
    version: str


@dataclass(frozen=True, kw_only=True)
class TreeSource:
    """A kernel tree, built with `config` (a file, or a target such as `defconfig`) and `fragments` on top, each a file
    that merge_config.sh of the tree understands. `btf_fragment` comes last: what it takes to have BTF. Paths are
    absolute.
    """

    kind: ClassVar[str] = "tree"
    tree: Path
    config: Path | str
    btf_fragment: Path
    fragments: tuple[Path, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FileBtf:
    """BTF in a file: raw, an ELF with .BTF, or a BTFHub archive (.btf.tar.xz)."""

    kind: ClassVar[str] = "file"
    file: Path


@dataclass(frozen=True, kw_only=True)
class TreeBtf:
    """A tree laid out as BTFHub's: distro/version/arch/RELEASE.btf.tar.xz. `distro` and `version` narrow the search,
    where two distributions have kernels of one release.
    """

    kind: ClassVar[str] = "tree"
    tree: Path
    distro: str = "*"
    version: str = "*"


@dataclass(frozen=True, kw_only=True)
class DwarfBtf:
    """BTF to be made by pahole from debug information: a vmlinux, or a debug package that holds one."""

    kind: ClassVar[str] = "dwarf"
    dwarf: Path


@dataclass(frozen=True, kw_only=True)
class RemoteBtf:
    """BTF in a file elsewhere, forms as of `FileBtf`."""

    kind: ClassVar[str] = "url"
    remote: RemoteFile


BtfSource = FileBtf | TreeBtf | DwarfBtf | RemoteBtf
