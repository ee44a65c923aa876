"""Reading .deb files (deb(5)): an ar archive with a compressed tar in it. Nothing is unpacked by name onto the disk.

A package is verified by hash before it gets here, yet read as if it were hostile: names and links stay inside the
package, device nodes are refused, and what is decompressed is counted while it comes (a bomb ends at the limit, not
in memory).
"""

from __future__ import annotations

import bz2
import contextlib
import fnmatch
import gzip
import io
import lzma
import posixpath
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import zstandard

from harness.errors import FetchError

_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60
_WINDOW_BYTES = 128 << 20
_LZMA_BYTES = 256 << 20


class DebError(FetchError):
    """The package cannot be read, or holds what a package must not hold."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much a package may hold: bytes once decompressed, bytes of the files asked for, and members."""

    total_bytes: int = 4 << 30
    kept_bytes: int = 1 << 30
    members: int = 200_000


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file of a package. `name` is relative to the root (`usr/bin/python3.11`), `mode` its permission bits.

    Exactly one of `data` (a regular file's bytes) and `link` (a symbolic link's target, as written) is set. A hard link
    comes as a copy of what it is linked to.
    """

    name: str
    mode: int
    data: bytes | None = None
    link: str | None = None


_LIMITS = Limits()


def read_members(path: Path, globs: Sequence[str], *, limits: Limits = _LIMITS) -> dict[str, Member]:
    """The files and symbolic links whose name matches one of `globs`, by name.

    Globs are `fnmatch`'s over names relative to the root; `*` also matches slashes. Raises DebError.
    """
    return scan(path, glob_filter(globs), limits=limits)


def glob_filter(globs: Sequence[str]) -> Callable[[str], bool]:
    """A predicate for names that match one of the globs."""
    wanted = re.compile("|".join(fnmatch.translate(glob) for glob in globs) or r"(?!)")
    return lambda name: wanted.match(name) is not None


def scan(path: Path, wanted: Callable[[str], bool], *, limits: Limits = _LIMITS) -> dict[str, Member]:
    """Like `read_members`, with a predicate that sees the name of every file in the package, in order."""
    found: dict[str, Member] = {}
    kept = 0
    try:
        with _data_tar(path, limits) as tar:
            for count, info in enumerate(tar):
                name = _checked_name(path, info)
                if count >= limits.members:
                    raise _refused(path, f"more than {limits.members} members")
                if info.isdir() or not wanted(name):
                    continue
                kept += info.size if info.isreg() else 0
                if kept > limits.kept_bytes:
                    raise _refused(path, f"the files asked for are larger than {limits.kept_bytes} bytes")
                found[name] = _member(path, tar, info, name, found)
    except (tarfile.TarError, lzma.LZMAError, zlib.error, zstandard.ZstdError, EOFError, OSError, ValueError) as error:
        message = f"{path}: not a readable Debian package: {error}"
        raise DebError(message) from error
    return found


def _member(path: Path, tar: tarfile.TarFile, info: tarfile.TarInfo, name: str, found: dict[str, Member]) -> Member:
    if info.issym():
        return Member(name=name, mode=0o777, link=info.linkname)
    if info.islnk():
        target = found.get(_normal(info.linkname))
        if target is None:
            raise _refused(
                path, f"{name} is a hard link to {info.linkname}, which was not asked for or does not come before it"
            )
        return Member(name=name, mode=target.mode, data=target.data, link=target.link)
    file = tar.extractfile(info)
    if file is None:
        raise _refused(path, f"{name} cannot be read")
    return Member(name=name, mode=info.mode & 0o7777, data=file.read())


def _checked_name(path: Path, info: tarfile.TarInfo) -> str:
    """The member's name relative to the root. DebError for what would lead outside, and for what is no file."""
    if not (info.isreg() or info.isdir() or info.issym() or info.islnk()):
        raise _refused(path, f"{info.name} is a device, a pipe or something stranger")
    name = _normal(info.name)
    if info.name.startswith("/") or name == ".." or name.startswith("../"):
        raise _refused(path, f"{info.name!r} leads out of the package")
    if info.issym() or info.islnk():
        base = "" if info.islnk() else posixpath.dirname(name)
        # An absolute target is relative to the package's root, wherever that will be mounted.
        target = _normal(posixpath.join(base, info.linkname)) if not info.linkname.startswith("/") else ""
        if target == ".." or target.startswith("../"):
            raise _refused(path, f"{info.name!r} is a link to {info.linkname!r}, which leads out of the package")
    return name


