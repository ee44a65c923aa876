"""Dask's client, as far as a run needs it: who is there, calls on workers, tasks and what came of them.

What Dask says for itself (its loggers, which write to standard error) goes to a file, which is made when there is
something to say: a run says in its own words what happened, and `--quiet` and `--json -` mean what they say.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.errors import CorematrixError, InfrastructureError, UsageError

_CONNECT_SECONDS = 30.0
_CALL_SECONDS = 60.0
# For results of a few cells, together; whose worker hangs just then is asked alone, and longer.
_GATHER_SECONDS = 10.0
_CLOSE_SECONDS = 5.0
_SPEAKERS = ("asyncio", "distributed", "tornado")

# A task under way, as Dask knows it.
Future = Any


class Connection:
    """A connection to a scheduler; any thread may use it. UsageError without Dask, InfrastructureError when the
    scheduler cannot be reached. `log` is the file for what Dask says.
    """

    def __init__(self, address: str, log: Path) -> None:
        try:
            import distributed
        except ImportError as error:
            message = "--executor dask: Dask distributed is not installed"
            raise UsageError(message, remedy="pip install 'corematrix[cluster]'") from error
        _redirect(log)
        # Other versions of Dask on the workers are told when they come (cluster.py).
        warnings.filterwarnings("ignore", category=distributed.versions.VersionMismatchWarning)
        try:
            self._client = _client_class(distributed)(address, timeout=_CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError, TypeError, RuntimeError) as error:
            message = f"--scheduler {address}: cannot be reached: {error}"
            remedy = "start one with `dask scheduler`, or correct the address; for tls:// see docs/cluster.md"
            raise InfrastructureError(message, remedy=remedy) from error

    @property
    def closed(self) -> bool:
        """Whether Dask has given the scheduler up."""
        return bool(self._client.status == "closed")

    @property
    def connected(self) -> bool:
        """Whether the scheduler is there, be it that it does not answer; else Dask is trying to reach it again."""
        return bool(self._client.status == "running")

    def close(self) -> None:
        """Leave the scheduler."""
        with suppress(Exception):
            self._client.close(timeout=_CLOSE_SECONDS)

    def workers(self, *, seconds: float) -> dict[str, int]:
        """Slots by worker's address. Raises what Dask raises when the scheduler does not answer within `seconds`."""
        return dict(self._client.sync(self._client.scheduler.ncores, callback_timeout=seconds))

    # --- calls

    def call(self, function: Callable[..., Any], *arguments: Any, workers: Sequence[str], seconds: float) -> Any:
        """Call a function on workers, in their event loops' thread: address -> what it returned, or the exception."""
        return self._client.sync(
            self._client._run, function, *arguments, workers=list(workers), on_error="return", callback_timeout=seconds
        )

    def ask(self, function: Callable[..., Any], *arguments: Any, worker: str) -> Any:
        """As `call`, of one worker; an exception is returned, also where the worker is gone or too slow."""
        try:
            return self.call(function, *arguments, workers=[worker], seconds=_CALL_SECONDS).get(worker)
        except Exception as error:  # Dask's own errors have no common base
            return error

    # --- tasks

    def submit(self, function: Callable[..., Any], *arguments: Any, worker: str, key: str) -> Future:
        """Begin a task on that worker and no other."""
        return self._client.submit(
            function, *arguments, workers=[worker], allow_other_workers=False, pure=False, retries=0, key=key
        )

    def gather(self, futures: Sequence[Future]) -> dict[int, Any]:
        """What tasks returned, by `id` of the future: one round trip for all that have finished. Of the others, and of
        all where it cannot be had at once, there is nothing.
        """
        sound = [future for future in futures if future.status == "finished"]
        with suppress(Exception):
            answers = self._client.sync(self._client._gather, sound, callback_timeout=_GATHER_SECONDS)
            if isinstance(answers, list) and len(answers) == len(sound):
                return dict(zip(map(id, sound), answers, strict=True))
        return {}

    def outcome(self, future: Future) -> Any:
        """What one task returned, or the exception that says why there is nothing: its worker went, it was cancelled
        with the scheduler, or it failed outside our code. Waits up to a minute.
        """
        try:
            return future.result(timeout=_CALL_SECONDS)
        except Exception as error:
            return error

    def cancel(self, futures: Sequence[Future]) -> None:
        """Give tasks up: those that have not begun never will."""
        with suppress(Exception):  # nobody may be left to be told
            self._client.cancel(list(futures))


def _client_class(distributed: Any) -> Any:
    """Dask's client, but it is closed by `Connection.close` alone: one that never came to a connection would wait for a
    minute when it is thrown away, and then write a traceback.
    """
    return type("Client", (distributed.Client,), {"__del__": lambda _self: None})


def failure(worker: str, answer: Any) -> CorematrixError | None:
    """None for a call that returned nothing, as it should; else what went wrong."""
    if isinstance(answer, CorematrixError) or answer is None:
        return answer
    return InfrastructureError(f"worker {worker}: {type(answer).__name__}: {answer}")


class _LogFile(logging.Handler):
    """Opened for each record: there are few, and none when nothing went wrong."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = path
        self.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(f"{self.format(record)}\n")


def _redirect(log: Path) -> None:
    """Let Dask's loggers write there and not to the terminal; what the user has configured otherwise stays."""
    handler = _LogFile(log)
    names = {name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _SPEAKERS}
    for logger in map(logging.getLogger, sorted(names | set(_SPEAKERS))):
        ours = [one for one in logger.handlers if _is_terminal(one) or isinstance(one, _LogFile)]
        for one in ours:
            logger.removeHandler(one)
        if ours or logger.name in _SPEAKERS:
            logger.addHandler(handler)
            logger.propagate = False


def _is_terminal(handler: logging.Handler) -> bool:
    """Whether it writes to one of our own streams."""
    streams = (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)
    return isinstance(handler, logging.StreamHandler) and handler.stream in streams
