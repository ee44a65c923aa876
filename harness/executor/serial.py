"""One guest at a time, one cell at a time, for who asks as it goes (the pytest plugin): the pool's services without
its threads.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from harness.errors import CorematrixError
from harness.executor.local import Guest, Services
from harness.model.cell import Cell
from harness.model.kernel import Kernel, KernelSpec
from harness.model.result import CellResult


class SerialExecutor:
    """Keeps the guest of the kernel asked for last; the thread that asks must outlive it (see `Session`)."""

    def __init__(self, services: Services, tell: Callable[[str, str], None]) -> None:
        """`tell` gets a kernel's identity and a line for people."""
        self._services = services
        self._tell = tell
        self._kernels: dict[str, Kernel | CorematrixError] = {}
        self._guest: Guest | None = None

    def judge(self, cell: Cell, *, retries: int = 1) -> CellResult:
        """The cell's result, whatever happens: what goes wrong is its status."""
        kernel = self._kernel(cell.kernel)
        if isinstance(kernel, CorematrixError):
            return self._services.give_up(cell, None, kernel)
        guest = self._guest_of(kernel)
        try:
            return guest.judge(cell, retries=retries, on_progress=lambda _message: None)
        except Exception as error:  # as in the pool: the cell must come out
            return self._services.give_up(cell, kernel, error)

    def close(self) -> None:
        """End the guest."""
        guest, self._guest = self._guest, None
        if guest is not None:
            with suppress(CorematrixError):
                guest.close()

    def _kernel(self, spec: KernelSpec) -> Kernel | CorematrixError:
        if spec.id not in self._kernels:
            try:
                self._kernels[spec.id] = self._services.provide(spec, lambda line: self._tell(spec.id, line))
            except CorematrixError as error:
                self._kernels[spec.id] = error
        return self._kernels[spec.id]

    def _guest_of(self, kernel: Kernel) -> Guest:
        if self._guest is None or self._guest.kernel.spec.id != kernel.spec.id:
            self.close()
            self._guest = Guest(kernel, self._services, self._tell)
        return self._guest
