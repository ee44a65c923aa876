"""Kernel packages opened: what a guest needs of one kernel, which may be spread over several .deb files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.apt import deb
from harness.errors import FetchError
from harness.kernels import keep, modules, vmlinux
from harness.model.arch import Architecture

_CONTENT = deb.glob_filter((
    "boot/vmlinuz-*", "boot/vmlinux-*", "boot/config-*", "*lib/modules/*/vmlinuz", "*lib/modules/*/config",
    "*lib/modules/*/modules.builtin", "*/kernel/drivers/virtio/*", "*/virtio_console.ko*",
))  # fmt: skip
_VMLINUZ = r"boot/vmlinu[xz]-.*|.*/vmlinuz"
_RELEASE = re.compile(r"(?:usr/)?lib/modules/([^/]+)/|boot/vmlinu[xz]-([^/]+)$")
_REMEDY = "`package` in kernels.yaml must name a kernel image"


@dataclass(frozen=True, kw_only=True)
class Content:
    """What was found in a kernel's packages: kept files by name, and the path of every module."""

    paths: Sequence[Path]
    files: Mapping[str, deb.Member]
    modules: Mapping[str, str]
    release: str

    def data(self, pattern: str) -> bytes | None:
        """The kept file whose whole name matches, None when there is none."""
        for name, member in self.files.items():
            if re.fullmatch(pattern, name) and member.data is not None:
                return member.data
        return None


def read(identity: str, paths: Sequence[Path]) -> Content:
    """Open the packages of one kernel; `identity` is for messages. Raises FetchError."""
    names: list[str] = []

    def wanted(name: str) -> bool:
        names.append(name)
        return _CONTENT(name)

    files: dict[str, deb.Member] = {}
    for path in paths:
        files.update(deb.scan(path, wanted))
    releases = {match[1] or match[2] for name in names if (match := _RELEASE.match(name))}
    if len(releases) != 1:
        message = f"{identity}: expected one kernel in its packages, found {', '.join(sorted(releases)) or 'none'}"
        raise FetchError(message, remedy=_REMEDY)
    return Content(paths=paths, files=files, modules=modules.index(names), release=releases.pop())


def found(identity: str, paths: Sequence[Path], arch: Architecture) -> keep.Found:
    """The kernel in these packages. Raises FetchError, UsageError."""
    content = read(identity, paths)
    raw = content.data(_VMLINUZ)
    if raw is None:
        message = f"{identity}: no vmlinuz in {', '.join(path.name for path in paths)}"
        raise FetchError(message, remedy=_REMEDY)
    kernel = vmlinux.unwrap(raw, f"{identity}: vmlinuz")
    keep.check_arch(kernel, raw, arch, identity)
    btf = vmlinux.extract_btf(kernel)
    files, resolved = module_files(content, arch.boot_modules, btf or b"")
    return keep.Found(
        release=content.release, vmlinuz=raw, btf=btf, config=content.data(r"boot/config-.*|.*/config"), files=files,
        resolved=resolved,
    )  # fmt: skip


def module_files(content: Content, names: Sequence[str], btf: bytes) -> tuple[dict[str, bytes], modules.Resolved]:
    """The ELF files of these modules and of what they need, and their order; `btf` is the kernel's."""
    listed = content.data(r".*/modules\.builtin")
    builtin = modules.builtin_by_btf(btf) if listed is None else modules.builtin_names(listed)
    files: dict[str, bytes] = {}

    def load(name: str) -> bytes | None:
        path = content.modules.get(name)
        if path is None:
            return None
        member = content.files.get(path) or _member(content.paths, path)
        files[name] = modules.unpack(member.data or b"", path)
        return files[name]

    return files, modules.resolve(names, builtin, load)


def _member(paths: Sequence[Path], name: str) -> deb.Member:
    """A file that the first pass over the packages did not keep."""
    for path in paths:
        member = deb.scan(path, lambda other: other == name).get(name)
        if member is not None:
            return member
    message = f"{name} has vanished from its package"
    raise deb.DebError(message)
