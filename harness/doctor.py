"""What this machine can do, found out by doing it: QEMU runs, a guest boots, the cache takes a file."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import kernels, proc
from harness.apt.guest import fetch_guest
from harness.apt.repository import AptOptions
from harness.boot import GuestPackages
from harness.config import Matrix
from harness.errors import CorematrixError
from harness.executor.plan import host_limits
from harness.model.arch import Architecture
from harness.model.kernel import KernelSpec
from harness.session import Session, SessionOptions
from harness.store import Store
from harness.vm import qemu

_OFFLINE = AptOptions(offline=True)
_LEAST_FREE_BYTES = 2 << 30  # kernels of the gate matrix and their saved guests take about that
# Older ones drop CO-RE relocations without a word (programs/Makefile).
_LEAST_CLANG = 15
_CLANGS = ("clang-19", "clang", *(f"clang-{version}" for version in range(30, _LEAST_CLANG - 1, -1)))

_INSTALL = {
    "debian": "apt-get install",
    "fedora": "dnf install",
    "arch": "pacman -S",
    "suse": "zypper install",
}
_KIN = {"ubuntu": "debian", "rhel": "fedora", "centos": "fedora", "opensuse": "suse"}
# What a family calls a package; whoever is not named calls it as Debian does.
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "qemu-system-x86": {"fedora": "qemu-system-x86-core", "suse": "qemu-x86"},
    "qemu-system-arm": {"fedora": "qemu-system-aarch64-core", "arch": "qemu-system-aarch64", "suse": "qemu-arm"},
    "qemu-system-misc": {"fedora": "qemu-system-riscv-core qemu-system-s390x-core", "arch": "qemu-emulators-full"},
    "clang-19": {"fedora": "clang llvm", "arch": "clang llvm", "suse": "clang llvm"},
    "libbpf-dev": {"fedora": "libbpf-devel", "arch": "libbpf", "suse": "libbpf-devel"},
    "gpgv": {"fedora": "gnupg2", "arch": "gnupg", "suse": "gpg2"},
    "debian-archive-keyring": {"fedora": "debian-keyring"},
}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`ok` None: could not be found out, or is not needed. `remedy` is a command or a sentence, when something
    lacks.
    """

    name: str
    ok: bool | None
    text: str
    remedy: str | None = None


def examine(matrix: Matrix, store: Store, os_release: Path = Path("/etc/os-release")) -> Iterator[Finding]:
    """Everything there is to know, one finding at a time; booting a guest comes last, since it takes seconds."""
    install = Installer.of(os_release)
    yield _capacity()
    yield _cache(store)
    yield from _signatures(matrix, install)
    yield _clang(install)
    yield _headers(install)
    arches = list(dict.fromkeys(kernel.arch for kernel in matrix.kernels))
    exotic = {arch.name for arch in arches} - {k.arch.name for k in matrix.kernels if "exotic" not in k.tags}
    for arch in arches:
        yield _qemu(arch, install, optional=arch.name in exotic)
    for arch in arches:
        yield _guest(arch, matrix, store)


@dataclass(frozen=True, kw_only=True)
class Installer:
    """How this distribution's packages are installed; `family` is None when it is none we know."""

    family: str | None

    @classmethod
    def of(cls, os_release: Path) -> Installer:
        """By ID and ID_LIKE of os-release(5)."""
        try:
            fields = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
        except OSError:
            return cls(family=None)
        names = f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}".replace('"', "").split()
        known = (_KIN.get(name, name) for name in (name.partition("-")[0] for name in names))
        return cls(family=next((name for name in known if name in _INSTALL), None))

    def remedy(self, *debian_names: str) -> str:
        """The command that installs packages named as in Debian."""
        if self.family is None:
            return f"install what Debian calls {' '.join(debian_names)}"
        names = (_PACKAGES.get(name, {}).get(self.family, name) for name in debian_names)
        return f"{_INSTALL[self.family]} {' '.join(names)}"


def _capacity() -> Finding:
    limits = host_limits()
    text = f"{limits.jobs} guests at a time by cores; {limits.memory_mb} MB of memory for all of them"
    return Finding(name="capacity", ok=True, text=text)


