"""Where kernels come from: the registry of sources.

    kernel = provide(spec, store, lock, on_event)

`spec` is a row of kernels.yaml (`harness.config`), `store` the cache (`Store.default()`), `lock` what kernels.lock
pins or None. Whatever the source, a `Kernel` has all its files in the cache when it is returned. To look at one:
`python -m harness.kernels provide ID`.

A new source: a frozen dataclass in `harness.model.sources`, a module here with a function `provide(spec, source,
store, lock, on_event, options)`, a line in `_SOURCES`, and its keys in `harness.config`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from harness.apt.repository import AptOptions
from harness.errors import ConfigError

if TYPE_CHECKING:
    from harness.model.kernel import Kernel, KernelSpec
    from harness.model.lock import Lock
    from harness.store import Store

_DEFAULT = AptOptions()


def _apt(spec: KernelSpec, *rest: Any, **options: Any) -> Kernel:
    from harness.kernels import apt_source

    return apt_source.provide(spec, cast("Any", spec.source), *rest, **options)


# Each imports its module only when asked: a matrix of local kernels needs no apt client.
_SOURCES: dict[str, Callable[..., Kernel]] = {"apt": _apt}


def provide(
    spec: KernelSpec,
    store: Store,
    lock: Lock | None,
    on_event: Callable[[str], None],
    *,
    options: AptOptions = _DEFAULT,
) -> Kernel:
    """The kernel of a row, its files in the cache. `on_event` gets lines for people (what is downloaded, what is odd).

    Raises FetchError, CacheError, ConfigError.
    """
    source = _SOURCES.get(spec.source.kind)
    if source is None:
        message = f"{spec.id}: kernels cannot come from {spec.source.kind!r}"
        raise ConfigError(message, remedy=f"known kinds: {', '.join(_SOURCES)}")
    return source(spec, store, lock, on_event, options=options)
