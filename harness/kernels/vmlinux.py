"""From the file a boot loader takes to the kernel inside it, and to the kernel's BTF.

What is understood: x86 bzImage (Documentation/arch/x86/boot.rst), arm64 and riscv Image
(Documentation/arch/arm64/booting.rst), EFI zboot (drivers/firmware/efi/libstub/zboot-header.S), any of them
compressed as a whole, and a plain vmlinux. What is not is searched for a compressed payload, as the kernel's
scripts/extract-vmlinux does.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

from harness.errors import UsageError
from harness.kernels.decompress import MAGICS, DecompressError, decompress

# What Image has at offset 0x38 (arm64, riscv).
IMAGE_MAGICS = (b"ARM\x64", b"RSC\x05")
# An s390 bzImage says so here (arch/s390/boot/head.S); its payload is a raw kernel without any header.
_S390_MAGIC = (0x10008, b"S390EP")
_BANNER = b"Linux version "
_ELF = b"\x7fELF"
_BTF_MAGIC = 0xEB9F
_BTF_HEADER = 24
_MAX_DEPTH = 4


class VmlinuxError(UsageError):
    """The file is no kernel that can be read."""


def unwrap(data: bytes, name: str = "vmlinuz") -> bytes:
    """The innermost kernel: ELF (x86, ppc64, ...) or raw (arm64, riscv, s390x). Raises VmlinuxError."""
    if _is_s390(data):
        return data if _BANNER in data else _searched(data, name, lambda inner: _BANNER in inner)
    for _ in range(_MAX_DEPTH):
        inner = _inner(data, name)
        if inner is None:
            return data
        data = inner
    message = f"{name}: a kernel wrapped more than {_MAX_DEPTH} times"
    raise VmlinuxError(message)


def bootable(data: bytes, name: str = "vmlinuz") -> bytes:
    """What QEMU's -kernel takes: the file itself for x86 and s390x, for others what is in it (an Image, a vmlinux).

    QEMU learnt to open EFI zboot files in 8.0 and still refuses all compressions but gzip; an Image suits every
    version.
    """
    return data if data[0x202:0x206] == b"HdrS" or _is_s390(data) else unwrap(data, name)


def _is_s390(data: bytes) -> bool:
    place, magic = _S390_MAGIC
    return data.startswith(magic, place)


def extract_btf(vmlinux: bytes) -> bytes | None:
    """The raw .BTF of an unwrapped kernel, or None when it has none.

    An ELF file has a section of that name. An Image has no sections: its BTF is found by its header, whose lengths
    must add up.
    """
    if vmlinux.startswith(_ELF):
        return elf_section(vmlinux, ".BTF")
    return max(_btf_blobs(vmlinux), key=len, default=None)


def elf_section(data: bytes, name: str) -> bytes | None:
    """A section's bytes by name, None when there is none. VmlinuxError when this is not a sound ELF file."""
    # Imported here: a run whose kernels are all in the cache reads no ELF file, and elftools is slow to import.
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        section = ELFFile(io.BytesIO(data)).get_section_by_name(name)
        return None if section is None else bytes(section.data())
    except (ELFError, ValueError, KeyError, struct.error, AttributeError, OverflowError) as error:
        message = f"not a sound ELF file: {error}"
        raise VmlinuxError(message) from error


def _inner(data: bytes, name: str) -> bytes | None:
    """What is wrapped in `data`, or None when it is the innermost."""
    if data.startswith(_ELF) or data[0x38:0x3C] in IMAGE_MAGICS:
        return None
    payload = _payload(data)
    if payload is not None:
        try:
            return decompress(payload)
        except DecompressError as error:
            message = f"{name}: its payload cannot be decompressed: {error}"
            raise VmlinuxError(message) from error
    return _searched(data, name, lambda inner: inner.startswith(_ELF) or inner[0x38:0x3C] in IMAGE_MAGICS)


def _payload(data: bytes) -> bytes | None:
    """The compressed payload where the header says it is."""
    if any(data.startswith(magic) for magic in MAGICS):
        return data
    # zboot: "MZ", two bytes, "zimg", then offset and size of the payload
    if data[:2] == b"MZ" and data[4:8] == b"zimg" and len(data) >= 16:
        offset, size = struct.unpack_from("<II", data, 8)
        return data[offset : offset + size]
    # bzImage: payload_offset counts from the protected-mode code (boot protocol 2.08)
    if data[0x202:0x206] == b"HdrS" and len(data) >= 0x250:
        setup_sectors = data[0x1F1] or 4
        offset, size = struct.unpack_from("<II", data, 0x248)
        start = (setup_sectors + 1) * 512 + offset
        return data[start : start + size] if size else None
    return None


def _searched(data: bytes, name: str, is_kernel: Callable[[bytes], bool]) -> bytes:
    """The first thing inside that decompresses to a kernel."""
    for magic in MAGICS:
        start = data.find(magic)
        while start >= 0:
            try:
                inner = decompress(data[start:])
            except DecompressError:
                inner = b""
            if is_kernel(inner):
                return inner
            start = data.find(magic, start + 1)
    message = f"{name}: not a kernel: no bzImage, Image, zboot or vmlinux, and nothing compressed inside"
    raise VmlinuxError(message)


def _btf_blobs(data: bytes) -> Iterator[bytes]:
    """Everything that is BTF by its header: magic, version 1, sections that follow each other, strings between NULs."""
    for order in ("<", ">"):
        magic = struct.pack(f"{order}HBBI", _BTF_MAGIC, 1, 0, _BTF_HEADER)
        start = data.find(magic)
        while start >= 0:
            header = data[start : start + _BTF_HEADER]
            if len(header) == _BTF_HEADER:
                type_off, type_len, str_off, str_len = struct.unpack_from(f"{order}4I", header, 8)
                end = start + _BTF_HEADER + str_off + str_len
                strings = start + _BTF_HEADER + str_off
                if (
                    type_off == 0
                    and str_off == type_len
                    and str_len
                    and end <= len(data)
                    and not data[strings] | data[end - 1]
                ):
                    yield data[start:end]
            start = data.find(magic, start + 1)
