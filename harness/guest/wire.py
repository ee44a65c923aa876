"""Frames between host and guest, both ways, over whatever byte stream there is (docs/facts.md, "Frames").

Pure: bytes in, messages out. Both sides use this file.
"""

from __future__ import annotations

import struct
import zlib

from .quick_json import dumps, loads

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

MAGIC = b"CMTX"
VERSION = 1
HEADER = struct.Struct("<4sHHI16sI")
NO_NONCE = bytes(16)

MAX_PAYLOAD = 64 << 20
MAX_DEPTH = 32


class WireError(Exception):
    """The other side sent something that is no frame of ours; the message says what was wrong."""


class Frame:
    """One message: `message` is a dict, `blob` the bytes after it, `nonce` the 16 bytes that tie an answer to its
    request.
    """

    __slots__ = ("blob", "message", "nonce")

    def __init__(self, message: dict[str, Any], nonce: bytes = NO_NONCE, blob: bytes = b"") -> None:
        self.message = message
        self.nonce = nonce
        self.blob = blob


def encode(frame: Frame) -> bytes:
    """The frame's bytes: header, `u32 json_length`, JSON, blob."""
    text = dumps(frame.message).encode()
    payload = b"".join((struct.pack("<I", len(text)), text, frame.blob))
    return HEADER.pack(MAGIC, VERSION, 0, len(payload), frame.nonce, zlib.crc32(payload)) + payload


class Decoder:
    """Collects bytes and gives back whole frames. `limit` bounds a payload, so that a hostile peer cannot fill our
    memory.
    """

    __slots__ = ("_buffer", "_limit")

    def __init__(self, limit: int = MAX_PAYLOAD) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> None:
        """Add bytes."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """How many bytes wait for the rest of their frame."""
        return len(self._buffer)

    def take(self) -> Frame | None:
        """The next whole frame, None when more bytes are needed. Raises WireError at the first byte that cannot be
        ours; frames before it have been given out by then.
        """
        buffer = self._buffer
        if not MAGIC.startswith(bytes(buffer[:4])):
            raise WireError("a frame starts with %r instead of %r" % (bytes(buffer[:4]), MAGIC))
        if len(buffer) < HEADER.size:
            return None
        _, version, reserved, length, nonce, crc = HEADER.unpack_from(buffer)
        if version != VERSION or reserved:
            raise WireError("a frame of version %d, reserved %d; we speak version %d" % (version, reserved, VERSION))
        if not 4 <= length <= self._limit:
            raise WireError("a frame of %d bytes; the limit is %d" % (length, self._limit))
        end = HEADER.size + length
        if len(buffer) < end:
            return None
        payload = bytes(memoryview(buffer)[HEADER.size : end])
        del buffer[:end]
        if zlib.crc32(payload) != crc:
            raise WireError("a frame of %d bytes with a wrong checksum" % length)
        return _frame(payload, nonce)


def _frame(payload: bytes, nonce: bytes) -> Frame:
    (size,) = struct.unpack_from("<I", payload)
    if size > len(payload) - 4:
        raise WireError("a frame whose JSON length %d exceeds its payload of %d" % (size, len(payload)))
    try:
        message = loads(payload[4 : 4 + size].decode())
        if not isinstance(message, dict):
            raise ValueError("no object")
        _check_depth(message)
    except (ValueError, RecursionError) as error:
        raise WireError("a frame whose JSON cannot be used: %s" % error) from None
    return Frame(message, nonce, payload[4 + size :])


def _check_depth(message: dict[str, Any]) -> None:
    """Refuse a message nested deeper than MAX_DEPTH: code that walks it need not fear for its stack."""
    level: list[Any] = [message]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _values(outer) if isinstance(inner, (dict, list))]
        if not level:
            return
    raise ValueError("nested deeper than %d" % MAX_DEPTH)


def _values(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container
