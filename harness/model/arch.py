"""Architectures as rows of a table: whoever needs to know one asks the row, nobody branches on a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What differs between guest architectures.

    `name` is contract.md's spelling, `debian` the distribution's, `elf_machine` the `e_machine` value of its vmlinux,
    `machine`, `cpu` and `console` are QEMU's `-M`, `-cpu` and the guest's console device, `target_macro` is what
    bpf_tracing.h expects (`-D__TARGET_ARCH_x86`), `syscall_prefix` what libbpf's arch_specific_syscall_pfx() says.
    """

    name: str
    debian: str
    qemu: str
    qemu_package: str
    machine: str
    cpu: str
    console: str
    second_uart: str | None
    elf_machine: int
    byteorder: Literal["little", "big"]
    target_macro: str
    syscall_prefix: str


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        # The plainest CPU boots fastest in emulation; with RDRAND nobody waits for entropy. The old board has fewer
        # buses to scan.
        Architecture(
            name="x86_64", debian="amd64", qemu="qemu-system-x86_64", qemu_package="qemu-system-x86", machine="pc",
            cpu="qemu64,+rdrand", console="ttyS0", second_uart="ttyS1", elf_machine=62, byteorder="little",
            target_macro="x86", syscall_prefix="x64",
        ),
        # No pointer authentication to compute (`max` takes several times as long), yet 16 KB pages, which the
        # arm64-16k kernels need, and LSE atomics, which bpf_jit_supports_insn() asks for (6.10).
        Architecture(
            name="arm64", debian="arm64", qemu="qemu-system-aarch64", qemu_package="qemu-system-arm", machine="virt",
            cpu="cortex-a76", console="ttyAMA0", second_uart=None, elf_machine=183, byteorder="little",
            target_macro="arm64", syscall_prefix="arm64",
        ),
        Architecture(
            name="riscv64", debian="riscv64", qemu="qemu-system-riscv64", qemu_package="qemu-system-misc",
            machine="virt", cpu="rv64", console="ttyS0", second_uart=None, elf_machine=243, byteorder="little",
            target_macro="riscv",
            syscall_prefix="riscv",
        ),
        Architecture(
            name="s390x", debian="s390x", qemu="qemu-system-s390x", qemu_package="qemu-system-misc",
            machine="s390-ccw-virtio", cpu="max", console="ttysclp0", second_uart=None, elf_machine=22, byteorder="big",
            target_macro="s390", syscall_prefix="s390x",
        ),
        Architecture(
            name="ppc64le", debian="ppc64el", qemu="qemu-system-ppc64", qemu_package="qemu-system-ppc",
            machine="pseries", cpu="power9", console="hvc0", second_uart=None, elf_machine=21, byteorder="little",
            target_macro="powerpc",
            syscall_prefix="powerpc",
        ),
    )
}  # fmt: skip


def by_debian_name(debian: str) -> Architecture:
    """The row whose Debian name is `debian` (`amd64` -> x86_64); KeyError when there is none."""
    return next(row for row in ARCHITECTURES.values() if row.debian == debian)
