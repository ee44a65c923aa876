"""Frames over a connected stream socket: the host's end of a virtio-serial port or UART that QEMU holds the other end
of.
"""

from __future__ import annotations

import time
from typing import Protocol

from harness.guest.wire import MAX_PAYLOAD, Decoder, Frame, encode
from harness.transport import ChannelClosedError, ChannelTimeoutError

_CHUNK = 1 << 18


class Stream(Protocol):
    """What is needed of a socket; paramiko's channels have it too. TimeoutError and OSError as sockets raise them."""

    def settimeout(self, seconds: float, /) -> object: ...
    def sendall(self, data: bytes, /) -> object: ...
    def recv(self, size: int, /) -> bytes: ...
    def close(self) -> object: ...


class StreamChannel:
    """A `transport.Channel` over `end`, which it owns. A payload larger than `limit` bytes is an error, not memory."""

    def __init__(self, end: Stream, *, limit: int = MAX_PAYLOAD) -> None:
        self._end = end
        self._decoder = Decoder(limit)

    def send(self, frame: Frame, deadline: float) -> None:
        """See `transport.Channel`."""
        self._arm(deadline)
        try:
            self._end.sendall(encode(frame))
        except TimeoutError as error:
            raise ChannelTimeoutError(str(error)) from error
        except OSError as error:
            raise ChannelClosedError(str(error)) from error

    def receive(self, deadline: float) -> Frame:
        """See `transport.Channel`."""
        while True:
            frame = self._decoder.take()
            if frame is not None:
                return frame
            self._decoder.feed(self._more(deadline))

    @property
    def pending(self) -> int:
        """Bytes of a frame whose rest has not come."""
        return self._decoder.pending

    def close(self) -> None:
        """See `transport.Channel`."""
        self._end.close()

    def _more(self, deadline: float) -> bytes:
        self._arm(deadline)
        try:
            data = self._end.recv(_CHUNK)
        except TimeoutError as error:
            raise ChannelTimeoutError(str(error)) from error
        except OSError as error:
            raise ChannelClosedError(str(error)) from error
        if not data:
            raise ChannelClosedError
        return data

    def _arm(self, deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise ChannelTimeoutError
        self._end.settimeout(remaining)
