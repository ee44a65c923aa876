"""The initramfs: user land, guest bundle, and one kernel's modules, configuration and (where it has none itself) BTF.

The archive is not compressed: the kernel copies it once, and inflating under emulation would take longer than reading
it. Same inputs, same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.image import cpio
from harness.image.closure import UserLand
from harness.payload import Bundle

MODULES = "usr/lib/corematrix/modules"
BUNDLE = "bundle.zip"
START = "start.py"
# Run as a file and not as `python3 bundle.zip`: that way imports runpy and its friends first.
_START = b"import sys\nsys.path.insert(0, '/bundle.zip')\nfrom guest.__main__ import main\nmain()\n"


@dataclass(frozen=True, kw_only=True)
class KernelFiles:
    """What of a kernel goes into its guest. `modules` in insmod order; `btf` only for a kernel without BTF of its
    own.
    """

    release: str
    modules: tuple[Path, ...]
    config: Path | None = None
    btf: Path | None = None


def init_arguments(program: str) -> tuple[str, tuple[str, ...]]:
    """The kernel's `rdinit=` and what follows `--`, for the user land's Python: isolated (-I), without site (-S)."""
    return program, ("-I", "-S", f"/{START}")


def build(user_land: UserLand, bundle: Bundle, kernel: KernelFiles) -> bytes:
    """The whole initramfs as bytes. Raises OSError when a kernel's file cannot be read."""
    return cpio.archive({**user_land.files, **_ours(bundle), **_kernel(kernel), **_skeleton()})


def _ours(bundle: Bundle) -> Mapping[str, cpio.Entry]:
    return {BUNDLE: cpio.file(bundle.data), START: cpio.file(_START)}


def _kernel(kernel: KernelFiles) -> Mapping[str, cpio.Entry]:
    files = {
        f"{MODULES}/{number:02}-{path.name}": cpio.file(path.read_bytes()) for number, path in enumerate(kernel.modules)
    }
    if kernel.config is not None:
        # Where libbpf looks for it too (bpf_object__read_kconfig_file).
        files[f"boot/config-{kernel.release}"] = cpio.file(kernel.config.read_bytes())
    if kernel.btf is not None:
        files[f"boot/vmlinux-{kernel.release}"] = cpio.file(kernel.btf.read_bytes())
    return files


def _skeleton() -> Mapping[str, cpio.Entry]:
    """Mount points, and the two devices needed before devtmpfs is there: the kernel's /dev/console for PID 1, and the
    random numbers Python seeds its hashes with before any of our code runs.
    """
    places = {place: cpio.directory() for place in ("dev", "proc", "sys", "tmp", MODULES)}
    return {**places, "dev/console": cpio.character_device(5, 1), "dev/urandom": cpio.character_device(1, 9)}
