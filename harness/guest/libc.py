"""The few system calls Python's own modules do not offer, through ctypes."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

# glibc has no wrappers for these two; numbers from the kernel's syscall tables, per `uname -m`.
_FINIT_MODULE = {"x86_64": 313, "aarch64": 273, "riscv64": 273, "s390x": 344, "ppc64le": 353}

_DELETE_MODULE = {"x86_64": 176, "aarch64": 106, "riscv64": 106, "s390x": 129, "ppc64le": 129}


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def mount(kind: str, place: str, flags: int) -> None:
    """mount(2) of a file system without a device. Raises OSError."""
    _checked(_libc.mount(kind.encode(), place.encode(), kind.encode(), ctypes.c_ulong(flags), None))


def finit_module(descriptor: int) -> None:
    """Insert the module that `descriptor` is open on. Raises OSError."""
    number = _FINIT_MODULE[os.uname().machine]
    _checked(_libc.syscall(ctypes.c_long(number), ctypes.c_long(descriptor), b"", ctypes.c_long(0)))


def delete_module(name: str) -> None:
    """Remove a module that nobody uses. Raises OSError."""
    number = _DELETE_MODULE[os.uname().machine]
    _checked(_libc.syscall(ctypes.c_long(number), name.encode(), ctypes.c_long(os.O_NONBLOCK)))


def reboot(command: int) -> None:
    """reboot(2) with one of the LINUX_REBOOT_CMD_* numbers. Raises OSError."""
    _checked(_libc.reboot(ctypes.c_int(command)))
