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
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from harness.apt import deb
from harness.apt.repository import AptClient, AptOptions, OnEvent
from harness.errors import FetchError
from harness.fetch import NotThereError, exists
from harness.kernels import modules, vmlinux
from harness.model.kernel import Kernel, KernelSpec
from harness.model.lock import Lock, Package, pin, unpin
from harness.model.sources import AptSource
from harness.store import Store

# Bump when what is kept of a package changes: kernels in the cache are made anew.
_LAYOUT = 1
_PREFIX = re.compile(r"linux-(?:image|binary|modules|base)(?:-unsigned)?-")
_CONTENT = deb.glob_filter((
    "boot/vmlinuz-*", "boot/vmlinux-*", "boot/config-*", "*lib/modules/*/vmlinuz", "*lib/modules/*/config",
    "*lib/modules/*/modules.builtin", "*/kernel/drivers/virtio/*", "*/virtio_console.ko*",
))  # fmt: skip
_VMLINUZ = r"boot/vmlinu[xz]-.*|.*/vmlinuz"
_RELEASE = re.compile(r"(?:usr/)?lib/modules/([^/]+)/|boot/vmlinu[xz]-([^/]+)$")
_DEFAULT = AptOptions()


@dataclass(frozen=True, kw_only=True)
class _Content:
    """What was found in a kernel's packages: kept files by name, and the path of every module."""

    files: Mapping[str, deb.Member]
    modules: Mapping[str, str]
    release: str

    def data(self, pattern: str) -> bytes | None:
        for name, member in self.files.items():
            if re.fullmatch(pattern, name) and member.data is not None:
                return member.data
        return None


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
        chosen = _fresh_choice(self.store.entry("selection", key), self.options)
        if chosen is not None and self.store.tree("kernel", _kernel_key(chosen)):
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
            self.store.put_entry(
                "selection", key, {"checked": time.time(), "packages": [pin(package) for package in packages]}
            )
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
        key = _kernel_key(packages)
        facts, tree = self.store.entry("kernel", key), self.store.tree("kernel", key)
        if facts is None or tree is None:
            with self.store.lock(f"kernel {key}"):
                facts, tree = self.store.entry("kernel", key), self.store.tree("kernel", key)
                if facts is None or tree is None:
                    facts, tree = self._make(packages, key)
        return Kernel(
            spec=self.spec,
            release=facts["release"],
            vmlinuz=tree / "vmlinuz",
            vmlinuz_sha256=facts["vmlinuz"],
            config=tree / "config" if facts["config"] else None,
            modules=tuple(tree / "modules" / f"{name}.ko" for name in facts["modules"]),
            btf=tree / "vmlinux.btf" if facts["btf"] else None,
            btf_sha256=facts["btf"],
            source=self._provenance(packages, facts),
        )

    def _provenance(self, packages: Sequence[Package], facts: Mapping[str, Any]) -> dict[str, Any]:
        first = packages[0]
        return {
            "kind": "apt",
            "repository": self.client.repository(first.repository).uri,
            "suite": first.suite,
            "package": first.name,
            "version": first.version,
            "sha256": first.sha256,
            "packages": [pin(package) for package in packages],
            "modules_builtin": facts["builtin"],
            "modules_missing": facts["missing"],
        }

    def _make(self, packages: Sequence[Package], key: str) -> tuple[dict[str, Any], Path]:
        with contextlib.ExitStack() as stack:
            paths = [stack.enter_context(self.client.fetched(package)) for package in packages]
            self.client.say(f"{self.spec.id}: unpacking {packages[0].name}")
            content = _read(self.spec, paths)
            raw = content.data(_VMLINUZ)
            if raw is None:
                message = f"{self.spec.id}: no vmlinuz in {', '.join(package.name for package in packages)}"
                raise FetchError(message, remedy="`package` in kernels.yaml must name a kernel image")
            btf = vmlinux.extract_btf(vmlinux.unwrap(raw, packages[0].name))
            elf_files, resolved = _module_files(content, paths, modules.BOOT_MODULES, btf or b"")
        parts = {
            "vmlinuz": vmlinux.bootable(raw),
            "config": content.data(r"boot/config-.*|.*/config"),
            "vmlinux.btf": btf,
        }
        parts.update({f"modules/{name}.ko": data for name, data in elf_files.items()})
        hashes = {name: self.store.put_bytes(data) for name, data in parts.items() if data is not None}
        facts = {
            "release": content.release,
            "vmlinuz": hashes["vmlinuz"],
            "config": hashes.get("config"),
            "btf": hashes.get("vmlinux.btf"),
            "modules": list(resolved.order),
            "builtin": list(resolved.builtin),
            "missing": list(resolved.missing),
        }
        tree = self.store.put_tree("kernel", key, hashes)
        self.store.put_entry("kernel", key, facts)
        return facts, tree

    def modules(self, packages: Sequence[Package], names: tuple[str, ...]) -> modules.ModuleFiles:
        """These modules and what they need, as files; made once for each list of names."""
        wanted = hashlib.sha256(json.dumps(sorted(set(names))).encode()).hexdigest()[:16]
        key = f"{_kernel_key(packages)}-{wanted}"
        facts, tree = self.store.entry("modules", key), self.store.tree("modules", key)
        if facts is None or tree is None:
            with contextlib.ExitStack() as stack:
                paths = [stack.enter_context(self.client.fetched(package)) for package in packages]
                files, resolved = _module_files(_read(self.spec, paths), paths, names, b"")
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


