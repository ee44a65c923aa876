"""The pool's services without guests: what an object is called decides how its cell comes out. Every boot and every end
of a guest is a line of $COREMATRIX_FAKE_LOG.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from harness import judge
from harness.errors import FetchError, GuestLostError
from harness.executor.attempts import Answer
from harness.executor.local import Services
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec
from harness.model.result import CellResult
from tests.support import cells as make
from tests.support.facts import begun, evidence, facts, guard, judged, poisoned, prog, relo

NO_SUCH_KERNEL = "debian-6.12-rt-amd64"
_LOG = "2: (85) call unknown#195896080\ninvalid func unknown#195896080\n"


def _guarded() -> dict[str, Any]:
    relos = [guard(0, "task_struct.__state", 0), poisoned(1, "task_struct.__state", line=23)]
    flip = {"relo": 0, "insn": 1, "value": 1, "loaded": True, "errno": None, "survived": [[0, 9]], "visited": None}
    shown = evidence([[0, 2], [3, 9]], flips=[flip])
    return facts([prog("handle", relos=[(0, 1), (1, 2)], evidence=shown)], relos)


def _broken() -> dict[str, Any]:
    relos = [relo(0, "task_struct.pid"), poisoned(1, "thread_struct.fs", line=31, text="BPF_CORE_READ(t, fs)")]
    shown = evidence(None, [[0, 3]])
    return facts([prog("trace", loaded=False, relos=[(0, 1), (1, 2)], log=_LOG, evidence=shown)], relos)


ANSWERS = {"guarded": _guarded, "broken": _broken}


class FakeSession:
    """Answers by the object's name; `panics` loses the guest, `kills` ends the worker that asks."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel.spec.id
        log(f"boot {self._kernel}")

    def ask(self, cell: Cell, **_request: Any) -> dict[str, Any]:
        if cell.object.name == "panics":
            raise GuestLostError("the kernel panicked", console_tail="Kernel panic - not syncing")
        if cell.object.name == "kills":
            os._exit(3)
        return ANSWERS[cell.object.name]()

    def close(self) -> None:
        log(f"end {self._kernel}")


def log(line: str) -> None:
    with Path(os.environ["COREMATRIX_FAKE_LOG"]).open("a") as file:
        file.write(f"{os.getpid()} {line}\n")


def _provide(spec: KernelSpec, _say: Any) -> Kernel:
    if spec.id == NO_SUCH_KERNEL:
        message = f"{spec.id} is not to be had"
        raise FetchError(message)
    return make.kernel(spec)


def _blank(cell: Cell) -> CellResult:
    return begun(cell.kernel.id, cell.object.name, settings=cell.settings, loader=cell.loader)


def _conclude(cell: Cell, _kernel: Kernel, _session: object, answer: Answer) -> CellResult:
    if answer.facts is None:
        assert answer.lost is not None
        return judge.lost(_blank(cell), answer.lost)
    return judged(answer.facts, cell=_blank(cell))


def services() -> Services:
    return Services(
        provide=_provide,
        open_session=lambda kernel, _say: FakeSession(kernel),
        conclude=_conclude,
        give_up=lambda cell, _kernel, error: judge.lost(_blank(cell), error),  # type: ignore[arg-type]
    )
