"""The request loop of a guest: frames in, frames out (docs/facts.md)."""

from __future__ import annotations

import os
import sys

from .wire import Decoder, Frame, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from .port import Port


# Objects made before the collector looks for cycles, of which judging makes hardly any; CPython's own 700 has it look
# at each turn.
_GARBAGE = 20_000

# <linux/random.h>: RNDADDENTROPY credits the bytes, RNDRESEEDCRNG (4.17) makes the generator take them up now. As with
# perf's (attach_perf.py), powerpc puts an ioctl's direction elsewhere.
_RANDOM = (0x40085203, 0x5207)
_RANDOM_OF = {"ppc64le": (0x80085203, 0x20005207)}
# Meant for the command of an `exec` that has ended meanwhile.
_FOR_A_COMMAND = ("input", "signal")


class PowerOff(Exception):
    """The host asked the guest to end."""


class Server:
    """Answers requests on one port until told to power off. `machine` is what `judge.Machine.survey` returned."""

    def __init__(self, port: Port, machine: Any) -> None:
        self._port = port
        self._machine = machine
        self._decoder = Decoder()
        self._operations: dict[str, Callable[[Frame], dict[str, Any]]] = {
            "hello": self._hello,
            "warm": self._warm,
            "judge": self._judge,
            "modules": self._modules,
            "exec": self._exec,
            "poweroff": self._power_off,
        }

    def serve(self) -> None:
        """Answer requests in turn; returns when asked to power off. Raises WireError when the host speaks nonsense."""
        if self._port.kind == "tty":
            # A UART drops what comes before its driver listens: the host waits for this.
            self._port.write(encode(Frame({"type": "ready"})))
        try:
            for frame in self._requests():
                self._send(frame, self._answer(frame))
        except PowerOff:
            return

    def _requests(self) -> Iterator[Frame]:
        decoder = self._decoder
        while True:
            decoder.feed(self._port.read())
            frame = decoder.take()
            while frame is not None:
                if frame.message.get("op") not in _FOR_A_COMMAND:
                    yield frame
                frame = decoder.take()

    def _answer(self, frame: Frame) -> dict[str, Any]:
        operation = self._operations.get(str(frame.message.get("op")))
        try:
            if operation is None:
                raise ValueError("no operation named %r" % (frame.message.get("op"),))
            return operation(frame)
        except PowerOff:
            raise
        except Exception:  # a bug of ours: told to the host, which calls it `error`; the guest lives on
            return {"type": "fault", "traceback": _traceback()}

    def _send(self, request: Frame, message: dict[str, Any]) -> None:
        self._port.write(encode(Frame(message, request.nonce)))

    def _hello(self, frame: Frame) -> dict[str, Any]:
        _set_clock(frame.message)
        guest = self._machine.facts() if self._machine is not None else {}
        return {"type": "hello", "guest": guest, "port": self._port.kind}

    def _warm(self, frame: Frame) -> dict[str, Any]:
        """Before it is saved: import all that requests may need (`modules`), judge the object in the blob `rounds`
        times, the facts thrown away (what it takes is then specialised, parsed and read), and let the garbage collector
        forget what will stay, so that no restored guest has to do any of it."""
        import gc

        for name in frame.message.get("modules", ()):
            __import__(str(name))
        rounds = frame.message.get("rounds", 0)
        if rounds:
            self._machine.prepare()
        for _ in range(rounds):
            self._judge(frame)
            self._machine.await_gone()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        return {"type": "warm"}

    def _judge(self, frame: Frame) -> dict[str, Any]:
        from .judge import judge

        return judge(self._machine, frame.blob, frame.message, lambda message: self._send(frame, message))

    def _modules(self, frame: Frame) -> dict[str, Any]:
        """Keep modules of this kernel for those ways of attaching that need them; none is inserted yet."""
        offset = 0
        for item in frame.message["files"]:
            self._machine.spare_modules[item["name"]] = frame.blob[offset : offset + item["size"]]
            offset += item["size"]
        return {"type": "modules"}

    def _exec(self, frame: Frame) -> dict[str, Any]:
        from .execute import WORK

        return self._execute(frame, WORK)

    def _execute(self, frame: Frame, work: str) -> dict[str, Any]:
        from .execute import Execution, repl

        def send(message: dict[str, Any]) -> None:
            self._send(frame, message)

        try:
            return Execution(frame, self._port, self._decoder, send, lambda: repl(self._machine, work), work).run()
        finally:
            if self._machine is not None:
                self._machine.refresh()

    def _power_off(self, _frame: Frame) -> dict[str, Any]:
        raise PowerOff


def _traceback() -> str:
    import traceback

    return traceback.format_exc()


def _set_clock(message: dict[str, Any]) -> None:
    """A restored guest believes it is still the moment it was saved, and its random numbers are those of its twins:
    take the host's time (`time_ns`), and its `entropy` (hex) into the pool, which reseeds the generator.
    """
    if "time_ns" in message:
        import time

        time.clock_settime_ns(time.CLOCK_REALTIME, message["time_ns"])
    if "entropy" in message:
        _add_entropy(bytes.fromhex(message["entropy"]))


def _add_entropy(seed: bytes) -> None:
    import fcntl
    import struct

    add, reseed = _RANDOM_OF.get(os.uname().machine, _RANDOM)
    descriptor = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, add, struct.pack("=ii", len(seed) * 8, len(seed)) + seed)
        fcntl.ioctl(descriptor, reseed)
    except OSError as error:
        sys.stderr.write("corematrix: entropy not taken: %s\n" % error)
    finally:
        os.close(descriptor)