def _fresh_choice(entry: dict[str, Any] | None, options: AptOptions) -> tuple[Package, ...] | None:
    """What was chosen last time, while that is not older than an index may be."""
    try:
        if entry is None or not (options.offline or 0 <= time.time() - entry["checked"] < options.max_age):
            return None
        return tuple(unpin(value) for value in entry["packages"])
    except (KeyError, TypeError, ValueError):
        return None


def _dependencies(depends: str) -> Iterator[tuple[str, str | None]]:
    """Package names in a Depends field, each with the exact version asked for, if one is."""
    for clause in re.split(r"[,|]", depends):
        match = re.match(r"\s*([a-z0-9][a-z0-9+.\-]*)(?::\w+)?\s*(?:\(=\s*([^)\s]+)\s*\))?", clause)
        if match:
            yield match[1], match[2]


def _read(spec: KernelSpec, paths: Sequence[Path]) -> _Content:
    names: list[str] = []

    def wanted(name: str) -> bool:
        names.append(name)
        return _CONTENT(name)

    files: dict[str, deb.Member] = {}
    for path in paths:
        files.update(deb.scan(path, wanted))
    releases = {match[1] or match[2] for name in names if (match := _RELEASE.match(name))}
    if len(releases) != 1:
        message = f"{spec.id}: expected one kernel in its packages, found {', '.join(sorted(releases)) or 'none'}"
        raise FetchError(message, remedy="`package` in kernels.yaml must name a kernel image")
    return _Content(files=files, modules=modules.index(names), release=releases.pop())


def _module_files(
    content: _Content, paths: Sequence[Path], names: Sequence[str], btf: bytes
) -> tuple[dict[str, bytes], modules.Resolved]:
    """The ELF files of these modules and of what they need, and their order; `btf` is the kernel's."""
    listed = content.data(r".*/modules\.builtin")
    builtin = modules.builtin_by_btf(btf) if listed is None else modules.builtin_names(listed)
    found: dict[str, bytes] = {}

    def load(name: str) -> bytes | None:
        path = content.modules.get(name)
        if path is None:
            return None
        member = content.files.get(path) or _member(paths, path)
        found[name] = modules.unpack(member.data or b"", path)
        return found[name]

    return found, modules.resolve(names, builtin, load)


def _member(paths: Sequence[Path], name: str) -> deb.Member:
    """A file that the first pass over the packages did not keep."""
    for path in paths:
        member = deb.scan(path, lambda other: other == name).get(name)
        if member is not None:
            return member
    message = f"{name} has vanished from its package"
    raise deb.DebError(message)


def _kernel_key(packages: Sequence[Package]) -> str:
    text = json.dumps([_LAYOUT, modules.BOOT_MODULES, [package.sha256 for package in packages]])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
