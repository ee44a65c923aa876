"""The kinds of kernel source, as kernels.yaml spells them. Data only: the code that fetches lives in
`harness.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class AptRepository:
    """An apt repository (`repositories:` in kernels.yaml); `keyring` verifies its InRelease.

    `suites` are those it serves: a kernel names suites only, and each belongs to the repository that lists it.
    """

    name: str
    uri: str
    keyring: str
    components: tuple[str, ...] = ("main",)
    suites: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AptSource:
    """A kernel package chosen from suites, each served by the one of `repositories` that lists it (Debian keeps its
    security suites in an archive of their own).

    `package` is a glob over package names (`linux-image-6.1.*-cloud-amd64`); the newest version that matches is taken.
    """

    kind: ClassVar[str] = "apt"
    repositories: tuple[AptRepository, ...]
    suites: tuple[str, ...]
    package: str


@dataclass(frozen=True, kw_only=True)
class GuestPackages:
    """What the guest's user space is made of (`guest:` in kernels.yaml): packages of the guest's architecture."""

    repositories: tuple[AptRepository, ...]
    suites: tuple[str, ...]
    packages: tuple[str, ...]
