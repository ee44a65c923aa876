"""A session over `python3 bundle.zip serve`, wherever that runs: the part that all such backends share.

A backend brings a `Served`: the channel to the command, what it said on standard error, and how to end it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from harness.errors import GuestLostError, InfrastructureError
from harness.guest.wire import Frame, WireError
from harness.model.kernel import Kernel
from harness.model.verdict import Start
from harness.session import JudgeRequest, SessionOptions
from harness.transport import Channel, ChannelClosedError, ChannelTimeoutError, question

_MAX_BLOB = 32 << 20
_JUDGE_SECONDS = 300.0
_SEND_SECONDS = 5.0
_TAIL = 4000


class Served(Protocol):
    """A running `serve` command."""

    @property
    def channel(self) -> Channel: ...

    def said(self) -> str:
        """Its standard error, or its console, so far."""

    def end(self, pid: int | None) -> None:
        """End it, whatever it does, and remove what was put there. `pid` is the command's own, where it is known."""


@dataclass(frozen=True, kw_only=True)
class MachineProvenance:
    """How a kernel that is no guest of ours came to be asked (`harness.backends.Provenance`)."""

    seconds: float
    cpus: int | None
    notes: tuple[str, ...]
    accelerator: str | None = None
    qemu: str | None = None
    start: Start | None = None


class ServedSession:
    """A `harness.backends.Backend` over a `Served`. `hello_seconds` is what it may take to come up."""

    provenance: MachineProvenance
    kernel: Kernel

    def __init__(
        self,
        kernel: Kernel,
        options: SessionOptions,
        start: Callable[[], Served],
        *,
        hello_seconds: float = 60.0,
        remedy: str | None = None,
    ) -> None:
        """Start it and take its greeting. `remedy`: how it would get the privileges it lacks. Raises GuestLostError,
        InfrastructureError.
        """
        self._options = options
        self.kernel = kernel
        self._pid: int | None = None
        started = time.monotonic()
        self._served: Served | None = start()
        try:
            hello = self.request({"op": "hello"}, seconds=hello_seconds, wanted="hello")
            self._pid = hello["privileges"]["pid"]
            self._check(hello["privileges"], remedy)
        except BaseException:
            self.close()
            raise
        guest = hello["guest"]
        source = {**kernel.source, **_state(hello)}
        self.kernel = replace(kernel, release=guest["release"], btf_sha256=guest["btf"]["sha256"], source=source)
        self.provenance = MachineProvenance(
            seconds=round(time.monotonic() - started, 3), cpus=guest["cpus"], notes=_notes(hello)
        )

    def __enter__(self) -> ServedSession:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def tell(self, *, accelerator: str, qemu: str) -> None:
        """What a backend knows besides, of a guest it has just booted."""
        self.provenance = replace(self.provenance, accelerator=accelerator, qemu=qemu, start=Start.COLD)

    def judge(
        self, request: JudgeRequest, data: bytes, on_progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """See `Backend`."""
        if len(data) > _MAX_BLOB:
            message = f"{request.name}: {len(data)} bytes are more than an object may have ({_MAX_BLOB})"
            raise InfrastructureError(message)
        seconds = self._options.judge_seconds or _JUDGE_SECONDS
        return self.request(request.message(), blob=data, seconds=seconds, wanted="facts", on_progress=on_progress)

    def close(self) -> None:
        """See `Backend`."""
        served, self._served = self._served, None
        if served is not None:
            served.end(self._pid)

    def _check(self, privileges: dict[str, Any], remedy: str | None) -> None:
        if privileges["denied"]:
            held = ", ".join(f"CAP_{name.upper()}" for name in privileges["caps"]) or "no capability that matters"
            message = f"{self.kernel.spec.id}: bpf(2) says EPERM to uid {privileges['uid']} with {held}"
            raise InfrastructureError(message, remedy=remedy or "run as root, or with CAP_BPF and CAP_PERFMON")

    def request(
        self, message: dict[str, Any], *, blob: bytes = b"", seconds: float, wanted: str,
        on_progress: Callable[[dict[str, Any]], None] = lambda _message: None,
    ) -> dict[str, Any]:  # fmt: skip
        """See `Backend`."""
        served = self._open()
        with self._losses(served, message["op"], seconds):
            return question.ask(
                served.channel, message, blob=blob, seconds=seconds, wanted=wanted, on_progress=on_progress
            )

    def send(self, message: dict[str, Any]) -> None:
        """See `Backend`."""
        self._open().channel.send(Frame(message, os.urandom(16)), time.monotonic() + _SEND_SECONDS)

    def _open(self) -> Served:
        if self._served is None:
            text = f"{self.kernel.spec.id}: the session is closed"
            raise GuestLostError(text, status="error")
        return self._served

    @contextmanager
    def _losses(self, served: Served, operation: str, seconds: float) -> Iterator[None]:
        """What can go wrong on the way, as GuestLostError."""
        try:
            yield
        except ChannelClosedError as error:
            raise self._lost(served, f"it ended during {operation!r}", "crashed") from error
        except ChannelTimeoutError as error:
            raise self._lost(served, f"no answer to {operation!r} within {seconds:g} s", "timeout") from error
        except WireError as error:
            raise self._lost(served, f"it spoke nonsense during {operation!r}: {error}", "error") from error

    def _lost(self, served: Served, message: str, status: str) -> GuestLostError:
        self.close()
        said = served.said().strip()[-_TAIL:]
        last = f": {said.splitlines()[-1]}" if said else ""
        # What ends before it greets us has not crashed on an object: it could not be started.
        status = "error" if status == "crashed" and self._pid is None else status
        return GuestLostError(f"{self.kernel.spec.id}: {message}{last}", status=status, console_tail=said)


def _state(hello: dict[str, Any]) -> dict[str, Any]:
    """What a reader of the results must know about a machine; part of its kernel's provenance."""
    guest, privileges = hello["guest"], hello["privileges"]
    known = {name: guest[name] for name in ("lockdown", "unprivileged_bpf_disabled", "taint")}
    return {**known, "uid": privileges["uid"], "capabilities": privileges["caps"]}


def _notes(hello: dict[str, Any]) -> tuple[str, ...]:
    hidden = [f"not seen for want of privilege: {words}" for words in hello["privileges"]["hidden"]]
    lockdown = hello["guest"]["lockdown"]
    locked = [f"kernel lockdown is {lockdown!r}: it may refuse what it accepts elsewhere"]
    return (*hidden, *(locked if lockdown not in (None, "none") else []))
