"""The packages of the guest's user space: chosen, locked and fetched like kernels are, kept whole in the store.

Order: the locked packages (cache, then repository), else the newest of each name, all or nothing, so that a locked
libc never meets an unlocked Python.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.apt import choice
from harness.apt.repository import AptClient, AptOptions, OnEvent
from harness.errors import FetchError
from harness.fetch import NotThereError, exists
from harness.model.arch import Architecture
from harness.model.lock import Lock, Package, pin
from harness.model.sources import GuestPackages
from harness.store import Store

_DEFAULT = AptOptions()


@dataclass(frozen=True, kw_only=True)
class GuestDebs:
    """Packages with their verified .deb files, in the order asked for. `substituted` says when a lock was not met."""

    packages: tuple[Package, ...]
    paths: tuple[Path, ...]
    substituted: str | None = None

    def provenance(self) -> list[dict[str, Any]]:
        """Name, version, hash and origin of each: the bill of materials of the guest."""
        return [pin(package) for package in self.packages]


def fetch_guest(
    guest: GuestPackages,
    arch: Architecture,
    store: Store,
    lock: Lock | None,
    on_event: OnEvent,
    *,
    options: AptOptions = _DEFAULT,
) -> GuestDebs:
    """The .deb files of the guest's packages for an architecture. FetchError, CacheError, ConfigError."""
    guest = guest.for_arch(arch.name)
    client = AptClient(guest.repositories, store, on_event=on_event, options=options)
    pins = lock.guest.get(arch.debian, ()) if lock else ()
    substituted = None
    # A lock made for another list of packages does not pin this one.
    if pins and sorted(package.name for package in pins) == sorted(guest.packages):
        try:
            return _fetched(client, pins)
        except NotThereError as error:
            substituted = (
                f"the locked guest packages are no longer all in the repository ({error.message}); the newest stand in"
            )
            on_event(substituted)
    return replace(_newest(guest, arch, client, store, options), substituted=substituted)


def select_guest(guest: GuestPackages, arch: Architecture, client: AptClient) -> tuple[Package, ...]:
    """The newest of each package that is in the pool, without downloading them: what a lock pins. FetchError."""
    return _newest_there(guest.for_arch(arch.name), arch, client, lambda package: exists(client.url(package)))


def _newest(
    guest: GuestPackages, arch: Architecture, client: AptClient, store: Store, options: AptOptions
) -> GuestDebs:
    key = _key(guest, arch)
    known = choice.fresh(store.entry("guest", key), options)
    if known is not None and all(store.blob(package.sha256) for package in known):
        return _fetched(client, known)
    chosen = _newest_there(guest, arch, client, lambda package: _is_fetched(client, package))
    store.put_entry("guest", key, choice.entry_of(chosen))
    return _fetched(client, chosen)


def _newest_there(
    guest: GuestPackages, arch: Architecture, client: AptClient, there: Callable[[Package], bool]
) -> tuple[Package, ...]:
    """The newest of each. A version of which one package is gone is left out for all: libpython goes with python."""
    gone: set[str] = set()
    while True:
        chosen = tuple(_first(client, name, guest, arch, gone) for name in guest.packages)
        lost = next((package for package in chosen if not there(package)), None)
        if lost is None:
            return chosen
        client.say(f"{lost.name} {lost.version} is listed in {lost.suite} but not there: trying the next")
        gone.add(lost.version)


def _is_fetched(client: AptClient, package: Package) -> bool:
    try:
        client.fetch(package)
    except NotThereError:
        return False
    return True


def _fetched(client: AptClient, packages: Sequence[Package]) -> GuestDebs:
    return GuestDebs(packages=tuple(packages), paths=tuple(client.fetch(package) for package in packages))


def _first(client: AptClient, name: str, guest: GuestPackages, arch: Architecture, gone: set[str]) -> Package:
    found = [package for package in client.named(name, guest.suites, arch.debian) if package.version not in gone]
    if not found:
        message = f"the guest's package {name} ({arch.debian}) is not in {', '.join(guest.suites)}"
        raise FetchError(message, remedy="correct `guest:` in kernels.yaml")
    return found[0]


def _key(guest: GuestPackages, arch: Architecture) -> str:
    uris = [
        [repository.uri, repository.keyring, repository.components, repository.suites]
        for repository in guest.repositories
    ]
    text = json.dumps([arch.debian, uris, guest.suites, guest.packages])
    return hashlib.sha256(text.encode()).hexdigest()[:32]
