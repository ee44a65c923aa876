"""kernels.lock: exact packages, so that a run of tomorrow boots what today's did. JSON, sorted, made for `git diff`.

    {"lock": 1,
     "kernels": {"debian-6.1-cloud-amd64": [{"name": ..., "version": ..., "arch": ..., "filename": ..., "size": ..., "sha256": ...,
                                             "repository": ..., "suite": ...}, ...]},
     "guest": {"amd64": [...]}}

`filename` is below the repository's root: a mirror may change without the lock. Package lists name every package used, the
kernel's own first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from harness.apt.packages import Package
from harness.errors import ConfigError

_VERSION = 1
_FIELDS = tuple(item.name for item in fields(Package) if item.name != "depends")


@dataclass(frozen=True, kw_only=True)
class Lock:
    """What is pinned: packages by kernel id, and by Debian architecture for the guest's user space."""

    kernels: Mapping[str, tuple[Package, ...]] = field(default_factory=dict)
    guest: Mapping[str, tuple[Package, ...]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The file's text."""
        sections = {name: {key: [pin(package) for package in pins] for key, pins in value.items()}
                    for name, value in (("kernels", self.kernels), ("guest", self.guest))}  # fmt: skip
        return json.dumps({"lock": _VERSION, **sections}, indent=1, sort_keys=True) + "\n"


def pin(package: Package) -> dict[str, Any]:
    """What a lock (and a report) says about a package."""
    return {key: value for key, value in asdict(package).items() if key in _FIELDS}


def read_lock(path: Path) -> Lock | None:
    """The lock in a file; None when there is no such file. ConfigError when it is not one."""
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        message = f"{path}: cannot be read: {error}"
        raise ConfigError(message, remedy="make it anew with `corematrix kernels lock`") from error
    if not isinstance(value, dict) or value.get("lock") != _VERSION:
        message = f"{path}: not a lock file of version {_VERSION}"
        raise ConfigError(message, remedy="make it anew with `corematrix kernels lock`")
    return Lock(**{section: _section(path, section, value.get(section, {})) for section in ("kernels", "guest")})


def _section(path: Path, section: str, value: Any) -> dict[str, tuple[Package, ...]]:
    try:
        return {str(key): tuple(unpin(item) for item in pins) for key, pins in value.items()}
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        message = f"{path}: {section}: not a list of pinned packages: {error!r}"
        raise ConfigError(message, remedy="make it anew with `corematrix kernels lock`") from error


def unpin(value: Mapping[str, Any]) -> Package:
    """The package a pin describes. KeyError, TypeError or ValueError when it is none."""
    texts = {key: value[key] for key in _FIELDS if key != "size"}
    if not all(isinstance(text, str) for text in texts.values()) or not isinstance(value["size"], int):
        raise TypeError(value)
    if len(texts["sha256"]) != 64 or ".." in texts["filename"].split("/") or texts["filename"].startswith("/"):
        raise ValueError(value)
    return Package(size=value["size"], **texts)
