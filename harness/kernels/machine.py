"""Kernels that already run somewhere: there is nothing to fetch, and nothing is known before the machine is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness.apt.repository import AptOptions
from harness.errors import UsageError
from harness.kernels import unpinned
from harness.kernels.modules import ModuleFiles
from harness.model.kernel import Kernel, KernelSpec
from harness.model.lock import Lock
from harness.model.machines import LocalSource, SshSource
from harness.store import Store

_DEFAULT = AptOptions()
select = unpinned.select


def provide(
    spec: KernelSpec,
    source: LocalSource | SshSource,
    store: Store,  # noqa: ARG001 - nothing is kept of a machine
    lock: Lock | None,  # noqa: ARG001
    on_event: Callable[[str], None],  # noqa: ARG001
    *,
    options: AptOptions = _DEFAULT,  # noqa: ARG001
) -> Kernel:
    """A kernel without files; its session fills in the release and the BTF's hash when the machine has answered."""
    where = {"host": str(source.target)} if isinstance(source, SshSource) else {}
    return Kernel(
        spec=spec, release="", vmlinuz=None, vmlinuz_sha256="", config=None, modules=(), btf=None, btf_sha256=None,
        source={"kind": source.kind, **where},
    )  # fmt: skip


def extra_modules(
    kernel: Kernel,
    names: Sequence[str],  # noqa: ARG001
    store: Store,  # noqa: ARG001
    on_event: Callable[[str], None],  # noqa: ARG001
    *,
    options: AptOptions = _DEFAULT,  # noqa: ARG001
) -> ModuleFiles:
    """None are ever inserted into a machine that is not ours. Raises UsageError."""
    message = f"{kernel.spec.id}: no modules are inserted into a running machine"
    raise UsageError(message, remedy="insert them there yourself, or take a kernel that boots in a guest")
