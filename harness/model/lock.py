"""Packages, and kernels.lock, which pins them: a run of tomorrow boots what today's did. Sorted JSON, for `git diff`.

    {"lock": 1,
     "kernels": {"debian-6.1-cloud-amd64": [{"name": ..., "version": ..., "arch": ..., "filename": ...,
                                             "size": ..., "sha256": ..., "repository": ..., "suite": ...}, ...]},
     "guest": {"amd64": [...]}}

`filename` is below the repository's root: a mirror may change without the lock. Package lists name every package
used, the kernel's own first.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from harness.errors import ConfigError

_VERSION = 1
_REMEDY = "make it anew with `corematrix kernels lock`"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A binary package as an index describes it. `size` in bytes, `filename` below the repository's root.

    `repository` (its name in kernels.yaml) and `suite` say where it was found; `depends` is the text of Pre-Depends
    and Depends.
    """

    name: str
    version: str
    arch: str
    filename: str
    size: int
    sha256: str
    depends: str = ""
    repository: str = ""
    suite: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.arch})"


_FIELDS = tuple(item.name for item in fields(Package) if item.name != "depends")


@dataclass(frozen=True, kw_only=True)
class Lock:
    """What is pinned: packages by kernel id, and by Debian architecture for the guest's user space."""

    kernels: Mapping[str, tuple[Package, ...]] = field(default_factory=dict)
    guest: Mapping[str, tuple[Package, ...]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text."""
        sections = {
            name: {key: [pin(package) for package in pins] for key, pins in value.items()}
            for name, value in (("kernels", self.kernels), ("guest", self.guest))
        }
        return json.dumps({"lock": _VERSION, **sections}, indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, file: str) -> Lock:
        """The lock in a file's text; `file` is what messages call it. ConfigError when it is none."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            message = f"{file}: not JSON: {error}"
            raise ConfigError(message, remedy=_REMEDY) from error
        if not isinstance(value, dict) or value.get("lock") != _VERSION:
            message = f"{file}: not a lock file of version {_VERSION}"
            raise ConfigError(message, remedy=_REMEDY)
        return cls(**{section: _section(file, section, value.get(section, {})) for section in ("kernels", "guest")})


def _section(file: str, section: str, value: Any) -> dict[str, tuple[Package, ...]]:
    if not isinstance(value, dict):
        message = f"{file}: {section}: expected a mapping"
        raise ConfigError(message, remedy=_REMEDY)
    pinned = {}
    for key, pins in value.items():
        try:
            pinned[key] = tuple(unpin(item) for item in pins)
        except (TypeError, KeyError, ValueError) as error:
            message = f"{file}: {section}.{key}: not a list of pinned packages ({error!r})"
            raise ConfigError(message, remedy=_REMEDY) from error
    return pinned


def pin(package: Package) -> dict[str, Any]:
    """What a lock (and a report) says about a package."""
    return {key: value for key, value in asdict(package).items() if key in _FIELDS}


def unpin(value: Mapping[str, Any]) -> Package:
    """The package a pin describes. KeyError, TypeError or ValueError when it is none."""
    texts = {key: value[key] for key in _FIELDS if key != "size"}
    size = value["size"]
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(size, int):
        raise TypeError(value)
    path = texts["filename"].split("/")
    if not re.fullmatch(r"[0-9a-f]{64}", texts["sha256"]) or ".." in path or path[0] == "" or size < 0:
        raise ValueError(value)
    return Package(size=size, **texts)
