"""What BTF there is to sweep: a BTFHub-style tree, single files, kernels of the matrix that are in the cache."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.guest.kconfig import reads_debian_version
from harness.model.arch import ARCHITECTURES
from harness.model.kernel import Kernel
from harness.model.release import natural
from harness.sweep.archive import ARCHIVE_SUFFIXES

# How trees spell architectures: docs/contract.md's names, uname's, Debian's.
_ARCHES = {
    **{name: name for name in ARCHITECTURES},
    **{row.debian: row.name for row in ARCHITECTURES.values()},
    "aarch64": "arm64",
}
_HOST = {"x86_64": "x86_64", "aarch64": "arm64"}
_RAW_SUFFIXES = (".btf",)
_SYSFS = Path("/sys/kernel/btf/vmlinux")


@dataclass(frozen=True, kw_only=True)
class Target:
    """One BTF to relocate against. `kernel_version` is what libbpf reads LINUX_KERNEL_VERSION from (None: not known;
    of Debian's kernels the package's version, not the release; without three numbers it reads nothing). `digest` is
    the SHA-256 of the file at `path` when it is known already; `kconfig` the kernel's configuration, if there is one.
    """

    id: str
    distro: str
    version: str
    arch: str | None
    release: str
    path: Path
    kernel_version: str | None = None
    digest: str | None = None
    kconfig: Path | None = None

    def version_by(self, rules: tuple[int, ...] | None) -> str | None:
        """`kernel_version` as a version of libbpf tells it (None: the newest)."""
        of_a_file = self.distro == "file" or self.kernel_version is None  # its name is no release
        return self.kernel_version if of_a_file or reads_debian_version(rules) else self.release

    @property
    def order(self) -> tuple[object, ...]:
        """By distribution and architecture, then by release as people count."""
        return (self.distro, self.arch or "", natural(self.release), self.version, self.id)


def find_targets(paths: Iterable[Path]) -> tuple[Target, ...]:
    """Every BTF below directories, and files as they are, in order. UsageError for a path without any."""
    found = {target.path: target for path in paths for target in _below(path)}
    return tuple(sorted(found.values(), key=lambda target: target.order))


def _below(path: Path) -> Iterator[Target]:
    if not path.is_dir():
        if not path.exists():
            message = f"{path}: no such file or directory"
            raise UsageError(message)
        yield _target(path)
        return
    suffixes = ARCHIVE_SUFFIXES + _RAW_SUFFIXES
    files = sorted(
        file for file in path.rglob("*") if (file.name.endswith(suffixes) or _is_vmlinux(file)) and not file.is_dir()
    )
    if not files:
        message = f"{path}: no BTF below this directory"
        raise UsageError(message, remedy="a tree of distro/version/arch/release.btf.tar.xz is expected, as BTFHub's")
    for file in files:
        yield _target(file)


def _is_vmlinux(file: Path) -> bool:
    return file.name == "vmlinux" or file.name.startswith("vmlinux-")


def _target(path: Path) -> Target:
    if path == _SYSFS:
        machine = platform.machine()
        return Target(
            id=f"this machine ({platform.release()})", distro="this machine", version="",
            arch=_HOST.get(machine, machine), release=platform.release(), path=path,
            kernel_version=platform.release(),
        )  # fmt: skip
    release = _release(path)
    parts = path.absolute().parts[:-1]
    if len(parts) >= 3 and parts[-1] in _ARCHES:  # distro/version/arch/release.btf.tar.xz
        distro, version, arch = parts[-3], parts[-2], _ARCHES[parts[-1]]
        return Target(
            id=f"{distro}/{version}/{arch}/{release}", distro=distro, version=version, arch=arch, release=release,
            path=path, kernel_version=release if release[:1].isdigit() else None,
        )  # fmt: skip
    return Target(
        id=str(path), distro="file", version="", arch=None, release=release, path=path,
        kernel_version=_three_numbers(release),
    )  # fmt: skip


def _release(path: Path) -> str:
    name = path.name
    for suffix in (*ARCHIVE_SUFFIXES, *_RAW_SUFFIXES):
        name = name.removesuffix(suffix)
    return name.removeprefix("vmlinux-")


def _three_numbers(text: str) -> str | None:
    """Of a file's name: `vmlinux-5.4` is taken for 5.4.0."""
    match = re.match(r"(\d+\.\d+)(\.\d+)?", text)
    return None if match is None else match[1] + (match[2] or ".0")


def _stable(version: str) -> str | None:
    """The stable release in a package's version, such as 6.1.192-2; None in 7.3~rc7-1, where libbpf reads nothing."""
    match = re.match(r"(?:\d+:)?(\d+\.\d+\.\d+)", version)
    return None if match is None else match[1]


def kernel_targets(kernels: Iterable[Kernel]) -> tuple[Target, ...]:
    """The BTF of kernels of the matrix; those without are left out."""
    found = [
        Target(
            id=kernel.spec.id,
            distro=kernel.spec.id.partition("-")[0],
            version=kernel.spec.variant,
            arch=kernel.spec.arch.name,
            release=kernel.release,
            path=kernel.btf,
            kernel_version=_stable(str(kernel.source.get("version", ""))) or kernel.release,
            digest=kernel.btf_sha256,
            kconfig=kernel.config,
        )
        for kernel in kernels
        if kernel.btf is not None
    ]
    return tuple(sorted(found, key=lambda target: target.order))
