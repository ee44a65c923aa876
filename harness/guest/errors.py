"""What can be wrong with an object, a BTF or a relocation, as one tree; nothing else may escape from hostile input.

    GuestError                 stage, errno, place
    ├── ObjectError            stage open: the object file cannot be used
    │   ├── NotElf             no ELF at all
    │   ├── NotBpf             an ELF, but not a relocatable BPF object
    │   ├── WrongEndian        BPF code for the other byte order
    │   ├── MalformedElf       headers, sections or symbols that contradict themselves
    │   ├── MalformedBtf       .BTF (the object's or a target's)
    │   ├── MalformedBtfExt    .BTF.ext
    │   └── Unsupported        something libbpf refuses too (legacy maps, a static entry function)
    ├── ExternError            stage externs: a Kconfig or ksym extern that libbpf would refuse
    ├── CoreError              stage core: a CO-RE relocation for which libbpf gives up on the object
    └── MapError               stage maps: a map definition that libbpf would refuse, or that the kernel refused

`errno` is the number libbpf returns in that case (its own LIBBPF_ERRNO__* from 4000 up), None where there is no such
case.
"""

from __future__ import annotations

EPERM, ENOENT, ESRCH, E2BIG, ENOMEM, EINVAL, ERANGE, ENOTSUP = 1, 2, 3, 7, 12, 22, 34, 95
LIBBPF_ERRNO__FORMAT = 4001  # libbpf_legacy.h: enum libbpf_errno starts at 4000
LIBBPF_ERRNO__KVERSION = 4002
LIBBPF_ERRNO__ENDIAN = 4003
LIBBPF_ERRNO__RELOC = 4005


class GuestError(Exception):
    """Base: `str()` is one sentence that names the place; `stage` and `errno` are what the facts report."""

    stage = "open"
    errno: int | None = EINVAL

    def __init__(self, message: str, errno: int | None = None) -> None:
        Exception.__init__(self, message)
        self.message = message
        if errno is not None:
            self.errno = errno


class ObjectError(GuestError):
    """The object file cannot be used."""


class NotElf(ObjectError):
    """The file is no ELF."""

    errno = LIBBPF_ERRNO__FORMAT


class NotBpf(ObjectError):
    """An ELF that is not a relocatable object for BPF (bpf_object__elf_init)."""

    errno = LIBBPF_ERRNO__FORMAT


class WrongEndian(ObjectError):
    """BPF code in the other byte order than asked for."""

    errno = LIBBPF_ERRNO__ENDIAN


class MalformedElf(ObjectError):
    """An ELF that contradicts itself; the message names section, symbol or header."""

    errno = LIBBPF_ERRNO__FORMAT


class MalformedBtf(ObjectError):
    """A BTF that contradicts itself; the message names type id or header field."""


class MalformedBtfExt(ObjectError):
    """A .BTF.ext that contradicts itself. libbpf ignores the section then, with a warning, unless BTF is required."""


class Unsupported(ObjectError):
    """Valid, but refused by libbpf as well."""

    errno = ENOTSUP


class ExternError(GuestError):
    """An extern that libbpf would refuse; `name` is the extern's, `missing` says that it was not found at all."""

    stage = "externs"

    def __init__(
        self, message: str, errno: int | None = None, name: str | None = None, missing: bool = False
    ) -> None:
        GuestError.__init__(self, message, errno)
        self.name = name
        self.missing = missing


class CoreError(GuestError):
    """A relocation for which libbpf fails the whole object; `reason` is one word (ambiguous, mismatch, ...)."""

    stage = "core"

    def __init__(self, message: str, errno: int | None = None, reason: str = "invalid") -> None:
        GuestError.__init__(self, message, errno)
        self.reason = reason


class MapError(GuestError):
    """A map definition that libbpf or the kernel refuses; `name` is the map's."""

    stage = "maps"

    def __init__(self, message: str, errno: int | None = None, name: str | None = None) -> None:
        GuestError.__init__(self, message, errno)
        self.name = name
