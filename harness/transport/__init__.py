"""How to talk to a running guest: frames (docs/facts.md) over some byte stream."""

from __future__ import annotations

from typing import Protocol

from harness.guest.wire import Frame


class ChannelClosedError(Exception):
    """The other side is gone."""


class ChannelTimeoutError(Exception):
    """The deadline passed before a whole frame came, or went."""


class Channel(Protocol):
    """A framed, two-way channel to one guest. Deadlines are points on `time.monotonic`'s scale."""

    def send(self, frame: Frame, deadline: float) -> None:
        """Send one frame. Raises ChannelClosedError, ChannelTimeoutError."""

    def receive(self, deadline: float) -> Frame:
        """The next frame. Raises ChannelClosedError, ChannelTimeoutError, wire.WireError."""

    def close(self) -> None:
        """Hang up; the guest notices."""
