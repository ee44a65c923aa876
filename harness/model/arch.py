"""Architectures as rows of a table: whoever needs to know one asks the row, nobody branches on a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# A port to talk through: the bus first. virtio_mmio is for machines without PCI. Most pull in virtio and virtio_ring;
# kernels differ in what is built in and in how the drivers are cut into modules, so the rest is followed.
_PCI = ("virtio_pci", "virtio_mmio", "virtio_console")
_CCW = ("virtio_ccw", "virtio_console")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What differs between guest architectures.

    `name` is docs/contract.md's spelling, `debian` the distribution's, `uname` what `uname -m` says, `elf_machine` the
    `e_machine` value of its vmlinux, `syscall_prefix` what libbpf's arch_specific_syscall_pfx() says.

    QEMU: `machine` and `cpu` are its -M and -cpu, `cpus_instead` what to take, best first, where a QEMU does not
    know `cpu`, `firmware` one of its files to use for -bios in place of the board's, `virtio` the bus of its virtio
    devices. `console` is the guest's console device; `second_uart` the one that carries frames for kernels without
    virtio_console (None: this board has no second), and `uart_device` the QEMU device to add for it where -serial
    gives no second one. `saved` is whether an emulated guest goes on when it is restored.

    Kernel: `boot_modules` are the modules it takes to reach the host, `tcg_args` what it is told under emulation,
    `pvh` whether QEMU can start its uncompressed vmlinux at a PVH entry, `image_magic` where (offset) and
    what a bootable file of it has that is not an ELF file.
    """

    name: str
    debian: str
    uname: str
    qemu: str
    qemu_package: str
    machine: str
    cpu: str
    console: str
    second_uart: str | None
    elf_machine: int
    byteorder: Literal["little", "big"]
    syscall_prefix: str
    cpus_instead: tuple[str, ...] = ()
    uart_device: str | None = None
    firmware: str | None = None
    virtio: Literal["pci", "ccw"] = "pci"
    boot_modules: tuple[str, ...] = _PCI
    tcg_args: tuple[str, ...] = ()
    pvh: bool = False
    image_magic: tuple[int, bytes] | None = None
    saved: bool = True


ARCHITECTURES: dict[str, Architecture] = {
    row.name: row
    for row in (
        # The plainest CPU boots fastest in emulation; with RDRAND nobody waits for entropy. The older board's interrupt
        # links are routed by ACPI bytecode, a fifth of a second for one device. The small firmware knows how to start a
        # kernel given by QEMU, and nothing else. Under TCG the clock is exact by construction: the kernel's own check
        # of the timer interrupt is not needed.
        Architecture(
            name="x86_64", debian="amd64", uname="x86_64", qemu="qemu-system-x86_64", qemu_package="qemu-system-x86",
            machine="q35", cpu="qemu64,+rdrand", firmware="qboot.rom", console="ttyS0", second_uart="ttyS1",
            elf_machine=62, byteorder="little", syscall_prefix="x64",
            tcg_args=("tsc=reliable", "no_timer_check"), pvh=True,
        ),
        # No pointer authentication to compute (`max` takes several times as long), yet 16 KB pages, which the
        # arm64-16k kernels need, and LSE atomics, which bpf_jit_supports_insn() asks for (6.10). QEMU before 7.1 has no
        # such model: `max` has the atomics too, which its plainer models lack (no 16 KB pages there before 7.0). The
        # board has one PL011; a 16550 on PCI is the second UART.
        Architecture(
            name="arm64", debian="arm64", uname="aarch64", qemu="qemu-system-aarch64", qemu_package="qemu-system-arm",
            machine="virt", cpu="cortex-a76", cpus_instead=("max,pauth=off", "max"), console="ttyAMA0",
            second_uart="ttyS0", uart_device="pci-serial", elf_machine=183, byteorder="little", syscall_prefix="arm64",
            image_magic=(0x38, b"ARM\x64"),
        ),
        Architecture(
            name="riscv64", debian="riscv64", uname="riscv64", qemu="qemu-system-riscv64",
            qemu_package="qemu-system-misc", machine="virt", cpu="rv64", console="ttyS0", second_uart="ttyS1",
            uart_device="pci-serial", elf_machine=243, byteorder="little", syscall_prefix="riscv",
            image_magic=(0x38, b"RSC\x05"),
        ),
        # The second console of the board (sclplmconsole) speaks in lines, which frames cannot go through.
        Architecture(
            name="s390x", debian="s390x", uname="s390x", qemu="qemu-system-s390x", qemu_package="qemu-system-misc",
            machine="s390-ccw-virtio", cpu="max", console="ttysclp0", second_uart=None, elf_machine=22, byteorder="big",
            syscall_prefix="s390x", virtio="ccw", boot_modules=_CCW,
            image_magic=(0x10008, b"S390EP"),
        ),
        # VOF starts a kernel in place of SLOF, which takes its time; the four capabilities ask for mitigations that
        # TCG does not have. Restored by QEMU 7.2, the second processor never wakes (hard LOCKUP: its last heartbeat is
        # that of the moment it was saved), and what waits for it waits for ever; with maxcpus=1 a restored guest
        # hangs at its second question. Later QEMUs were not tried.
        Architecture(
            name="ppc64le", debian="ppc64el", uname="ppc64le", qemu="qemu-system-ppc64", qemu_package="qemu-system-ppc",
            machine="pseries,x-vof=on,cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off", cpu="power9",
            console="hvc0", second_uart="hvc1", elf_machine=21, byteorder="little", syscall_prefix="powerpc",
            saved=False,
        ),
    )
}  # fmt: skip


def by_debian_name(debian: str) -> Architecture:
    """The row whose Debian name is `debian` (`amd64` -> x86_64); KeyError when there is none."""
    return next(row for row in ARCHITECTURES.values() if row.debian == debian)
