"""Every compression a kernel may come in (lib/Kconfig: HAVE_KERNEL_*), recognised by its first bytes.

gzip, bzip2, xz and lzma are the standard library's, zstd is a package of ours, lz4 and lzo are read here: the kernel
uses their simplest framings and no Python library for them is on every machine.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable

import zstandard

from harness.kernels.lzo import LzoError, lzo1x_decompress

# A kernel of half a gigabyte does not exist; more than this is an attack or an accident.
MAX_BYTES = 512 << 20
_CHUNK = 1 << 20


_ERRORS = (
    zlib.error, lzma.LZMAError, zstandard.ZstdError, LzoError, OSError, EOFError, ValueError, struct.error, IndexError,
)  # fmt: skip


class DecompressError(Exception):
    """The data is not what its first bytes promise, or grows beyond MAX_BYTES."""


def decompress(data: bytes) -> bytes:
    """Decompress a stream; what follows its end is ignored (the kernel appends the uncompressed size)."""
    for magic, decoder in MAGICS.items():
        if data.startswith(magic):
            try:
                return decoder(data)
            except _ERRORS as error:
                raise DecompressError(str(error) or repr(error)) from error
    message = f"unknown compression (first bytes {data[:6].hex()})"
    raise DecompressError(message)


def _checked(size: int) -> None:
    if size > MAX_BYTES:
        message = f"more than {MAX_BYTES} bytes"
        raise DecompressError(message)


def _gzip(data: bytes) -> bytes:
    decoder = zlib.decompressobj(wbits=31)
    out = decoder.decompress(data, MAX_BYTES)
    _complete(decoder.eof)
    return out


def _bzip2(data: bytes) -> bytes:
    decoder = bz2.BZ2Decompressor()
    out = decoder.decompress(data, MAX_BYTES)
    _complete(decoder.eof)
    return out


def _xz(data: bytes) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=256 << 20)
    out = decoder.decompress(data, MAX_BYTES)
    # .lzma payloads of a kernel carry their size in the header, so the decoder knows the end of both formats.
    _complete(decoder.eof)
    return out


def _complete(eof: bool) -> None:
    if not eof:
        message = f"the stream ends early, or holds more than {MAX_BYTES} bytes"
        raise EOFError(message)


def _zstd(data: bytes) -> bytes:
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    parts, size = [], 0
    for start in range(0, len(data), _CHUNK):
        parts.append(decoder.decompress(data[start : start + _CHUNK]))
        size += len(parts[-1])
        _checked(size)
        if decoder.eof:
            return b"".join(parts)
    _complete(eof=False)
    return b""


def _lz4_legacy(data: bytes) -> bytes:
    """LZ4's legacy frame: after the magic, blocks of 8 MiB (uncompressed), each with its compressed size before it."""
    out = bytearray()
    offset = 4
    while offset + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, offset)
        block = data[offset + 4 : offset + 4 + size]
        # The end: no more data, or the appended size of the whole, which is no size of a block that fits.
        if not size or len(block) < size:
            break
        _lz4_block(block, out)
        _checked(len(out))
        offset += 4 + size
    _complete(eof=bool(out))
    return bytes(out)


def _lz4_block(block: bytes, out: bytearray) -> None:
    """One LZ4 block (lz4_Block_format.md): literals, then a match in what was written for this block."""
    at, end, begin = 0, len(block), len(out)
    while at < end:
        token = block[at]
        at += 1
        length, at = _lz4_length(block, at, token >> 4)
        out += block[at : at + length]
        at += length
        if at >= end:
            return
        distance = block[at] | block[at + 1] << 8
        at += 2
        length, at = _lz4_length(block, at, token & 15)
        _copy_match(out, distance, length + 4, begin)


def _lz4_length(block: bytes, at: int, length: int) -> tuple[int, int]:
    """A length whose four bits in the token are `length`, 15 of them going on in bytes; and where these end."""
    more = 255 if length == 15 else 0
    while more == 255:
        more = block[at]
        at += 1
        length += more
    return length, at


def _copy_match(out: bytearray, distance: int, length: int, begin: int) -> None:
    """Append `length` bytes from `distance` back; the two may overlap, which repeats the last `distance` bytes."""
    start = len(out) - distance
    if distance == 0 or start < begin:
        message = f"a match reaches {distance} bytes back, before the start"
        raise ValueError(message)
    if distance >= length:
        out += out[start : start + length]
    else:
        pattern = bytes(out[start:])
        out += (pattern * (length // distance + 1))[:length]


def _lzop(data: bytes) -> bytes:
    """The lzop container as the kernel writes it (`lzop -9`), one block after the other (lib/decompress_unlzo.c)."""
    version, _, needed = struct.unpack_from(">HHH", data, 9)
    offset = 9 + 6 + 1 + (1 if version >= 0x0940 else 0)
    (flags,) = struct.unpack_from(">I", data, offset)
    offset += 4 + (4 if flags & 0x800 else 0) + 4 + 4 + (4 if needed >= 0x0940 else 0)
    offset += 1 + data[offset] + 4  # name and header checksum
    out = bytearray()
    while True:
        (size,) = struct.unpack_from(">I", data, offset)
        if size == 0:
            return bytes(out)
        _checked(len(out) + size)
        (packed,) = struct.unpack_from(">I", data, offset + 4)
        offset += 8 + sum(4 for flag in (0x1, 0x2) if flags & flag)
        if packed < size:
            offset += sum(4 for flag in (0x100, 0x200) if flags & flag)
        block = data[offset : offset + packed]
        out += block if packed == size else lzo1x_decompress(block, size)
        offset += packed


MAGICS: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b\x08": _gzip,
    b"BZh": _bzip2,
    b"\xfd7zXZ\x00": _xz,
    b"\x5d\x00\x00": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"\x02\x21\x4c\x18": _lz4_legacy,
    b"\x89LZO\x00\r\n\x1a\n": _lzop,
}
