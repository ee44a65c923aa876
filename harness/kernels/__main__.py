"""`python -m harness.kernels provide ID...`: one stage alone. Kernels as JSON on stdout, what happens on stderr."""

from __future__ import annotations

import json
import sys
from typing import TextIO

from harness.errors import CorematrixError
from harness.kernels import provide
from harness.kernels.debian import debian_spec
from harness.model.kernel import Kernel
from harness.model.sources import AptRepository, GuestPackages
from harness.store import Store

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DEBIAN = (
    AptRepository(
        name="debian", uri="http://deb.debian.org/debian", keyring=_KEYRING,
        suites=("bullseye", "bookworm", "trixie", "trixie-backports"),
    ),
    AptRepository(
        name="debian-security", uri="http://deb.debian.org/debian-security", keyring=_KEYRING,
        suites=("bullseye-security", "bookworm-security", "trixie-security"),
    ),
)  # fmt: skip
GUEST = GuestPackages(
    repositories=DEBIAN, suites=("bookworm", "bookworm-security"),
    packages=(
        "libc6", "libexpat1", "libffi8", "libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal",
        "zlib1g", "libbpf1", "libelf1",
    ),
)  # fmt: skip


def main(arguments: list[str], out: TextIO, err: TextIO) -> int:
    """Provide each kernel named; the exit status of the first that cannot be had."""
    if len(arguments) < 2 or arguments[0] != "provide":
        err.write("usage: python -m harness.kernels provide ID...\n")
        return 2
    with Store.default() as store:
        for identity in arguments[1:]:
            try:
                kernel = provide(debian_spec(identity, DEBIAN), store, None, lambda line: _say(err, line))
            except CorematrixError as error:
                _say(err, str(error))
                return error.exit_status
            out.write(json.dumps(_facts(kernel), indent=1) + "\n")
    return 0


def _say(err: TextIO, line: str) -> None:
    err.write(line + "\n")


def _facts(kernel: Kernel) -> dict[str, object]:
    return {
        "id": kernel.spec.id, "release": kernel.release, "vmlinuz": str(kernel.vmlinuz), "config": str(kernel.config),
        "modules": [str(path) for path in kernel.modules], "btf": str(kernel.btf), "btf_sha256": kernel.btf_sha256,
        "source": kernel.source, "substituted": kernel.substituted,
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout, sys.stderr))
