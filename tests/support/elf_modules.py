"""Kernel modules and kernels made to order: the smallest ELF with named sections, and the wrappings around it."""

from __future__ import annotations

import struct
from collections.abc import Mapping

# e_machine of x86-64 (elf.h)
_X86_64 = 62


def elf_of(sections: Mapping[str, bytes]) -> bytes:
    """A relocatable ELF64 file, little endian, that has these sections and nothing else."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in (*sections, ".shstrtab"))
    body, headers = b"", [bytes(64)]
    for name, data in (*sections.items(), (".shstrtab", names)):
        kind = 3 if name == ".shstrtab" else 1  # SHT_STRTAB, SHT_PROGBITS
        place = names.index(b"\0" + name.encode() + b"\0") + 1
        headers.append(struct.pack("<IIQQQQIIQQ", place, kind, 0, 0, 64 + len(body), len(data), 0, 0, 1, 0))
        body += data
    start = 64 + len(body)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH", 1, _X86_64, 1, 0, 0, start, 0, 64, 0, 0, 64, len(headers), len(headers) - 1
    )
    return header + body + b"".join(headers)


def module_of(name: str, *depends: str) -> bytes:
    """A module with a .modinfo as modpost writes it."""
    info = [f"license=GPL\0name={name}\0".encode(), f"depends={','.join(depends)}\0".encode()]
    return elf_of({".modinfo": b"".join(info), ".text": b"\xc3"})


def btf_of(strings: bytes = b"\0int\0", types: bytes = bytes(16), order: str = "<") -> bytes:
    """BTF with a header that adds up."""
    return struct.pack(f"{order}HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def bzimage_of(payload: bytes, setup_sectors: int = 4) -> bytes:
    """An x86 bzImage around a compressed payload (boot protocol 2.08 and later)."""
    offset = 0x123
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", setup, 0x248, offset, len(payload))
    return bytes(setup) + bytes(offset) + payload + bytes(77)


def image_of(content: bytes, magic: bytes = b"ARM\x64") -> bytes:
    """An arm64 (or riscv, by its magic) Image: 64 bytes of header, then the kernel."""
    header = bytearray(64)
    header[:2] = b"MZ"
    header[0x38:0x3C] = magic
    return bytes(header) + content


def zboot_of(payload: bytes) -> bytes:
    """An EFI zboot file around a compressed Image."""
    header = bytearray(512)
    header[:2] = b"MZ"
    header[4:8] = b"zimg"
    struct.pack_into("<II", header, 8, 512, len(payload))
    return bytes(header) + payload
