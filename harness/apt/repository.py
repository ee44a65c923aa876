"""An apt client: suites -> verified indexes -> verified packages. All that is learnt is kept in the store.

How fresh an index is: one younger than `max_age` is used as it is; an older one is asked for again, and used after
all when the repository cannot be reached (which is said). A lock file needs no index at all. `offline` never asks.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import hashlib
import lzma
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import fetch
from harness.apt import packages, release
from harness.apt.packages import PackageIndex
from harness.apt.release import IndexFile, Release
from harness.errors import ConfigError, FetchError
from harness.model.lock import Package
from harness.model.sources import AptRepository
from harness.store import Store

OnEvent = Callable[[str], None]
_MAX_RELEASE_BYTES = 8 << 20
_MAX_INDEX_BYTES = 512 << 20


@dataclass(frozen=True, kw_only=True)
class AptOptions:
    """`max_age` in seconds is how long an index stays good; `strict_valid_until` makes a passed Valid-Until an error;
    `offline` allows nothing that is not in the store."""

    max_age: float = 6 * 3600.0
    strict_valid_until: bool = False
    offline: bool = False


def _quiet(_event: str) -> None:
    return None


_DEFAULT = AptOptions()


class AptClient:
    """The suites of some repositories, each suite served by the repository that lists it."""

    def __init__(
        self,
        repositories: Sequence[AptRepository],
        store: Store,
        *,
        on_event: OnEvent = _quiet,
        options: AptOptions = _DEFAULT,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._repositories = tuple(repositories)
        self._store = store
        self._on_event = on_event
        self._options = options
        self._clock = clock

    def say(self, event: str) -> None:
        """Pass a line for people on."""
        self._on_event(event)

    def packages(self, suite: str, arch: str) -> list[PackageIndex]:
        """The indexes of a suite, one for each component; `arch` is Debian's name. FetchError, ConfigError."""
        repository = self._serving(suite)
        found = self._release(repository, suite)
        return [self._index(repository, suite, found, component, arch) for component in repository.components]

    def named(self, name: str, suites: Sequence[str], arch: str) -> list[Package]:
        """All versions of the package `name` in the suites, newest first."""
        return packages.newest(
            package for suite in suites for index in self.packages(suite, arch) for package in index.named(name)
        )

    def matching(self, glob: str, suites: Sequence[str], arch: str) -> list[Package]:
        """All packages whose name matches the glob in the suites, newest first."""
        return packages.newest(
            package for suite in suites for index in self.packages(suite, arch) for package in index.matching(glob)
        )

    def url(self, package: Package) -> str:
        """Where the package lies."""
        return f"{self.repository(package.repository).uri.rstrip('/')}/{package.filename}"

    def repository(self, name: str) -> AptRepository:
        """The repository of this name; ConfigError when there is none."""
        for repository in self._repositories:
            if repository.name == name:
                return repository
        message = f"no repository {name!r} among {', '.join(repository.name for repository in self._repositories)}"
        raise ConfigError(message, remedy="add it to `repositories:` in kernels.yaml")

    def fetch(self, package: Package) -> Path:
        """The verified .deb, from the store when it is there; it is kept. NotThereError, FetchError, CacheError."""
        stored = self._store.blob(package.sha256)
        if stored is None:
            with self._store.lock(f"deb {package.sha256}"):
                stored = self._store.blob(package.sha256) or self._download(package)
        return stored

    def _download(self, package: Package) -> Path:
        with self.fetched(package) as path:
            self._store.put_file(path, sha256=package.sha256)
        stored = self._store.blob(package.sha256)
        assert stored is not None
        return stored

    @contextlib.contextmanager
    def fetched(self, package: Package) -> Iterator[Path]:
        """The verified .deb while the context lasts: from the store if it is there, else downloaded and not kept."""
        stored = self._store.blob(package.sha256)
        if stored is not None:
            yield stored
            return
        self._online(f"{package} is not in the cache")
        self._on_event(f"downloading {package.name} {package.version} ({package.size / 1e6:.1f} MB)")
        with self._store.scratch() as scratch:
            got = fetch.fetch(self.url(package), scratch / "package.deb", sha256=package.sha256, size=package.size)
            yield got.path

    def _serving(self, suite: str) -> AptRepository:
        for repository in self._repositories:
            if suite in repository.suites:
                return repository
        message = f"no repository serves the suite {suite!r}"
        raise ConfigError(message, remedy="add it to the `suites` of a repository in kernels.yaml")

    def _online(self, why: str) -> None:
        if self._options.offline:
            message = f"{why}, and this is an offline run"
            raise FetchError(message, remedy="run `corematrix kernels fetch` with a network first")

    # --- Release

    def _release(self, repository: AptRepository, suite: str) -> Release:
        source = f"{repository.uri.rstrip('/')}/dists/{suite}/InRelease"
        key = _key(repository, suite)
        known = self._store.entry("release", key)
        stored = _stored_release(known)
        if stored is not None and known is not None:
            age = self._clock() - float(known["checked"])
            if self._options.offline or 0 <= age < self._options.max_age:
                return stored
        self._online(f"the index of {suite} is not in the cache")
        try:
            with self._store.lock(f"release {key}"):
                stored = _stored_release(self._store.entry("release", key))
                return self._new_release(repository, suite, source, key, stored)
        except fetch.UnreachableError as error:
            if stored is None:
                raise
            self._on_event(f"{suite}: using the index of {stored.date:%Y-%m-%d}, since: {error.message}")
            return stored

    def _new_release(
        self, repository: AptRepository, suite: str, source: str, key: str, stored: Release | None
    ) -> Release:
        with self._store.scratch() as scratch:
            path = fetch.fetch(source, scratch / "InRelease", max_bytes=_MAX_RELEASE_BYTES).path
            found = release.verify(path, Path(repository.keyring), source=source, scratch=scratch)
        release.check_suite(found, suite, source)
        # The newest date seen outlives the index itself: `kernels prune` keeps entries.
        release.check_replay(found, stored.date if stored else None, source)
        late = release.expired(found, datetime.fromtimestamp(self._clock(), UTC))
        if late and self._options.strict_valid_until:
            message = f"{source}: {late}"
            raise FetchError(message, remedy="name a mirror that is up to date, or do without --strict-valid-until")
        if late:
            self._on_event(f"{suite}: {late}")
        self._store.put_entry("release", key, {**found.to_json(), "checked": self._clock(), "source": source})
        return found

    # --- Packages

    def _index(self, repository: AptRepository, suite: str, found: Release, component: str, arch: str) -> PackageIndex:
        stem = f"{component}/binary-{arch}/Packages"
        listed = [found.files[stem + suffix] for suffix in _UNPACK if stem + suffix in found.files]
        if not listed:
            message = f"{repository.uri}: {suite} has no packages for {component}, {arch}"
            raise FetchError(message, remedy="correct `suites`, `components` or `arch` in kernels.yaml")
        file = listed[0]
        table = self._table(file)
        if table is None:
            self._online(f"the package index of {suite} is not in the cache")
            with self._store.lock(f"index {file.sha256}"):
                table = self._table(file) or self._new_table(repository, suite, found, file)
        return PackageIndex(table, repository=repository.name, suite=suite)

    def _table(self, file: IndexFile) -> Path | None:
        known = self._store.entry("packages", f"{file.sha256}-{packages.TABLE_VERSION}")
        return None if known is None else self._store.blob(known["table"])

    def _new_table(self, repository: AptRepository, suite: str, found: Release, file: IndexFile) -> Path:
        root = f"{repository.uri.rstrip('/')}/dists/{suite}"
        self._on_event(f"reading the package index of {suite} ({file.size / 1e6:.1f} MB)")
        with self._store.scratch() as scratch:
            path = _fetch_index(root, found, file, scratch / "Packages")
            text = _unpacked(path, file, f"{root}/{file.path}")
            table = self._store.put_bytes(packages.make_table(text, f"{root}/{file.path}"))
        self._store.put_entry("packages", f"{file.sha256}-{packages.TABLE_VERSION}", {"table": table, "suite": suite})
        stored = self._store.blob(table)
        assert stored is not None
        return stored


