"""Kernels in files: on this machine (`kind: path`), or elsewhere by URL and hash (`kind: url`)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.apt.repository import AptOptions
from harness.errors import FetchError, UsageError
from harness.fetch import fetch
from harness.kernels import debs, identify, keep, modules, unpinned, vmlinux
from harness.model.kernel import Kernel, KernelSpec
from harness.model.lock import Lock
from harness.model.sources import PathSource, RemoteFile, UrlSource
from harness.store import Store

_DEFAULT = AptOptions()
select = unpinned.select
OnEvent = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class _Files:
    """A source's files on this machine."""

    vmlinuz: Path | None
    config: Path | None
    modules: Path | None
    packages: tuple[Path, ...]


def provide(
    spec: KernelSpec,
    source: PathSource | UrlSource,
    store: Store,
    lock: Lock | None,  # noqa: ARG001 - nothing to pin
    on_event: OnEvent,
    *,
    options: AptOptions = _DEFAULT,
) -> Kernel:
    """The kernel of a row, in the cache when this returns. Raises UsageError, FetchError, CacheError."""
    files = _files(source, store, on_event, offline=options.offline)
    parts = {name: _digest(path) for name, path in _named(files)}
    name = keep.key(spec.arch, spec.arch.name, parts, _listing(files.modules))
    kept = keep.kept(store, name, lambda: found(spec, files))
    return kept.kernel(spec, {"kind": source.kind, **_provenance(source), "sha256": kept.facts["vmlinuz"]})


def extra_modules(
    kernel: Kernel,
    names: Sequence[str],
    store: Store,
    on_event: OnEvent,
    *,
    options: AptOptions = _DEFAULT,
) -> modules.ModuleFiles:
    """More modules of a kernel, out of its directory or its packages."""
    source = kernel.spec.source
    assert isinstance(source, PathSource | UrlSource)
    files = _files(source, store, on_event, offline=options.offline)
    if files.packages:
        found_files, resolved = debs.module_files(debs.read(kernel.spec.id, files.packages), names, b"")
    else:
        found_files, resolved = in_directory(files.modules, names, b"", kernel.release)
    paths = {name: store.blob(store.put_bytes(data)) for name, data in found_files.items()}
    return modules.ModuleFiles(
        paths=tuple(path for name in resolved.order if (path := paths[name]) is not None),
        builtin=resolved.builtin, missing=resolved.missing,
    )  # fmt: skip


def found(spec: KernelSpec, files: _Files) -> keep.Found:
    """Read a kernel from its files. UsageError, FetchError (packages)."""
    if files.packages:
        return debs.found(spec.id, files.packages, spec.arch)
    assert files.vmlinuz is not None
    config = None if files.config is None else _read(files.config)
    return opened(spec, _read(files.vmlinuz), str(files.vmlinuz), config=config, directory=files.modules)


def opened(
    spec: KernelSpec, vmlinuz: bytes, name: str, *, config: bytes | None, directory: Path | None
) -> keep.Found:
    """The kernel in the bytes of a `vmlinuz` called `name`, with its modules in `directory`. UsageError."""
    kernel = vmlinux.unwrap(vmlinuz, name)
    keep.check_arch(kernel, vmlinuz, spec.arch, name)
    release = identify.release(vmlinuz, kernel)
    if release is None:
        message = f"{name}: this kernel does not say its release: no `Linux version` in it"
        raise UsageError(message, remedy="is it a whole kernel?")
    btf = vmlinux.extract_btf(kernel)
    files, resolved = in_directory(directory, spec.arch.boot_modules, btf or b"", release)
    return keep.Found(
        release=release, vmlinuz=vmlinuz, btf=btf, config=config or identify.config(kernel), files=files,
        resolved=resolved,
    )  # fmt: skip


