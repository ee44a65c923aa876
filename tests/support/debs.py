"""Debian packages made to order, hostile ones included."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import zstandard

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def tar_file(
    name: str, data: bytes = b"", mode: int = 0o644, kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    """One member for `tar_of`."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.type, info.linkname = len(data), mode, kind, link
    return info, data


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def ar_of(members: Mapping[str, bytes]) -> bytes:
    """An ar archive as deb(5) has it."""
    out = b"!<arch>\n"
    for name, data in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) & 1)
    return out


def deb_of(data_tar: bytes, suffix: str = ".xz") -> bytes:
    """A .deb around a data.tar, compressed as `suffix` says."""
    control = lzma.compress(tar_of(tar_file("./control", b"Package: x\n")))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": control}
    return ar_of({**members, f"data.tar{suffix}": COMPRESSORS[suffix](data_tar)})


def write_deb(path: Path, files: Mapping[str, bytes], suffix: str = ".xz") -> Path:
    """A package of plain files."""
    path.write_bytes(deb_of(tar_of(*(tar_file(f"./{name}", data) for name, data in files.items())), suffix))
    return path
