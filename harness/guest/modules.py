"""BTF of kernel modules, fetched from the kernel when somebody asks (libbpf's load_module_btfs())."""

from __future__ import annotations

import os

from .btf import Btf
from .errors import GuestError
from .syscall import BTF_GET_FD_BY_ID, BTF_GET_NEXT_ID, Bpf


class ModuleBtf:
    """A loaded module's BTF: `name`, `fd` (the kernel wants it for attaching and for kfuncs), `btf` (split, over
    vmlinux)."""

    __slots__ = ("btf", "fd", "name")

    def __init__(self, name: str, fd: int, btf: Btf) -> None:
        self.name = name
        self.fd = fd
        self.btf = btf


def load_all(bpf: Bpf, base: Btf) -> list[ModuleBtf]:
    """Every module's BTF, in id order. Empty where the kernel has none or lets us see none (EPERM), as in libbpf."""
    found = []
    try:
        idents = bpf.ids(BTF_GET_NEXT_ID)
    except OSError:
        return []
    for ident in idents:
        module = _load(bpf, ident, base)
        if module is not None:
            found.append(module)
    return found


def _load(bpf: Bpf, ident: int, base: Btf) -> ModuleBtf | None:
    try:
        fd = bpf.fd_by_id(BTF_GET_FD_BY_ID, ident)
    except OSError:  # gone since, or not ours to see
        return None
    keep = None
    try:
        _, name, of_kernel, size = bpf.btf_info(fd)
        if of_kernel and name != "vmlinux":
            keep = ModuleBtf(name, fd, Btf(bpf.btf_data(fd, size), f"module {name}", base))
    except (OSError, GuestError):
        keep = None
    finally:
        if keep is None:
            os.close(fd)
    return keep
