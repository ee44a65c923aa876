"""A minimal QMP client (docs/interop/qmp-spec of QEMU): one command at a time, events kept until they are asked for."""

from __future__ import annotations

import json
import socket
import time
from typing import Any

from harness.errors import GuestLostError

_CHUNK = 1 << 16
_LIMIT = 4 << 20


class QmpError(GuestLostError):
    """QEMU refused a command, or its monitor went away."""

    def __init__(self, message: str) -> None:
        super().__init__(message, status="error")


class Qmp:
    """Talks to one QEMU. Every call takes a deadline on `time.monotonic`'s scale and raises QmpError when it passes."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._buffer = b""
        self._events: list[dict[str, Any]] = []

    def negotiate(self, deadline: float) -> dict[str, Any]:
        """Take the greeting and leave negotiation mode; returns QEMU's version as it gives it."""
        greeting = self._message(deadline)
        self.execute("qmp_capabilities", deadline=deadline)
        version: dict[str, Any] = greeting.get("QMP", {}).get("version", {})
        return version

    def execute(self, command: str, *, deadline: float, descriptor: int | None = None, **arguments: Any) -> Any:
        """Run a command, passing `descriptor` along (for `getfd`); its `return` value."""
        request = json.dumps({"execute": command, "arguments": arguments}).encode()
        try:
            socket.send_fds(self._end, [request], [] if descriptor is None else [descriptor])
        except OSError as error:
            message = f"QMP {command}: {error}"
            raise QmpError(message) from error
        while True:
            answer = self._message(deadline)
            if "event" in answer:
                self._events.append(answer)
            elif "error" in answer:
                message = f"QMP {command}: {answer['error'].get('desc')}"
                raise QmpError(message)
            elif "return" in answer:
                return answer["return"]

    def await_event(self, name: str, deadline: float) -> dict[str, Any]:
        """The data of the next event of that name."""
        while True:
            for event in self._events:
                if event["event"] == name:
                    self._events.remove(event)
                    data: dict[str, Any] = event.get("data", {})
                    return data
            message = self._message(deadline)
            if "event" in message:
                self._events.append(message)

    def close(self) -> None:
        """Let go of the socket."""
        self._end.close()

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            self._buffer += self._receive(deadline)
        line, self._buffer = self._buffer.split(b"\n", 1)
        value = json.loads(line)
        if not isinstance(value, dict):
            message = f"QMP: no object: {line[:80]!r}"
            raise QmpError(message)
        return value

    def _receive(self, deadline: float) -> bytes:
        self._end.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._end.recv(_CHUNK)
        except OSError as error:
            message = f"QMP: no answer in time: {error}" if isinstance(error, TimeoutError) else f"QMP: {error}"
            raise QmpError(message) from error
        if not data or len(self._buffer) > _LIMIT:
            message = "QMP: QEMU closed its monitor"
            raise QmpError(message)
        return data