def _key(repository: AptRepository, suite: str) -> str:
    return hashlib.sha256(f"{repository.uri.rstrip('/')}\n{suite}\n{repository.keyring}".encode()).hexdigest()[:32]


def _stored_release(known: dict[str, Any] | None) -> Release | None:
    if known is None:
        return None
    try:
        float(known["checked"])
        return Release.from_json(known)
    except (KeyError, TypeError, ValueError):
        return None


def _fetch_index(root: str, found: Release, file: IndexFile, dest: Path) -> Path:
    """By hash where that is offered: while a mirror is updated, the name may already hold the next index."""
    if found.by_hash:
        with contextlib.suppress(fetch.NotThereError):
            url = f"{root}/{Path(file.path).parent}/by-hash/SHA256/{file.sha256}"
            return fetch.fetch(url, dest, sha256=file.sha256, size=file.size).path
    return fetch.fetch(f"{root}/{file.path}", dest, sha256=file.sha256, size=file.size).path


def _unpacked(path: Path, file: IndexFile, source: str) -> bytes:
    """The index's text, at most _MAX_INDEX_BYTES of it."""
    opener = _UNPACK[Path(file.path).suffix]
    try:
        with opener(path) as stream:
            text: bytes = stream.read(_MAX_INDEX_BYTES + 1)
    except (lzma.LZMAError, EOFError, OSError) as error:
        message = f"{source}: cannot be decompressed: {error}"
        raise FetchError(message) from error
    if len(text) > _MAX_INDEX_BYTES:
        message = f"{source}: decompresses to more than {_MAX_INDEX_BYTES} bytes (a bomb?)"
        raise FetchError(message)
    return text


# In order of preference.
_UNPACK: dict[str, Callable[[Path], Any]] = {
    ".xz": lzma.open,
    ".gz": gzip.open,
    ".bz2": bz2.open,
    "": lambda path: path.open("rb"),
}
