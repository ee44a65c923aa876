"""Raw BTF out of what holds it: a BTFHub .tar.xz, a raw BTF file, an ELF with .BTF. Nothing in it is trusted.

An archive is unpacked only so far as it stays below a limit: a few kilobytes of .xz can ask for gigabytes.
"""

from __future__ import annotations

import io
import lzma
import mmap
import tarfile
from pathlib import Path

from harness import store
from harness.errors import UsageError
from harness.guest.elf import Elf, is_elf
from harness.guest.errors import GuestError

LARGEST_BTF = 128 << 20  # bytes; the largest known, of a kernel without deduplication, has 27 MB
_MEMORY = 256 << 20  # for the decompressor: `xz -9e` asks for 65 MB
_CHUNK = 1 << 20
ARCHIVE_SUFFIXES = (".btf.tar.xz", ".tar.xz")


def digest_of(path: Path) -> str:
    """SHA-256 of a file as it lies there. UsageError when it cannot be read."""
    try:
        return store.digest_of(path)
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise UsageError(message) from error


def read_btf(path: Path, limit: int = LARGEST_BTF) -> bytes:
    """The raw BTF in a file. UsageError when there is none, it is damaged, or has more than `limit` bytes."""
    try:
        if path.name.endswith(ARCHIVE_SUFFIXES):
            return _from_archive(path, limit)
        with path.open("rb") as file:
            if is_elf(file.read(4)):
                return _from_elf(path)
            file.seek(0)
            return _bounded(file.read(limit + 1), path, limit)
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror or error}"
        raise UsageError(message) from error
    except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
        message = f"{path}: a damaged archive: {error}"
        raise UsageError(message, remedy="fetch it again") from error


def _bounded(data: bytes, path: Path, limit: int) -> bytes:
    if len(data) > limit:
        raise _too_much(path, limit)
    return data


def _too_much(path: Path, limit: int) -> UsageError:
    message = f"{path}: more than {limit >> 20} MB of BTF"
    return UsageError(message, remedy="no kernel has that much: is it what it says?")


def _unpacked(path: Path, limit: int) -> bytes:
    """What an .xz file holds, all of it (so its checksum is checked), up to `limit` bytes."""
    decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_XZ, memlimit=_MEMORY)
    left = limit + _CHUNK  # the archive's own headers and padding are no BTF
    parts: list[bytes] = []
    with path.open("rb") as file:
        while not decompressor.eof:
            data = file.read(8 * _CHUNK) if decompressor.needs_input else b""
            if not data and decompressor.needs_input:
                message = "the compressed file ends before its end-of-stream marker was reached"
                raise EOFError(message)
            parts.append(decompressor.decompress(data, left + 1))
            left -= len(parts[-1])
            if left < 0:
                raise _too_much(path, limit)
    return b"".join(parts)


def _from_archive(path: Path, limit: int) -> bytes:
    with tarfile.open(fileobj=io.BytesIO(_unpacked(path, limit)), mode="r:") as archive:
        for member in archive:
            if member.isreg():
                return _member(archive, member, path, limit)
    message = f"{path}: no file in this archive"
    raise UsageError(message, remedy="one raw BTF file is expected, as in BTFHub's archive")


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path, limit: int) -> bytes:
    if member.size > limit:
        raise _too_much(path, limit)
    file = archive.extractfile(member)
    data = file.read() if file is not None else b""
    if len(data) != member.size:
        message = f"{path}: {member.name} is cut off ({len(data)} of {member.size} bytes)"
        raise UsageError(message, remedy="fetch it again")
    return data


def _from_elf(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            elf = Elf(data, str(path))  # type: ignore[arg-type]
            section = elf.section(".BTF")
            content = elf.content(section) if section is not None else b""
        except GuestError as error:
            raise UsageError(error.message) from error
    if not content:
        message = f"{path}: an ELF file without a .BTF section"
        raise UsageError(message, remedy="name a vmlinux built with CONFIG_DEBUG_INFO_BTF, or a raw BTF file")
    return bytes(content)
