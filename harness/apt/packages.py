"""Packages indexes, parsed once per hash into a table that is searched without being parsed again.

A Packages file of a whole distribution is 50 MB of stanzas; of each we need seven fields. They are kept as one line
per package, tab-separated, sorted by name: looking up a name is a search for newline, name, tab in a memory map
(milliseconds).
"""

from __future__ import annotations

import fnmatch
import mmap
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.apt.version import version_key
from harness.errors import FetchError
from harness.model.lock import Package

# Bump when the table's layout changes: it is part of the cache's key.
TABLE_VERSION = 1
_FIELDS = (b"Package", b"Version", b"Architecture", b"Filename", b"Size", b"SHA256", b"Pre-Depends", b"Depends")
# One expression checks a whole row: 60,000 of them go through it. A file name stays below the root and names no scheme.
_ROW = re.compile(
    rb"[a-z0-9][a-z0-9+.\-]*\t[^\s]+\t[a-z0-9\-]+\t(?:(?!\.\.?/)[^/\s:]+/)*[^/\s:]+\t\d{1,15}\t[0-9a-f]{64}\t[^\t\n]*\n"
)


def make_table(packages: bytes, source: str) -> bytes:
    """The text of a Packages file -> the table. `source` is for messages. FetchError when it makes no sense."""
    rows = sorted(_row(b"\n" + stanza, source) for stanza in packages.split(b"\n\n") if stanza.strip())
    return b"\n" + b"".join(rows)


def _row(stanza: bytes, source: str) -> bytes:
    *columns, pre_depends, depends = [_value(stanza, b"\n" + field + b":") for field in _FIELDS]
    both = b", ".join(text for text in (pre_depends, depends) if text)
    row = b"\t".join((*columns, b" ".join(both.split()))) + b"\n"
    if not _ROW.fullmatch(row):
        message = f"{source}: the stanza of package {columns[0].decode('ascii', 'replace')!r} makes no sense"
        raise FetchError(message, remedy="the repository is broken: name another mirror in kernels.yaml")
    return row


def _value(stanza: bytes, key: bytes) -> bytes:
    """A field's value with its continuation lines. `find` is several times faster here than any expression."""
    start = stanza.find(key)
    if start < 0:
        return b""
    end = stanza.find(b"\n", start + 1)
    while end >= 0 and stanza[end + 1 : end + 2] in (b" ", b"\t"):
        end = stanza.find(b"\n", end + 1)
    return stanza[start + len(key) : end if end >= 0 else None].strip()


class PackageIndex:
    """One Packages table (`make_table`) of one suite, component and architecture."""

    def __init__(self, table: Path, *, repository: str, suite: str) -> None:
        self._table = table
        self._repository = repository
        self._suite = suite

    def named(self, name: str) -> list[Package]:
        """All versions of a package."""
        return self._matching(re.escape(name))

    def matching(self, glob: str) -> list[Package]:
        """All packages whose name matches a shell glob (`fnmatch`)."""
        # The translation is anchored to a whole string; here the tab after the name is the anchor.
        pattern = fnmatch.translate(glob).removeprefix("(?s:").removesuffix(")\\Z")
        return [
            package
            for package in self._matching(pattern.replace(".*", "[^\t\n]*"))
            if fnmatch.fnmatchcase(package.name, glob)
        ]

    def _matching(self, pattern: str) -> list[Package]:
        with self._table.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as table:
            literal = re.match(r"[a-z0-9]*", pattern.replace("\\-", "-"))
            prefix = literal.group().encode() if literal else b""
            found = re.compile(b"^" + pattern.encode() + b"\t.*$", re.MULTILINE)
            return [self._package(line) for line in _lines(table, found, prefix)]

    def _package(self, line: bytes) -> Package:
        name, version, arch, filename, size, sha256, depends = line.decode("utf-8", "replace").split("\t")
        return Package(
            name=name, version=version, arch=arch, filename=filename, size=int(size), sha256=sha256, depends=depends,
            repository=self._repository, suite=self._suite,
        )  # fmt: skip


def _lines(table: mmap.mmap, pattern: re.Pattern[bytes], prefix: bytes) -> Iterator[bytes]:
    """Matching lines among the block whose names begin with `prefix` (the table is sorted)."""
    start = table.find(b"\n" + prefix) if prefix else 0
    if start < 0:
        return
    end = table.rfind(b"\n" + prefix) if prefix else len(table)
    end = table.find(b"\n", end + 1)
    for match in pattern.finditer(table, start + 1, end if end > 0 else len(table)):
        yield match.group()


def newest(packages: Iterable[Package]) -> list[Package]:
    """Newest version first; equal versions in the order given."""
    return sorted(packages, key=lambda package: version_key(package.version), reverse=True)