def _normal(name: str) -> str:
    return posixpath.normpath(name) if name else "."


def _refused(path: Path, why: str) -> DebError:
    return DebError(f"{path}: refused: {why}")


@contextlib.contextmanager
def _data_tar(path: Path, limits: Limits) -> Iterator[tarfile.TarFile]:
    """The data.tar.* member, decompressed and counted as it is read."""
    with path.open("rb") as file:
        for name, size in _ar_members(file, path):
            if name.startswith("data.tar"):
                window = cast("IO[bytes]", _Slice(file, size))
                counted = cast("IO[bytes]", _Counted(_decompressor(window, name, path), limits.total_bytes, path))
                with tarfile.open(fileobj=counted, mode="r|") as tar:
                    yield tar
                return
            file.seek(size + (size & 1), io.SEEK_CUR)
    message = f"{path}: not a Debian package: no data.tar in it"
    raise DebError(message)


def _ar_members(file: IO[bytes], path: Path) -> Iterator[tuple[str, int]]:
    """Name and size of each member; the file stands at its first byte, and must be moved past its last one."""
    if file.read(len(_AR_MAGIC)) != _AR_MAGIC:
        message = f"{path}: not a Debian package: no ar header"
        raise DebError(message)
    while header := file.read(_AR_HEADER):
        size = header[48:58].strip()
        if len(header) != _AR_HEADER or header[58:] != b"`\n" or not size.isdigit():
            message = f"{path}: not a Debian package: the ar archive is damaged"
            raise DebError(message)
        yield header[:16].decode("ascii", "replace").rstrip(" /"), int(size)


def _decompressor(file: IO[bytes], name: str, path: Path) -> IO[bytes]:
    make = _DECOMPRESSORS.get(name.removeprefix("data.tar"))
    if make is None:
        message = f"{path}: {name}: compression not known"
        raise DebError(message)
    return make(file)


def _open_xz(file: IO[bytes]) -> IO[bytes]:
    return cast("IO[bytes]", io.BufferedReader(_Xz(file), 1 << 18))


def _open_zst(file: IO[bytes]) -> IO[bytes]:
    reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).stream_reader(file, read_across_frames=True)
    return cast("IO[bytes]", reader)


_DECOMPRESSORS: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    "": lambda file: file,
    ".gz": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    ".xz": _open_xz,
    ".bz2": lambda file: cast("IO[bytes]", bz2.BZ2File(file)),
    ".zst": _open_zst,
}


class _Xz(io.RawIOBase):
    """xz with a limit on the decoder's memory, which lzma.LZMAFile does not offer."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            data = b""
            if self._decoder.eof:
                rest = self._decoder.unused_data or self._file.read(1 << 16)
                if not rest.strip(b"\0"):
                    return 0
                self._decoder = self._new()
            else:
                rest = self._file.read(1 << 16) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not rest:
                    message = "the compressed data ends early"
                    raise EOFError(message)
            data = self._decoder.decompress(rest, max_length=len(buffer))
            if data:
                buffer[: len(data)] = data
                return len(data)


class _Slice(io.RawIOBase):
    """The next `size` bytes of a file, as a file."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file = file
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._left))
        if self._left and not data:
            # tarfile would take the end of an uncompressed archive at a member's boundary for its proper end.
            message = "the archive ends early"
            raise EOFError(message)
        self._left -= len(data)
        buffer[: len(data)] = data
        return len(data)


class _Counted:
    """Counts what comes out of a decompressor; DebError beyond the limit."""

    def __init__(self, file: IO[bytes], limit: int, path: Path) -> None:
        self._file = file
        self._left = limit
        self._path = path

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _refused(self._path, "it decompresses to more than a package may hold (a bomb?)")
        return data