def in_directory(
    directory: Path | None, names: Sequence[str], btf: bytes, release: str
) -> tuple[dict[str, bytes], modules.Resolved]:
    """ELF files and order of modules below `directory` (None: there are none). UsageError when they are of another
    release than the kernel, which would refuse them.
    """
    paths = {} if directory is None else modules.index(str(path) for path in sorted(directory.rglob("*.ko*")))
    listed = None if directory is None else next(iter(sorted(directory.rglob("modules.builtin"))), None)
    builtin = modules.builtin_by_btf(btf) if listed is None else modules.builtin_names(_read(listed))
    files: dict[str, bytes] = {}

    def load(name: str) -> bytes | None:
        if name not in paths:
            return None
        files[name] = modules.unpack(_read(Path(paths[name])), paths[name])
        built_for = identify.vermagic(files[name])
        if built_for not in (None, release):
            message = f"{paths[name]}: a module of {built_for}, the kernel is {release}"
            raise UsageError(message, remedy="name the modules of this kernel, or leave `modules` out")
        return files[name]

    return files, modules.resolve(names, builtin, load)


def _files(source: PathSource | UrlSource, store: Store, on_event: OnEvent, *, offline: bool) -> _Files:
    if isinstance(source, PathSource):
        return _Files(
            vmlinuz=source.vmlinuz, config=source.config, modules=source.modules, packages=source.packages
        )

    def here(remote: RemoteFile | None) -> Path | None:
        return None if remote is None else fetched(remote, store, on_event, offline=offline)

    packages = tuple(fetched(remote, store, on_event, offline=offline) for remote in source.packages)
    return _Files(vmlinuz=here(source.vmlinuz), config=here(source.config), modules=None, packages=packages)


def fetched(remote: RemoteFile, store: Store, on_event: OnEvent, *, offline: bool = False) -> Path:
    """A file from elsewhere, in the cache by its hash. FetchError, also when it is not what its hash says, and when it
    is not in the cache and `offline` forbids to ask.
    """
    path = store.blob(remote.sha256)
    if path is not None:
        return path
    if offline:
        message = f"{remote.url} is not in the cache"
        raise FetchError(message)
    on_event(f"downloading {remote.url}")
    with store.scratch() as directory:
        result = fetch(remote.url, directory / "file", sha256=remote.sha256)
        store.put_file(result.path, sha256=result.sha256)
    path = store.blob(remote.sha256)
    assert path is not None
    return path


def _named(files: _Files) -> Iterator[tuple[str, Path]]:
    named = {"vmlinuz": files.vmlinuz, "config": files.config}
    yield from ((name, path) for name, path in named.items() if path is not None)
    yield from ((f"package {number}", path) for number, path in enumerate(files.packages))


def _listing(directory: Path | None) -> list[tuple[str, int, int]]:
    """What tells one state of a directory of modules from another without reading it all."""
    if directory is None:
        return []
    if not directory.is_dir():
        message = f"{directory}: not a directory with modules"
        raise UsageError(message, remedy="correct `modules` in kernels.yaml")
    states = ((path, path.stat()) for path in sorted(directory.rglob("*.ko*")) if path.is_file())
    return [(str(path), state.st_size, state.st_mtime_ns) for path, state in states]


def _provenance(source: PathSource | UrlSource) -> Mapping[str, Any]:
    """Where the files are, by the names kernels.yaml has for them."""
    if isinstance(source, UrlSource):
        single = {"vmlinuz": source.vmlinuz, "config": source.config}
        urls = {name: remote.url for name, remote in single.items() if remote is not None}
        return {**urls, "packages": [{"url": item.url, "sha256": item.sha256} for item in source.packages]}
    paths = {"vmlinuz": source.vmlinuz, "config": source.config, "modules": source.modules}
    return {
        **{name: str(path) for name, path in paths.items() if path is not None},
        "packages": [{"path": str(path), "sha256": _digest(path)} for path in source.packages],
    }


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path}: cannot be read: {error.strerror}", remedy="correct the path in kernels.yaml")
