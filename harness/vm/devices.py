"""A guest's hardware as a list of small values: each knows its QEMU arguments, its kernel arguments, the descriptors
it needs open and the kernel modules it cannot do without. The command line is a fold over the list (`qemu.command`),
nothing more.

Every byte stream and every file reaches QEMU as an inherited descriptor: no socket paths, no temporary files, nothing
to sweep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from harness.model.arch import Architecture

PORT_NAME = "org.corematrix.0"
RESULT_CHARDEV = "result"
MONITOR_CHARDEV = "monitor"


class Device(Protocol):
    """One piece of a guest."""

    def qemu_args(self) -> tuple[str, ...]:
        """Words of QEMU's command line."""

    def kernel_args(self) -> tuple[str, ...]:
        """Words of the kernel's command line."""

    def descriptors(self) -> tuple[int, ...]:
        """Open file descriptors QEMU must inherit."""

    def modules(self) -> tuple[str, ...]:
        """Kernel modules (names, no path) the guest needs for it, where they are not built in."""


class Plain:
    """A device that needs nothing; the others override what they need."""

    def qemu_args(self) -> tuple[str, ...]:
        return ()

    def kernel_args(self) -> tuple[str, ...]:
        return ()

    def descriptors(self) -> tuple[int, ...]:
        return ()

    def modules(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Machine(Plain):
    """Board, CPUs and accelerator, and nothing QEMU would add by itself: no network, no disk, no display, no host
    files.
    """

    arch: Architecture
    cpu: str
    cpus: int
    accelerator: str

    def qemu_args(self) -> tuple[str, ...]:
        return (
            "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", self.arch.machine, "-cpu", self.cpu, "-smp", str(self.cpus), "-accel", self.accelerator,
        )  # fmt: skip

    def kernel_args(self) -> tuple[str, ...]:
        # A panic ends QEMU at once (reboot with -no-reboot); an oops must not leave a half-dead guest answering.
        return ("panic=-1", "oops=panic")


@dataclass(frozen=True, kw_only=True)
class Memory(Plain):
    """Guest memory of `megabytes`, in the file open as `descriptor`.

    `shared`: writes reach the file (a guest that will be saved); otherwise the file is mapped privately, as a template.
    """

    megabytes: int
    descriptor: int | None = None
    shared: bool = False

    def qemu_args(self) -> tuple[str, ...]:
        if self.descriptor is None:
            return ("-m", str(self.megabytes))
        share = "on" if self.shared else "off"
        place = f"/proc/self/fd/{self.descriptor}"
        return (
            "-m", str(self.megabytes), "-machine", "memory-backend=ram",
            "-object", f"memory-backend-file,id=ram,size={self.megabytes}M,mem-path={place},share={share}",
        )  # fmt: skip

    def descriptors(self) -> tuple[int, ...]:
        return () if self.descriptor is None else (self.descriptor,)


@dataclass(frozen=True, kw_only=True)
class DirectBoot(Plain):
    """Kernel and initramfs handed to QEMU. `kernel` is a path; where it leads through a descriptor
    (`/proc/self/fd/N`), that is `kernel_descriptor`.
    """

    kernel: str
    initramfs: int
    kernel_descriptor: int | None = None

    def qemu_args(self) -> tuple[str, ...]:
        return ("-kernel", self.kernel, "-initrd", f"/proc/self/fd/{self.initramfs}")

    def descriptors(self) -> tuple[int, ...]:
        return (self.initramfs,) if self.kernel_descriptor is None else (self.initramfs, self.kernel_descriptor)


@dataclass(frozen=True, kw_only=True)
class Firmware(Plain):
    """A `-bios` file, where the board's own would take longer. Part of the machine: a restored guest needs the same."""

    path: str

    def qemu_args(self) -> tuple[str, ...]:
        return ("-bios", self.path)


@dataclass(frozen=True, kw_only=True)
class Console(Plain):
    """The console UART, whose output is evidence. Only warnings and worse get on it: each character costs an emulated
    exit.
    """

    device: str
    descriptor: int

    def qemu_args(self) -> tuple[str, ...]:
        return ("-chardev", f"socket,id=console,fd={self.descriptor}", "-serial", "chardev:console")

    def kernel_args(self) -> tuple[str, ...]:
        return (f"console={self.device}", "quiet")

    def descriptors(self) -> tuple[int, ...]:
        return (self.descriptor,)


@dataclass(frozen=True, kw_only=True)
class ResultPort(Plain):
    """The named virtio-serial port that carries frames. `bus` is the architecture's for virtio, `needs` the modules."""

    descriptor: int
    bus: str = "pci"
    needs: tuple[str, ...] = ("virtio_pci", "virtio_console")

    def qemu_args(self) -> tuple[str, ...]:
        return (
            "-chardev", f"socket,id={RESULT_CHARDEV},fd={self.descriptor}",
            "-device", f"virtio-serial-{self.bus},max_ports=2",
            "-device", f"virtserialport,nr=1,chardev={RESULT_CHARDEV},name={PORT_NAME}",
        )  # fmt: skip

    def kernel_args(self) -> tuple[str, ...]:
        return (f"corematrix.port={PORT_NAME}",)

    def descriptors(self) -> tuple[int, ...]:
        return (self.descriptor,)

    def modules(self) -> tuple[str, ...]:
        return self.needs


@dataclass(frozen=True, kw_only=True)
class ResultUart(Plain):
    """The same frames on a second UART, for kernels without virtio_console (old ones given as files).

    `device` is the guest's name for it, `uart` the QEMU device to add, None where the board has a second of its own.
    """

    device: str
    descriptor: int
    uart: str | None = None

    def qemu_args(self) -> tuple[str, ...]:
        own = ("-serial", f"chardev:{RESULT_CHARDEV}")
        added = ("-device", f"{self.uart},chardev={RESULT_CHARDEV}")
        chardev = ("-chardev", f"socket,id={RESULT_CHARDEV},fd={self.descriptor}")
        return (*chardev, *(own if self.uart is None else added))

    def kernel_args(self) -> tuple[str, ...]:
        return (f"corematrix.tty={self.device}",)

    def descriptors(self) -> tuple[int, ...]:
        return (self.descriptor,)


@dataclass(frozen=True, kw_only=True)
class Monitor(Plain):
    """QMP on an inherited socket."""

    descriptor: int

    def qemu_args(self) -> tuple[str, ...]:
        return (
            "-chardev", f"socket,id={MONITOR_CHARDEV},fd={self.descriptor}",
            "-mon", f"chardev={MONITOR_CHARDEV},mode=control",
        )  # fmt: skip

    def descriptors(self) -> tuple[int, ...]:
        return (self.descriptor,)


@dataclass(frozen=True, kw_only=True)
class Incoming(Plain):
    """A saved guest is to come in: QEMU waits to be told from where (`snapshot.load`). `stream` is its state, open."""

    stream: int

    def qemu_args(self) -> tuple[str, ...]:
        return ("-incoming", "defer")

    def descriptors(self) -> tuple[int, ...]:
        return (self.stream,)


@dataclass(frozen=True, kw_only=True)
class KernelArgs(Plain):
    """Further words for the kernel."""

    words: tuple[str, ...]

    def kernel_args(self) -> tuple[str, ...]:
        return self.words


@dataclass(frozen=True, kw_only=True)
class Init(Plain):
    """What the kernel runs as PID 1: the guest's Python on our bundle. Comes last: what follows `--` is PID 1's."""

    program: str
    arguments: tuple[str, ...]

    def kernel_args(self) -> tuple[str, ...]:
        return (f"rdinit={self.program}", "--", *self.arguments)
