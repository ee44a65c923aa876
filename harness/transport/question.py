"""One question to a guest and its answer, over any channel: a nonce of ours, progress on the way, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from harness.guest.wire import Frame, WireError
from harness.transport import Channel

_TRACEBACK_MOST = 4000  # characters of a guest's traceback that are kept


def ask(
    channel: Channel, message: dict[str, Any], *, blob: bytes = b"", seconds: float, wanted: str,
    on_progress: Callable[[dict[str, Any]], None] = lambda _message: None,
) -> dict[str, Any]:  # fmt: skip
    """Send one request and take its answer of type `wanted`, whatever else the guest says within `seconds`.

    Raises ChannelClosedError, ChannelTimeoutError; WireError for what is no answer to this question (docs/facts.md).
    """
    deadline = time.monotonic() + seconds
    nonce = os.urandom(16)
    channel.send(Frame(message, nonce, blob), deadline)
    while True:
        answer = channel.receive(deadline)
        if answer.nonce != nonce:
            raise WireError("an answer to a question we did not ask (its nonce is not ours)")  # noqa: EM101
        kind = answer.message.get("type")
        if kind == "progress":
            on_progress(answer.message)
        elif kind == wanted:
            return answer.message
        else:
            raise WireError(unexpected(answer.message, wanted))


def unexpected(message: dict[str, Any], wanted: str) -> str:
    """In words: what came instead of a message of type `wanted`."""
    if message.get("type") == "fault":
        return f"a fault of the guest's own code: {str(message.get('traceback'))[-_TRACEBACK_MOST:]}"
    return f"{str(message.get('type'))[:40]!r} instead of {wanted!r}"
