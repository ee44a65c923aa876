"""BPF objects that Debian ships, none of them ours: `python -m tests.corpus.fetch` fetches and lists them.

Packages come through the house's own apt client, verified by hash; the objects in them are kept in the cache by
content, and the list (`corpus.json` beside it) says which package and file each comes from. Nothing of it is ever
committed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

from harness.apt.deb import scan
from harness.apt.packages import Package
from harness.apt.repository import AptClient
from harness.errors import CorematrixError, FetchError
from harness.model.sources import AptRepository
from harness.store import Store
from tests.corpus.elf_find import find_objects

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ("bookworm", "trixie", "sid")
_DEBIAN = AptRepository(name="debian", uri="http://deb.debian.org/debian", keyring=_KEYRING, suites=SUITES)

# Packages that hold BPF objects, found by looking into whatever depends on libbpf1 or is named for BPF. systemd, perf,
# bpftool, QEMU and others embed skeletons in executables and libraries; the rest install files.
PACKAGES = (
    "libbpf-tools", "xdp-tools", "xdp-tests", "libxdp1", "systemd", "systemd-container", "libsystemd-shared",
    "linux-perf", "linux-perf-*", "bpftool", "bpftrace", "ir-keytable", "qemu-system-x86", "suricata", "libknot13",
    "libknot15", "libknot16", "dnsdist", "bpfilter", "libbpfilter0", "opensnitch-ebpf-modules", "udev-hid-bpf",
    "bpftune", "libbpftune0", "oar-common", "pmacct", "mimic", "fastnetmon", "rsched", "rtc-testbench",
    "network-manager", "pcp", "bpftop", "nsd", "stalld", "golang-github-cilium-ebpf-dev", "librte-net-tap23",
    "librte-net-tap25", "librte-net-tap26", "iproute2", "passt",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CorpusObject:
    """One distinct object: `name` for people, `sha256` where it lies in the store, `package`, `version` and `suite` it
    was first seen in, `file` in that package.
    """

    name: str
    sha256: str
    size: int
    package: str
    version: str
    suite: str
    file: str


def fetch_all(store: Store, suites: tuple[str, ...] = SUITES) -> list[CorpusObject]:
    """Every distinct object of PACKAGES in the suites, fetched as needed. FetchError when nothing can be had."""
    client = AptClient([_DEBIAN], store, on_event=_say)
    found: dict[str, CorpusObject] = {}
    for suite in suites:
        for package in _packages(client, suite):
            for corpus_object in _objects_of(client, store, package, suite):
                found.setdefault(corpus_object.sha256, corpus_object)
    if not found:
        message = "no BPF object found in any package"
        raise FetchError(message)
    return _named(sorted(found.values(), key=lambda one: (one.package, one.file, one.sha256)))


def _packages(client: AptClient, suite: str) -> Iterator[Package]:
    """The newest version of each package of the list that the suite has (of the versioned linux-perf-X only what
    linux-perf is).
    """
    seen = set()
    for glob in PACKAGES:
        for package in (
            client.matching(glob, [suite], "amd64") if "*" in glob else client.named(glob, [suite], "amd64")[:1]
        ):
            if package.name not in seen and not package.name.endswith("-dbg"):
                seen.add(package.name)
                yield package


def _objects_of(client: AptClient, store: Store, package: Package, suite: str) -> list[CorpusObject]:
    """The objects of one package, from the store's note when it was looked into before."""
    key = f"{package.name}_{package.version}_{package.sha256[:16]}"
    known = store.entry("corpus", key)
    if known is None or any(store.blob(row["sha256"]) is None for row in known["objects"]):
        with client.fetched(package) as path:
            rows = [asdict(one) for one in _extract(store, package, suite, path)]
        _say(f"{package}: {len(rows)} objects")
        store.put_entry("corpus", key, {"objects": rows})
        known = {"objects": rows}
    return [CorpusObject(**row) for row in known["objects"]]


def _extract(store: Store, package: Package, suite: str, path: Path) -> Iterator[CorpusObject]:
    seen = set()
    for member in scan(path, lambda _name: True).values():
        for number, data in enumerate(find_objects(member.data or b"")):
            digest = hashlib.sha256(data).hexdigest()
            if digest in seen:
                continue
            seen.add(digest)
            store.put_bytes(data)
            stem = PurePosixPath(member.name).name
            name = stem if number == 0 else f"{stem}#{number}"
            yield CorpusObject(
                name=name,
                sha256=digest,
                size=len(data),
                package=package.name,
                version=package.version,
                suite=suite,
                file=member.name,
            )


def _named(objects: list[CorpusObject]) -> list[CorpusObject]:
    """Names made unique: package, suite and file say where an object is from."""
    return [
        CorpusObject(**{**asdict(one), "name": f"{one.suite}/{one.package}/{one.name}"})
        for one in objects
    ]  # fmt: skip


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def main(arguments: list[str]) -> int:
    """Fetch, then list on stdout as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus.fetch", description=__doc__)
    parser.add_argument("--suite", action="append", choices=SUITES)
    options = parser.parse_args(arguments)
    try:
        with Store.default() as store:
            objects = fetch_all(store, tuple(options.suite or SUITES))
    except CorematrixError as error:
        _say(str(error))
        return error.exit_status
    sys.stdout.write(json.dumps([asdict(one) for one in objects], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
