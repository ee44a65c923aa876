"""The one exception tree. Each class owns its exit status; only `cli.main` turns one into a message and a status.

    CorematrixError
    ├── UsageError            2   the user's command line, YAML, object or BTF file
    │   └── ConfigError       2   kernels.yaml or an expectations file: carries the path to the key
    ├── NothingJudgedError    3   nothing selected, or every cell skipped or not applicable
    ├── InfrastructureError   4   our own or the machine's trouble: download, no QEMU, full disk
    │   ├── FetchError        5   a repository or URL did not give what was asked, or gave something else
    │   ├── CacheError        6   the cache cannot be written, locked or trusted
    │   └── GuestLostError    7   a guest died, hung, or spoke nonsense
    └── Interrupted         130   stopped before it was done
    KeyboardInterrupt
    └── Ended               130   SIGTERM or SIGHUP

A message says what happened, where (file and place), and what to do about it.
"""

from __future__ import annotations


class CorematrixError(Exception):
    """Base of every error meant for a user: `str()` is one clear sentence, `remedy` (optional) the next step."""

    exit_status = 4

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return self.message if self.remedy is None else f"{self.message}\n  remedy: {self.remedy}"


class UsageError(CorematrixError):
    """The command line, a file or an object given by the user cannot be used."""

    exit_status = 2


class ConfigError(UsageError):
    """A YAML file is wrong; the message names the file and the path to the key (`kernels.yaml: kernels[3].suite`)."""


class NothingJudgedError(CorematrixError):
    """No cell was judged: a green exit here would be a lie."""

    exit_status = 3


class InfrastructureError(CorematrixError):
    """Our own or the machine's trouble; never a judgement about an object."""

    exit_status = 4


class FetchError(InfrastructureError):
    """A download failed, or what came is not what was signed for."""

    exit_status = 5


class CacheError(InfrastructureError):
    """The cache directory cannot be used."""

    exit_status = 6


class GuestLostError(InfrastructureError):
    """A guest ended, hung or broke the protocol before it answered.

    `status` is the cell status it asks for (`crashed`, `timeout` or `error`), `console_tail` the last lines of its
    console.
    """

    exit_status = 7

    def __init__(
        self, message: str, *, status: str = "crashed", console_tail: str = "", remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.status = status
        self.console_tail = console_tail


class Interrupted(CorematrixError):  # noqa: N818 - named for what happened, it is not a fault
    """What was asked for was stopped before it was done."""

    exit_status = 130


class Ended(KeyboardInterrupt):
    """SIGTERM or SIGHUP came: what Ctrl-C does, and like it no `Exception`.

    A signal may come while any line runs. Within an `except Exception` of ours, or of Dask's, an ordinary exception
    would be taken for a fault of that line, and the run would go on.
    """
