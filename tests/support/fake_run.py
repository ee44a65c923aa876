"""`corematrix run` in a process of its own, whose guests are none: `python -m tests.support.fake_run ASKED AT run ...`.

Each cell asked for becomes a line of ASKED, and the process kills itself (SIGKILL) at the AT-th step of writing
results: each write and each rename is one; 0 for never. The number of steps is the last line on standard error.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import cli
from harness.boot import GuestPackages
from harness.executor.judging import Judging
from harness.executor.local import Services
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec
from tests.support import cells as make
from tests.support.facts import evidence, facts, prog


class Guest:
    """One program, loaded, of whatever object."""

    def __init__(self, asked: Path) -> None:
        self._asked = asked

    def ask(self, cell: Cell, **_request: Any) -> dict[str, Any]:
        with self._asked.open("a") as file:
            file.write(f"{cell.id}\n")
        return facts([prog("p", log="processed 3 insns", evidence=evidence([[0, 32]]))])

    def close(self) -> None:
        pass


class Killer:
    """Counts steps; the process does not survive number `at`."""

    def __init__(self, at: int) -> None:
        self.steps = 0
        self._at = at

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stepped(*arguments: Any, **others: Any) -> Any:
            self.steps += 1
            if self.steps == self._at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **others)

        return stepped


def provide(judging: Judging, spec: KernelSpec) -> Kernel:
    """A kernel, and the packages of its guests."""
    package = {"name": f"python-for-{spec.arch.name}", "version": "3", "sha256": "1" * 64}
    judging.adopt_packages(spec.arch.name, GuestPackages(paths=(), provenance=(package,)))
    return make.kernel(spec)


def main(asked: str, at: str, *words: str) -> int:
    killer = Killer(int(at))
    Judging.services = lambda self: Services(  # type: ignore[method-assign]
        provide=lambda spec, _say: provide(self, spec), open_session=lambda _kernel, _say: Guest(Path(asked)),
        conclude=self._conclude, give_up=self._give_up,
    )  # fmt: skip
    Path.replace, Path.write_text = killer.before(Path.replace), killer.before(Path.write_text)  # type: ignore[method-assign]
    status = cli.main(words)
    sys.stderr.write(f"steps {killer.steps}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
