"""Rows that nobody wrote down: any Debian kernel by its identity, `debian-VERSION-VARIANT-ARCH`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.errors import UsageError
from harness.model.arch import by_debian_name
from harness.model.kernel import KernelSpec
from harness.model.sources import AptRepository, AptSource

# Which suites hold a version; all later ones pass through the backports of stable, which keep several of each.
_SUITES: dict[str, tuple[str, ...]] = {
    "5.10": ("bullseye", "bullseye-security"),
    "6.1": ("bookworm", "bookworm-security"),
    "6.12": ("trixie", "trixie-security"),
}
_NEWER = ("trixie-backports",)
# What the package's name ends in. A digit before the architecture keeps the other variants out of the generic one.
_GLOBS = {"generic": "*[0-9]-{arch}", "16k": "*-{arch}-16k"}
# cortex-a57 and -a72 have no 16 KiB granule (ID_AA64MMFR0_EL1.TGran16).
_CPUS = {"16k": "cortex-a76"}
_ID = re.compile(r"debian-(\d+\.\d+)-([a-z0-9]+)-([a-z0-9]+)")


def debian_spec(identity: str, repositories: Sequence[AptRepository]) -> KernelSpec:
    """The row for an identity such as `debian-6.16-rt-arm64`, in suites that these repositories serve. UsageError."""
    match = _ID.fullmatch(identity)
    try:
        version, variant, arch = match.groups() if match else ("", "", "")
        row = by_debian_name(arch)
    except StopIteration as error:
        message = f"{identity}: not an identity of a Debian kernel"
        raise UsageError(message, remedy="debian-VERSION-VARIANT-ARCH, such as debian-6.12-rt-arm64") from error
    served = {suite for repository in repositories for suite in repository.suites}
    suites = tuple(suite for suite in _SUITES.get(version, _NEWER) if suite in served)
    glob = f"linux-image-{version}." + _GLOBS.get(variant, f"*-{variant}-{{arch}}").format(arch=arch)
    source = AptSource(repositories=tuple(repositories), suites=suites, package=glob)
    return KernelSpec(id=identity, arch=row, variant=variant, source=source, cpu=_CPUS.get(variant))
