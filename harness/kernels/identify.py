"""What a kernel says about itself: its release, its configuration, its build id. Names of files are not believed."""

from __future__ import annotations

import re
import struct

from harness.kernels import vmlinux
from harness.kernels.decompress import DecompressError, decompress

# linux_banner (init/version.c), in every kernel since 1991.
_BANNER = re.compile(rb"Linux version (\d\S{2,80}) \(")
# kernel/configs.c: a gzip stream after this mark (CONFIG_IKCONFIG).
_CONFIG_START = b"IKCFG_ST"
_NT_GNU_BUILD_ID = 3


def release(vmlinuz: bytes, kernel: bytes) -> str | None:
    """What `uname -r` will say: by the banner of the unwrapped `kernel`, else by the header of the bzImage `vmlinuz`;
    None when neither says.
    """
    found = {match[1] for match in _BANNER.finditer(kernel)}
    if len(found) == 1:
        return found.pop().decode("ascii", "replace")
    return _header_release(vmlinuz)


def _header_release(vmlinuz: bytes) -> str | None:
    """Boot protocol 2.00: kernel_version, at 0x20e, is the place of a string, less 0x200."""
    if vmlinuz[0x202:0x206] != b"HdrS":
        return None
    (place,) = struct.unpack_from("<H", vmlinuz, 0x20E)
    text = vmlinuz[place + 0x200 : place + 0x200 + 200].split(b"\0")[0].decode("ascii", "replace")
    return text.split(" ")[0] or None if place else None


def config(kernel: bytes) -> bytes | None:
    """The configuration inside an unwrapped kernel (CONFIG_IKCONFIG), None when it has none."""
    start = kernel.find(_CONFIG_START + b"\x1f\x8b")
    if start < 0:
        return None
    try:
        return decompress(kernel[start + len(_CONFIG_START) :])
    except DecompressError:
        return None


def build_id(kernel: bytes) -> str | None:
    """The GNU build id of an ELF kernel in hex, None when it has none."""
    if not kernel.startswith(b"\x7fELF"):
        return None
    notes = vmlinux.elf_section(kernel, ".notes") or vmlinux.elf_section(kernel, ".note.gnu.build-id") or b""
    order = "<" if kernel[5] == 1 else ">"
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from(f"{order}3I", notes, at)
        name = notes[at + 12 : at + 12 + name_size]
        at += 12 + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and name == b"GNU\0":
            return notes[at : at + size].hex()
        at += size + 3 & ~3
    return None


def vermagic(module: bytes) -> str | None:
    """The release a module was built for (the first word of its `vermagic`), None when it does not say."""
    info = vmlinux.elf_section(module, ".modinfo") or b""
    match = re.search(rb"(?:^|\0)vermagic=(\S+)", info)
    return match[1].decode("ascii", "replace") if match else None
