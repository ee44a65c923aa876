"""What a command says, kept within bounds: a guest may say as much as it likes."""

from __future__ import annotations

_MOST = 1 << 20
_END = 4000


class Collected:
    """Both streams in the order they came; the beginning is dropped where there is more than `most` bytes."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._data = bytearray()
        self._dropped = 0

    def add(self, _stream: str, data: bytes) -> None:
        """More of it."""
        self._data += data
        over = len(self._data) - self._most
        if over > 0:
            del self._data[:over]
            self._dropped += over

    def all(self) -> bytes:
        """All that was kept."""
        note = b"[%d bytes before this were dropped]\n" % self._dropped if self._dropped else b""
        return note + bytes(self._data)

    def end(self) -> str:
        """Its last few thousand bytes as text; what is not UTF-8 is replaced."""
        return bytes(self._data[-_END:]).decode("utf-8", "replace")
