"""Where kernels come from: the registry of sources.

    kernel = provide(spec, store, lock, on_event)

`spec` is a row of kernels.yaml (`harness.config`), `store` the cache (`Store.default()`), `lock` what kernels.lock
pins or None. Whatever the source, a `Kernel` has all its files in the cache when it is returned. To look at one:
`python -m harness.kernels provide ID`.

A new source: a frozen dataclass in `harness.model.sources`, a module here with the functions of `Source`, a line in
`_SOURCES`, and its keys in `harness.source_config`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

from harness.apt.guest import select_guest
from harness.apt.repository import AptClient, AptOptions
from harness.errors import ConfigError
from harness.model.lock import Lock, Package

if TYPE_CHECKING:
    from harness.kernels.modules import ModuleFiles
    from harness.model.kernel import Kernel, KernelSpec
    from harness.model.sources import GuestPackages
    from harness.store import Store

_DEFAULT = AptOptions()
OnEvent = Callable[[str], None]


class Source(Protocol):
    """What a kind of source can do: a module of this package satisfies it."""

    def provide(
        self,
        spec: KernelSpec,
        source: Any,
        store: Store,
        lock: Lock | None,
        on_event: OnEvent,
        *,
        options: AptOptions = ...,
    ) -> Kernel:
        """See `provide` below."""

    def extra_modules(
        self, kernel: Kernel, names: Sequence[str], store: Store, on_event: OnEvent, *, options: AptOptions = ...
    ) -> ModuleFiles:
        """See `kernel_modules` below."""

    def select(
        self, spec: KernelSpec, source: Any, store: Store, on_event: OnEvent, options: AptOptions
    ) -> tuple[Package, ...]:
        """The packages to pin for this row; empty for a source whose files cannot change under their name."""


# Each is imported only when asked for: a matrix of local kernels needs no apt client.
_SOURCES = {
    "apt": "harness.kernels.apt_source",
    "path": "harness.kernels.path_source",
    "url": "harness.kernels.path_source",
    "tree": "harness.kernels.tree_source",
    "mainline": "harness.kernels.mainline_source",
    "local": "harness.kernels.machine",
    "ssh": "harness.kernels.machine",
}


def provide(
    spec: KernelSpec, store: Store, lock: Lock | None, on_event: OnEvent, *, options: AptOptions = _DEFAULT
) -> Kernel:
    """The kernel of a row, its files in the cache. `on_event` gets lines for people (what is downloaded, what is odd).

    `spec.btf` takes the place of the kernel's own. Raises FetchError, CacheError, UsageError (also for files of the
    user's that are not what they should be), ConfigError.
    """
    kernel = _source(spec).provide(spec, spec.source, store, lock, on_event, options=options)
    if spec.btf is None:
        return kernel
    # Imported when asked for, like the sources.
    external_btf = importlib.import_module("harness.kernels.external_btf")
    return cast("Kernel", external_btf.attach(kernel, spec.btf, store, on_event, offline=options.offline))


def kernel_modules(
    kernel: Kernel, names: Sequence[str], store: Store, on_event: OnEvent, *, options: AptOptions = _DEFAULT
) -> ModuleFiles:
    """More modules of a provided kernel (those boot needs are in `Kernel.modules`), with all they depend on.

    Raises FetchError, CacheError.
    """
    return _source(kernel.spec).extra_modules(kernel, names, store, on_event, options=options)


def make_lock(
    specs: Iterable[KernelSpec],
    guest: GuestPackages,
    store: Store,
    on_event: OnEvent,
    *,
    options: AptOptions = _DEFAULT,
) -> Lock:
    """Pin what each row, and the guest's user space of each architecture among them, comes to today.

    `options.max_age` says how old an index may be: choose a minute to pin what is newest now. Raises FetchError,
    CacheError, ConfigError.
    """
    rows = list(specs)
    kernels = {spec.id: _source(spec).select(spec, spec.source, store, on_event, options) for spec in rows}
    client = AptClient(guest.repositories, store, on_event=on_event, options=options)
    arches = {spec.arch.debian: spec.arch for spec in rows}
    pinned = {name: select_guest(guest, arch, client) for name, arch in sorted(arches.items())}
    return Lock(kernels={name: pins for name, pins in kernels.items() if pins}, guest=pinned)


def _source(spec: KernelSpec) -> Source:
    module = _SOURCES.get(spec.source.kind)
    if module is None:
        message = f"{spec.id}: kernels cannot come from {spec.source.kind!r}"
        raise ConfigError(message, remedy=f"known kinds: {', '.join(_SOURCES)}")
    return cast("Source", importlib.import_module(module))
