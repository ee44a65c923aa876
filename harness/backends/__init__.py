"""Where a kernel is asked: the registry of backends. `KernelSpec.backend` names one.

    with open_session(kernel, options) as session:
        facts = session.judge(JudgeRequest(name="task_state"), data, on_progress)

`qemu` boots a guest of ours (`harness.session`), `virtme-ng` one of virtme-ng's over this machine's own root, `local`
asks the kernel this machine runs, `ssh` that of another. Which it was decides nothing about a verdict.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Protocol, cast

from harness.errors import ConfigError
from harness.model.kernel import Kernel
from harness.model.verdict import Start
from harness.session import JudgeRequest, SessionOptions


class Provenance(Protocol):
    """How the kernel came to be asked; None where it makes no sense. `seconds` from start to the first answer."""

    @property
    def accelerator(self) -> str | None: ...
    @property
    def qemu(self) -> str | None: ...
    @property
    def cpus(self) -> int | None: ...
    @property
    def start(self) -> Start | None: ...
    @property
    def seconds(self) -> float: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


class Backend(Protocol):
    """One kernel that answers. `close` may be called from any thread, the rest from one at a time."""

    @property
    def provenance(self) -> Provenance: ...

    @property
    def kernel(self) -> Kernel:
        """As it was given, with what only the running kernel could tell."""

    def judge(
        self, request: JudgeRequest, data: bytes, on_progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Facts (docs/facts.md). Raises GuestLostError; the session is of no use afterwards."""

    def request(
        self, message: dict[str, Any], *, blob: bytes = ..., seconds: float, wanted: str,
        on_progress: Callable[[dict[str, Any]], None] = ...,
    ) -> dict[str, Any]:  # fmt: skip
        """Any request of docs/facts.md and its answer of type `wanted`. Raises GuestLostError, as `judge`."""

    def send(self, message: dict[str, Any]) -> None:
        """A message that is not answered, for the request that another thread waits on. Raises ChannelClosedError."""

    def close(self) -> None:
        """End it and leave nothing behind."""


# Each module has `open_session(kernel, options)`; imported when asked for.
BACKENDS = {
    "qemu": "harness.backends.qemu",
    "local": "harness.backends.local",
    "ssh": "harness.backends.ssh",
    "virtme-ng": "harness.backends.virtme_ng",
}
# These ask a machine that is somebody's: there is no user space of ours to fetch, and nothing is to be disturbed.
MACHINES = frozenset({"local", "ssh"})
# These boot with a user space of ours.
NEEDS_PACKAGES = frozenset({"qemu"})


def open_session(kernel: Kernel, options: SessionOptions) -> Backend:
    """A session on the backend of the kernel's row. Raises GuestLostError when it does not come up,
    InfrastructureError when it cannot be started, ConfigError for a backend nobody knows.
    """
    module = BACKENDS.get(kernel.spec.backend)
    if module is None:
        message = f"{kernel.spec.id}: no backend is named {kernel.spec.backend!r}"
        raise ConfigError(message, remedy=f"known backends: {', '.join(BACKENDS)}")
    return cast("Backend", importlib.import_module(module).open_session(kernel, options))
