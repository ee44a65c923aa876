"""Ubuntu's builds of mainline kernels by version, fetched by virtme-ng (`kind: mainline`, as `vng -r v6.12` does).

virtme-ng's own downloader puts packages and what is in them below ~/.cache/virtme-ng/VERSION/ARCH; what lies there is
a kernel in files (`path_source`). It comes over HTTPS and nothing else vouches for it: a `kind: url` row names hashes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from harness import proc
from harness.apt.repository import AptOptions
from harness.errors import CorematrixError, FetchError
from harness.kernels import modules, path_source, unpinned
from harness.model.kernel import Kernel, KernelSpec
from harness.model.lock import Lock
from harness.model.sources import MainlineSource, PathSource
from harness.store import Store

OnEvent = Callable[[str], None]
_DEFAULT = AptOptions()
select = unpinned.select
# virtme_ng.mainline (1.42): fetches unless boot/vmlinuz*generic is there. Its own process: it writes to the terminal.
DOWNLOAD = "import sys; from virtme_ng.mainline import KernelDownloader; KernelDownloader(*sys.argv[1:])"
_SECONDS = 3600.0
_REMEDY = "pip install virtme-ng; the versions there are: https://kernel.ubuntu.com/mainline"


def provide(
    spec: KernelSpec,
    source: MainlineSource,
    store: Store,
    lock: Lock | None,
    on_event: OnEvent,
    *,
    options: AptOptions = _DEFAULT,
) -> Kernel:
    """The kernel of a row, fetched now unless it is there. Raises FetchError, UsageError, CacheError."""
    files = _files(spec, source, on_event, offline=options.offline)
    kernel = path_source.provide(spec, files, store, lock, on_event, options=options)
    return replace(kernel, source={**kernel.source, "kind": source.kind, "version": source.version})


def extra_modules(
    kernel: Kernel,
    names: Sequence[str],
    store: Store,
    on_event: OnEvent,
    *,
    options: AptOptions = _DEFAULT,
) -> modules.ModuleFiles:
    """More modules, out of what was fetched."""
    source = kernel.spec.source
    assert isinstance(source, MainlineSource)
    files = _files(kernel.spec, source, on_event, offline=options.offline)
    as_files = replace(kernel, spec=replace(kernel.spec, source=files))
    return path_source.extra_modules(as_files, names, store, on_event, options=options)



def _files(spec: KernelSpec, source: MainlineSource, on_event: OnEvent, *, offline: bool) -> PathSource:
    directory = Path.home() / ".cache" / "virtme-ng" / source.version / spec.arch.debian
    if not _only(directory, "boot/vmlinuz*generic"):
        if offline:
            message = f"{spec.id}: {source.version} is not fetched yet"
            raise FetchError(message, remedy=f"corematrix kernels fetch -k {spec.id}")
        _fetch(spec, source, on_event)
    vmlinuz = _only(directory, "boot/vmlinuz*generic")
    if vmlinuz is None:
        message = f"{spec.id}: virtme-ng left no boot/vmlinuz*generic in {directory}"
        raise FetchError(message, remedy=_REMEDY)
    release = vmlinuz.name.removeprefix("vmlinuz-")
    config = directory / "boot" / f"config-{release}"
    places = (directory / lib / "modules" / release for lib in ("lib", "usr/lib"))
    return PathSource(
        vmlinuz=vmlinuz, config=config if config.is_file() else None,
        modules=next((place for place in places if place.is_dir()), None),
    )  # fmt: skip


def _fetch(spec: KernelSpec, source: MainlineSource, on_event: OnEvent) -> None:
    on_event(f"{spec.id}: fetching {source.version} with virtme-ng")
    words = [sys.executable, "-c", DOWNLOAD, source.version, spec.arch.debian]
    try:
        proc.run(words, timeout=_SECONDS, remedy=_REMEDY)
    except CorematrixError as error:
        message = f"{spec.id}: virtme-ng could not fetch {source.version}: {error.message}"
        raise FetchError(message, remedy=_REMEDY) from error


def _only(directory: Path, pattern: str) -> Path | None:
    """The newest of what matches: a version that was built again has two."""
    return max(directory.glob(pattern), key=lambda path: path.name, default=None)
