"""A command of ours in a child that need not start Python and import everything again: a tenth of a process's cost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

# What the child has, should it hang.
_SECONDS = 200


def run(
    main: Callable[..., int], words: Sequence[str], *, cwd: Path, env: Mapping[str, str]
) -> subprocess.CompletedProcess[bytes]:
    """What `main(words)` said and returned, called in a fork of this process, in that directory and environment. What
    the interpreter reads only when it starts (PYTHON*, the locale) has no effect: for that, start a process.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if child == 0:
            os._exit(_child(main, words, cwd, env, (out.fileno(), err.fileno())))
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(list(words), os.waitstatus_to_exitcode(status), out.read(), err.read())


def _child(
    main: Callable[..., int], words: Sequence[str], cwd: Path, env: Mapping[str, str], streams: tuple[int, int]
) -> int:
    signal.alarm(_SECONDS)
    null = os.open(os.devnull, os.O_RDONLY)
    for number, descriptor in enumerate((null, *streams)):
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", errors=how) for number, how in _STREAMS)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    try:
        return main(list(words))
    except BaseException:  # as the interpreter's own end
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


_STREAMS = ((1, "strict"), (2, "backslashreplace"))
