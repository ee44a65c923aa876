"""The command line and its one exit door: every error of ours becomes a message and the exit status its class owns."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn, TextIO, cast

from harness import __version__, ci_log, printable
from harness.errors import CorematrixError, Ended, InfrastructureError, Interrupted

# A bug of ours: EX_SOFTWARE of sysexits.h.
INTERNAL_ERROR = 70
BROKEN_PIPE = 128 + signal.SIGPIPE
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

VERBS = {
    "run": "run objects on kernels of the matrix, and report every program and CO-RE relocation",
    "inspect": "relocate an object against a BTF file: no guest, no root",
    "sweep": "relocate objects against the BTF of hundreds of kernels: no guest, no root",
    "kernels": "what the matrix holds, where it comes from, what is cached",
    "exec": "run a command in a guest of a kernel, with files of yours",
    "shell": "an interactive guest of a kernel, with the loader in it",
    "bisect": "the first kernel where a program's verdict, or a relocation's outcome, changes",
    "doctor": "what this machine can do, and the command that mends each lack",
    "diff": "what changed between two stored runs",
    "report": "a stored run in another format",
    "merge": "the shards of one run (`run --shard i/n`) put together again",
}
# A verb is a module with `add_arguments(parser)` and `run(options, stdout, stderr) -> exit status`.

_EXIT_STATUSES = """\
exit status:
  0    everything expected was met
  1    some cell failed: an expectation is broken, or something regressed
  2    the command line, a configuration file or an object cannot be used; nothing was run
  3    nothing was judged: nothing selected, or every cell skipped or not applicable
  4    trouble of ours or of this machine, and nothing failed: no QEMU, a full disk, cells without an answer
  5    as 4: a repository or URL did not give what was asked
  6    as 4: the cache cannot be used
  7    as 4: a guest died, hung or spoke nonsense
  70   a bug in corematrix (the message names a log file)
  130  interrupted
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupted)
    try:
        status = _ended(arguments)
    except SystemExit:  # argparse said its help, or what is wrong
        _flushed()
        raise
    return _flushed() or status


def _ended(arguments: Sequence[str]) -> int:
    """The exit status of a command, whatever came of it."""
    try:
        return _dispatch(arguments)
    except (KeyboardInterrupt, Interrupted):  # the first includes Ended
        _say("interrupted")
        return Interrupted.exit_status
    except CorematrixError as error:
        _say(str(error))
        return error.exit_status
    except BrokenPipeError:
        return BROKEN_PIPE
    except Exception as error:  # the last door
        if isinstance(error, OSError) and error.errno in _FULL:
            return _full(error)
        _say(f"internal error: {type(error).__name__}: {error}\n  details: {_crash_log(arguments)}")
        return INTERNAL_ERROR


def _flushed() -> int | None:
    """The exit status when what was said cannot be said to the end, None when it was. Asked here: while Python shuts
    down it would complain in its own words, and end with 120.
    """
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE if isinstance(error, BrokenPipeError) else _full(error)
    return None


def _full(error: OSError) -> int:
    _say(f"cannot write: {error.strerror}")
    return InfrastructureError.exit_status


def _speak_any_text() -> None:
    """What the output's encoding cannot express (`LC_ALL=C`, latin-1) is spelled out instead of ending the run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(arguments: Sequence[str]) -> int:
    _speak_any_text()
    verb = next((word for word in arguments if not word.startswith("-")), None)
    # Only the chosen verb is imported: `inspect` must not wait for what `run` needs.
    module = _module(verb) if verb in VERBS else None
    options = _parser(verb, module).parse_args(arguments)
    if module is None:
        raise AssertionError
    status: int = module.run(options, _stream(sys.stdout, options), _stream(sys.stderr, options))
    return status


def _stream(stream: TextIO, options: argparse.Namespace) -> TextIO:
    """What goes to a terminal goes to no CI server; `report --format github` is made of commands."""
    if stream.isatty() or getattr(options, "format", None) == "github":
        return stream
    return cast(TextIO, ci_log.SafeStream(stream))


def _module(verb: str | None) -> ModuleType:
    return importlib.import_module(f"harness.commands.{verb}")


def _parser(chosen: str | None, module: ModuleType | None) -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="corematrix",
        description="Kernel-compatibility tests for BPF CO-RE programs, on virtual machines.",
        epilog=_EXIT_STATUSES,
        formatter_class=raw,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"corematrix {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, summary in VERBS.items():
        own = verbs.add_parser(
            name, help=summary, description=summary, epilog=_EXIT_STATUSES, formatter_class=raw, allow_abbrev=False
        )
        if name == chosen and module is not None:
            module.add_arguments(own)
    return parser


def _interrupted(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)  # once is enough; the guests are being ended
    raise Ended(signal.Signals(number).name)


def _say(message: str) -> None:
    with suppress(OSError):
        sys.stderr.write(ci_log.plain(printable.lines(f"corematrix: {message}\n")))


def _crash_log(arguments: Sequence[str]) -> Path:
    """Write what a bug report needs to a file that stays."""
    import platform
    import tempfile
    import traceback

    with tempfile.NamedTemporaryFile(
        "w", prefix="corematrix-crash-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
    ) as file:
        file.write(f"corematrix {__version__}, Python {platform.python_version()}, {platform.platform()}\n")
        file.write(f"arguments: {arguments!r}\n\n{traceback.format_exc()}")
    return Path(file.name)


if __name__ == "__main__":
    sys.exit(main())