def _cache(store: Store) -> Finding:
    try:
        store.put_bytes(b"corematrix doctor was here\n")
        free = shutil.disk_usage(store.root).free
    except CorematrixError as error:
        return Finding(name="cache", ok=False, text=error.message, remedy=error.remedy)
    gigabytes = [f"{amount / 2**30:.1f} GiB" for amount in (store.usage(), free)]
    text = f"{store.root} holds {gigabytes[0]}, {gigabytes[1]} are free"
    if free < _LEAST_FREE_BYTES:
        return Finding(name="cache", ok=False, text=text, remedy="corematrix kernels prune --keep-gb 1")
    return Finding(name="cache", ok=True, text=text)


def _signatures(matrix: Matrix, install: Installer) -> Iterator[Finding]:
    gpgv = proc.which("gpgv")
    yield Finding(
        name="gpgv", ok=gpgv is not None, text=str(gpgv or "not found: no repository can be verified"),
        remedy=None if gpgv else install.remedy("gpgv"),
    )  # fmt: skip
    for keyring in dict.fromkeys(repository.keyring for repository in matrix.guest.repositories):
        there = Path(keyring).is_file()
        text = keyring if there else f"{keyring} is missing"
        remedy = None if there else install.remedy("debian-archive-keyring")
        yield Finding(name="keyring", ok=there, text=text, remedy=remedy)


def _clang(install: Installer) -> Finding:
    remedy = install.remedy("clang-19", "llvm-19")
    for name in _CLANGS:
        path = proc.which(name)
        found = path and re.search(r"clang version (\d+)", proc.run([path, "--version"]).text)
        if found and int(found[1]) >= _LEAST_CLANG:
            return Finding(name="clang", ok=True, text=f"{path}, version {found[1]}")
    text = f"no clang of version {_LEAST_CLANG} or newer: objects can be run, not compiled"
    return Finding(name="clang", ok=False, text=text, remedy=remedy)


def _headers(install: Installer) -> Finding:
    header = Path("/usr/include/bpf/bpf_core_read.h")
    if header.is_file():
        return Finding(name="libbpf headers", ok=True, text=str(header.parent))
    text = f"{header} is missing: programs/ cannot be compiled"
    return Finding(name="libbpf headers", ok=False, text=text, remedy=install.remedy("libbpf-dev"))


def _qemu(arch: Architecture, install: Installer, *, optional: bool) -> Finding:
    name = f"QEMU {arch.name}"
    try:
        path = qemu.binary(arch)
        version = qemu.version(path)
        old = qemu.older_than_needed(version)
        if old is None:
            return Finding(name=name, ok=True, text=f"{path}, version {version}")
        return Finding(name=name, ok=None if optional else False, text=f"{path}: {old}")
    except CorematrixError as error:
        text = f"{error.message}{' (only for kernels tagged `exotic`)' if optional else ''}"
        return Finding(name=name, ok=None if optional else False, text=text, remedy=install.remedy(arch.qemu_package))


def _guest(arch: Architecture, matrix: Matrix, store: Store) -> Finding:
    """Boot a guest of a kernel in the cache: which accelerator works is what it came up with."""
    name = f"guest {arch.name}"
    for spec in (kernel for kernel in matrix.kernels if kernel.arch == arch):
        try:
            options = SessionOptions(store=store, packages=_packages(spec, matrix, store), cold=True)
            kernel = kernels.provide(spec, store, matrix.lock, _quiet, options=_OFFLINE)
        except CorematrixError:
            continue
        try:
            with Session(kernel, options) as session:
                found = session.provenance
        except CorematrixError as error:
            return Finding(name=name, ok=False, text=error.message, remedy=error.remedy)
        how = f"{spec.id} came up in {found.seconds:.1f} s with {found.accelerator}"
        return Finding(name=name, ok=True, text=f"{how} ({found.accelerator_reason})")
    wanted = next(kernel.id for kernel in matrix.kernels if kernel.arch == arch)
    text = "not tried: no kernel of this architecture, or no user space for it, is in the cache"
    return Finding(name=name, ok=None, text=text, remedy=f"any run fetches them: corematrix run OBJECT -k {wanted}")


def _packages(spec: KernelSpec, matrix: Matrix, store: Store) -> GuestPackages:
    debs = fetch_guest(matrix.guest, spec.arch, store, matrix.lock, _quiet, options=_OFFLINE)
    return GuestPackages(paths=debs.paths, provenance=tuple(debs.provenance()))


def _quiet(_line: str) -> None:
    return None


def lacking(findings: Sequence[Finding]) -> bool:
    """Is anything amiss?"""
    return any(finding.ok is False for finding in findings)
