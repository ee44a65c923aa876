"""Kernels from an apt repository: select packages, fetch them verified, keep what a guest needs of them.

Order: the locked kernel from the cache, the locked packages from the repository, the newest that matches and can be
had (`substituted`, in words), else FetchError. An index can list what the pool no longer holds (seen on
bullseye-security's mirror): the next newest is taken then, and that is said too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from harness.apt import choice
from harness.apt.repository import AptClient, AptOptions, OnEvent
from harness.errors import FetchError
from harness.fetch import NotThereError, exists
from harness.kernels import debs, keep, modules
from harness.model.kernel import Kernel, KernelSpec
from harness.model.lock import Lock, Package, pin, unpin
from harness.model.sources import AptSource
from harness.store import Store

_PREFIX = re.compile(r"linux-(?:image|binary|modules|base)(?:-unsigned)?-")
_DEFAULT = AptOptions()


def provide(
    spec: KernelSpec,
    source: AptSource,
    store: Store,
    lock: Lock | None,
    on_event: OnEvent,
    *,
    options: AptOptions = _DEFAULT,
) -> Kernel:
    """The kernel of a row, in the cache when this returns. Raises FetchError, CacheError, ConfigError."""
    row = _row(spec, source, store, on_event, options)
    pins = lock.kernels.get(spec.id) if lock else None
    if not pins:
        return row.newest()
    try:
        return row.kernel(pins)
    except NotThereError as error:
        gone = f"locked {pins[0].name} {pins[0].version} is no longer in the repository"
        on_event(f"{spec.id}: {gone} ({error.message})")
    kernel = row.newest()
    stand_in = f"{kernel.source['package']} {kernel.source['version']}"
    return replace(kernel, substituted=f"{gone}; {stand_in} stands in")


def select(
    spec: KernelSpec, source: AptSource, store: Store, on_event: OnEvent, options: AptOptions
) -> tuple[Package, ...]:
    """The packages of the newest kernel that matches and is in the pool, without downloading them: what a lock pins."""
    row = _row(spec, source, store, on_event, options)
    for packages in row.candidates():
        if all(exists(row.client.url(package)) for package in packages):
            return packages
    why = "what the index lists is not in the pool"
    raise row.nothing(why)


def extra_modules(
    kernel: Kernel, names: Sequence[str], store: Store, on_event: OnEvent, *, options: AptOptions = _DEFAULT
) -> modules.ModuleFiles:
    """More modules of a kernel, with what they depend on, from its own packages (downloaded again when need be)."""
    source = cast("AptSource", kernel.spec.source)
    packages = tuple(unpin(value) for value in kernel.source["packages"])
    row = _row(kernel.spec, source, store, on_event, options)
    return row.modules(packages, tuple(name.replace("-", "_") for name in names))


def _row(spec: KernelSpec, source: AptSource, store: Store, on_event: OnEvent, options: AptOptions) -> _Row:
    client = AptClient(source.repositories, store, on_event=on_event, options=options)
    return _Row(spec=spec, source=source, store=store, client=client, options=options)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the matrix with what it takes to provide it."""

    spec: KernelSpec
    source: AptSource
    store: Store
    client: AptClient
    options: AptOptions

    def newest(self) -> Kernel:
        """The newest kernel that matches and can be had; without asking the index when that was done a moment ago."""
        key = self._selection_key()
        chosen = choice.fresh(self.store.entry("selection", key), self.options)
        if chosen is not None and self.store.tree("kernel", self.key(chosen)):
            return self.kernel(chosen)
        gone = 0
        for packages in self.candidates():
            try:
                kernel = self.kernel(packages)
            except NotThereError:
                gone += 1
                listed = f"{packages[0].name} {packages[0].version}"
                self.client.say(
                    f"{self.spec.id}: {listed} is listed in {packages[0].suite} but not there: trying the next"
                )
                continue
            self.store.put_entry("selection", key, choice.entry_of(packages))
            return kernel
        raise self.nothing(f"{gone} are listed and none can be had" if gone else "the index lists none")

    def nothing(self, why: str) -> FetchError:
        """What to raise when no package will do."""
        where = f"{self.source.package} ({self.spec.arch.debian}) in {', '.join(self.source.suites)}"
        message = f"{self.spec.id}: no package {where}: {why}"
        return FetchError(message, remedy="correct `package` and `suites` in kernels.yaml, or remove the row")

    def candidates(self) -> Iterator[tuple[Package, ...]]:
        """Kernels that match, newest first, each as all the packages it is split into."""
        seen: set[tuple[str, str]] = set()
        for package in self.client.matching(self.source.package, self.source.suites, self.spec.arch.debian):
            if (package.name, package.version) not in seen:
                seen.add((package.name, package.version))
                yield self._with_parts(package)

    def _with_parts(self, package: Package) -> tuple[Package, ...]:
        """The package and those it is split into: dependencies that bear the same kernel release in their name.

        Debian cut linux-image-V into -binary-V, -modules-V and -base-V with 6.19; Ubuntu has linux-modules-V.
        """
        parts = {package.name: package}
        absent: set[str] = set()
        queue = [package]
        while queue:
            parent = queue.pop(0)
            release = _PREFIX.sub("", parent.name, count=1)
            for name, version in _dependencies(parent.depends):
                if name not in parts and name not in absent and _PREFIX.match(name) and name.endswith(f"-{release}"):
                    found = self.client.named(name, self.source.suites, package.arch)
                    part = next((item for item in found if version in (None, item.version)), None)
                    if part is None:
                        # Debian drops -modules and -base of superseded backports but keeps the signed -binary.
                        absent.add(name)
                        self.client.say(f"{self.spec.id}: {name} is no longer in the index: done without")
                        continue
                    parts[name] = part
                    queue.append(part)
        return tuple(parts.values())

    def kernel(self, packages: Sequence[Package]) -> Kernel:
        """The kernel made of these packages, made now unless it is in the cache. NotThereError when they are gone."""
        kept = keep.kept(self.store, self.key(packages), lambda: self._make(packages))
        return kept.kernel(self.spec, self._provenance(packages))

    def key(self, packages: Sequence[Package]) -> str:
        """The kernel's name in the cache."""
        return keep.key(self.spec.arch, [package.sha256 for package in packages])

    def _provenance(self, packages: Sequence[Package]) -> dict[str, Any]:
        first = packages[0]
        return {
            "kind": "apt",
            "repository": self.client.repository(first.repository).uri,
            "suite": first.suite,
            "package": first.name,
            "version": first.version,
            "sha256": first.sha256,
            "packages": [pin(package) for package in packages],
        }

    def _make(self, packages: Sequence[Package]) -> keep.Found:
        with contextlib.ExitStack() as stack:
            paths = [stack.enter_context(self.client.fetched(package)) for package in packages]
            self.client.say(f"{self.spec.id}: unpacking {packages[0].name}")
            return debs.found(self.spec.id, paths, self.spec.arch)

    def modules(self, packages: Sequence[Package], names: tuple[str, ...]) -> modules.ModuleFiles:
        """These modules and what they need, as files; made once for each list of names."""
        wanted = hashlib.sha256(json.dumps(sorted(set(names))).encode()).hexdigest()[:16]
        key = f"{self.key(packages)}-{wanted}"
        facts, tree = self.store.entry("modules", key), self.store.tree("modules", key)
        if facts is None or tree is None:
            with contextlib.ExitStack() as stack:
                paths = [stack.enter_context(self.client.fetched(package)) for package in packages]
                files, resolved = debs.module_files(debs.read(self.spec.id, paths), names, b"")
            hashes = {f"{name}.ko": self.store.put_bytes(data) for name, data in files.items()}
            tree = self.store.put_tree("modules", key, hashes)
            facts = {"order": resolved.order, "builtin": resolved.builtin, "missing": resolved.missing}
            self.store.put_entry("modules", key, facts)
        return modules.ModuleFiles(
            paths=tuple(tree / f"{name}.ko" for name in facts["order"]),
            builtin=tuple(facts["builtin"]),
            missing=tuple(facts["missing"]),
        )

    def _selection_key(self) -> str:
        source = self.source
        uris = [[item.uri, item.keyring, item.components, item.suites] for item in source.repositories]
        text = json.dumps([self.spec.arch.debian, uris, source.suites, source.package])
        return hashlib.sha256(text.encode()).hexdigest()[:32]


def _dependencies(depends: str) -> Iterator[tuple[str, str | None]]:
    """Package names in a Depends field, each with the exact version asked for, if one is."""
    for clause in re.split(r"[,|]", depends):
        match = re.match(r"\s*([a-z0-9][a-z0-9+.\-]*)(?::\w+)?\s*(?:\(=\s*([^)\s]+)\s*\))?", clause)
        if match:
            yield match[1], match[2]
