"""Where this user's files lie. Read from the environment once, by the command line; everything below is given paths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from harness.errors import UsageError


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """The cache: `$COREMATRIX_CACHE`, else `$XDG_CACHE_HOME/corematrix`, else `~/.cache/corematrix`.

    The XDG base directory specification tells us to ignore a relative `XDG_CACHE_HOME`. UsageError when there is no
    home to fall back to (`HOME` unset and no passwd entry).
    """
    if own := environ.get("COREMATRIX_CACHE"):
        return Path(own).absolute()
    xdg = environ.get("XDG_CACHE_HOME", "")
    if xdg.startswith("/"):
        return Path(xdg) / "corematrix"
    home = environ.get("HOME") or _home_of_user()
    return Path(home) / ".cache" / "corematrix"


def _home_of_user() -> str:
    try:
        return str(Path("~").expanduser())
    except RuntimeError as error:
        message = "no cache directory: HOME is unset and this user has no home directory"
        raise UsageError(message, remedy="set COREMATRIX_CACHE to a directory for kernels and saved guests") from error
