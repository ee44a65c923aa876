"""The kinds of kernel source, as kernels.yaml spells them. Data only: the code that fetches lives in
`harness.kernels`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, kw_only=True)
class AptRepository:
    """An apt repository (`repositories:` in kernels.yaml); `keyring` verifies its InRelease."""

    name: str
    uri: str
    keyring: str
    components: tuple[str, ...] = ("main",)


@dataclass(frozen=True, kw_only=True)
class AptSource:
    """A kernel package chosen from `suite`s of a repository: by glob, or by version prefix and variant.

    `package` is a glob over package names (`linux-image-6.1.*-cloud-amd64`); the newest version that matches is taken.
    """

    kind: ClassVar[str] = "apt"
    repository: AptRepository
    suites: tuple[str, ...]
    package: str
