"""From a kernel in the cache to a running QEMU: the files it boots from, its devices, and the sockets we hold the
other ends of.

`Recipe` is all that is known before anything runs, and gives the key of the saved guest; `start_cold` and
`start_saved` run it.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import platform
import socket
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import NoteSegment

from harness import payload
from harness.errors import CacheError
from harness.image import closure, initramfs
from harness.kernels.vmlinux import unwrap
from harness.model.arch import Architecture
from harness.model.kernel import Kernel
from harness.store import Store
from harness.transport.stream import StreamChannel
from harness.vm import devices, qemu, snapshot
from harness.vm.qemu import Qemu

# Two, because the verifier bounds bpf_get_smp_processor_id() by the number of CPUs since 7.x: a guest with one
# accepts live poison that every real machine refuses.
CPUS = 2
_PVH_ENTRY = "18"  # XEN_ELFNOTE_PHYS32_ENTRY, include/xen/interface/elfnote.h

# What is tested while the kernel starts and by nobody needed: the crypto manager's self-tests take a fifth of an
# emulated boot. Nothing here and in the architectures' `tcg_args` reaches the verifier (`mitigations=off` would:
# bpf_bypass_spec_v1).
_KERNEL_ARGS = ("cryptomgr.notests",)

# A restored guest has one thing to do at a time: two processors that take turns in one thread of the host cost a tenth
# less than two threads that interrupt each other, on a busy host a tenth to a seventh. A boot is work for both.
_RESTORED = {"tcg": "tcg,thread=single"}


@dataclass(frozen=True, kw_only=True)
class GuestPackages:
    """The guest's user space: `paths` are .deb files, `provenance` what they are (name, version, sha256)."""

    paths: tuple[Path, ...]
    provenance: tuple[dict[str, Any], ...]


def _cpu_model(binary: str, arch: Architecture, store: Store) -> str:
    """The best of an architecture's CPU models that a QEMU has. To ask it takes a tenth of a second, a fifth of what a
    restored guest takes: so it is asked once.
    """
    models = (arch.cpu, *arch.cpus_instead)
    if len(models) == 1:
        return models[0]
    name = hashlib.sha256(repr((qemu.version(binary), arch.machine, models)).encode()).hexdigest()[:32]
    known = (store.entry("cpu-model", name) or {}).get("cpu")
    if known not in models:
        known = qemu.first_cpu(binary, arch.machine, models)
        with suppress(CacheError):
            store.put_entry("cpu-model", name, {"cpu": known})
    return str(known)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One guest to be: a kernel, a user space, an accelerator. `sources` are the guest's own modules (tests add to
    them).
    """

    kernel: Kernel
    packages: GuestPackages
    store: Store
    accelerator: str
    sources: dict[str, bytes] = field(default_factory=payload.sources)

    @property
    def cpu(self) -> str:
        """QEMU's -cpu: the row's own wish, else the best of the architecture's this QEMU has; the host's under KVM."""
        arch = self.kernel.spec.arch
        if self.accelerator == "kvm":
            return "host"
        return self.kernel.spec.cpu or _cpu_model(self.qemu, arch, self.store)

    @property
    def qemu(self) -> str:
        """QEMU's file. Raises InfrastructureError."""
        return qemu.binary(self.kernel.spec.arch)

    def key(self) -> str:
        """The name of this guest when saved: a hash of everything it depends on."""
        kernel = self.kernel
        hardware = _hardware(self, 0, 0, 0, self.accelerator)
        return snapshot.key({
            "format": 2,
            "vmlinuz": kernel.vmlinuz_sha256,
            "modules": [_digest(path) for path in kernel.modules],
            "config": _digest(kernel.config) if kernel.config else None,
            "btf": [kernel.btf_sha256, kernel.btf_external],
            "guest": payload.fingerprint(self.sources),
            "warm": [hashlib.sha256(payload.warm_object()).hexdigest(), payload.WARM_ROUNDS],
            "packages": [package["sha256"] for package in self.packages.provenance],
            "image": _code_fingerprint(),
            "qemu": qemu.version(self.qemu),
            "host": platform.machine(),
            "devices": qemu.command("qemu", hardware),
            "memory": kernel.spec.memory_mb,
            "kernel_args": qemu.kernel_line([*hardware, devices.KernelArgs(words=_kernel_args(self))]),
            "host_cpu": _host_cpu() if self.accelerator == "kvm" else None,
        })  # fmt: skip


class Guest:
    """A running QEMU and the channel to what runs in it.

    `memory` is the descriptor of its RAM where it may be saved (owned), `incoming` the number QEMU knows the state by
    that it is to restore. `speaks_first`: a guest on a UART, which says `ready` when it has booted.
    """

    def __init__(
        self,
        running: Qemu,
        channel: StreamChannel,
        *,
        memory: int | None = None,
        incoming: int | None = None,
        speaks_first: bool = False,
    ) -> None:
        self.qemu = running
        self.channel = channel
        self.memory = memory
        self.incoming = incoming
        self.speaks_first = speaks_first and incoming is None

    def end(self, *, grace: float = 0.0) -> int:
        """End it (see `Qemu.end`); its exit status. May be called twice, and from another thread."""
        status = self.qemu.end(grace=grace)
        self.channel.close()
        memory, self.memory = self.memory, None
        if memory is not None:
            os.close(memory)
        return status


def start_cold(recipe: Recipe, *, savable: bool) -> Guest:
    """Boot. With `savable` its RAM lies in a file that `snapshot.save` copies."""
    with ExitStack() as stack:
        kernel_file, kernel_descriptor = _kernel_file(recipe, stack)
        image = stack.enter_context(_memory_file("initramfs", build_initramfs(recipe)))
        user_land = _user_land(recipe)
        program, arguments = initramfs.init_arguments(user_land.program)
        memory = os.memfd_create("guest") if savable else None
        boot = (
            devices.Memory(megabytes=recipe.kernel.spec.memory_mb, descriptor=memory, shared=True),
            devices.DirectBoot(kernel=kernel_file, kernel_descriptor=kernel_descriptor, initramfs=image),
            devices.KernelArgs(words=_kernel_args(recipe)),
            devices.Init(program=program, arguments=arguments),
        )
        return _start(recipe, boot, memory=memory)


def start_saved(recipe: Recipe, saved: snapshot.SavedGuest) -> Guest:
    """Restore a saved guest: it goes on where it was saved, its memory a private mapping of the template. QEMU then
    waits for `snapshot.load`. Raises OSError when the files cannot be opened, CacheError when they are not what was
    saved.
    """
    snapshot.check(saved, recipe.kernel.spec.memory_mb)
    with ExitStack() as stack:
        memory = stack.enter_context(_template(saved.memory))
        state = stack.enter_context(_opened(saved.state, os.O_RDONLY))
        restore = (
            devices.Memory(megabytes=recipe.kernel.spec.memory_mb, descriptor=memory),
            devices.Incoming(stream=state),
        )
        return _start(recipe, restore, incoming=state)


def build_initramfs(recipe: Recipe) -> bytes:
    """The initramfs of a recipe, the same bytes each time."""
    kernel = recipe.kernel
    user_land = _user_land(recipe)
    files = initramfs.KernelFiles(
        release=kernel.release, modules=kernel.modules, config=kernel.config,
        btf=kernel.btf if kernel.btf_external else None,
    )  # fmt: skip
    bundle = payload.build(recipe.sources, magic=closure.bytecode_magic(user_land.version))
    return initramfs.build(user_land, bundle, files)


def _start(
    recipe: Recipe, boot: Sequence[devices.Device], *, memory: int | None = None, incoming: int | None = None
) -> Guest:
    """Run QEMU with the recipe's hardware and `boot`; every socket it does not get is ours."""
    ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
    console, monitor, port = (end.fileno() for end in theirs)
    accelerator = recipe.accelerator if incoming is None else _RESTORED.get(recipe.accelerator, recipe.accelerator)
    words = [*_hardware(recipe, console, monitor, port, accelerator), *boot]
    descriptors = [descriptor for device in words for descriptor in device.descriptors()]
    try:
        running = Qemu(qemu.command(recipe.qemu, words), descriptors, console=ours[0], monitor=ours[1])
    except BaseException:
        for end in ours:
            end.close()
        if memory is not None:
            os.close(memory)
        raise
    finally:
        for end in theirs:
            end.close()
    uart = any(isinstance(device, devices.ResultUart) for device in words)
    return Guest(running, StreamChannel(ours[2]), memory=memory, incoming=incoming, speaks_first=uart)


def _hardware(recipe: Recipe, console: int, monitor: int, port: int, accelerator: str) -> list[devices.Device]:
    """What a guest consists of, cold or restored."""
    arch = recipe.kernel.spec.arch
    path = qemu.firmware(arch.firmware) if arch.firmware is not None else None
    firmware = [] if path is None else [devices.Firmware(path=path)]
    return [
        *firmware,
        devices.Machine(arch=arch, cpu=recipe.cpu, cpus=CPUS, accelerator=accelerator),
        devices.Console(device=arch.console, descriptor=console),
        _port(recipe.kernel, port),
        devices.Monitor(descriptor=monitor),
    ]


def _port(kernel: Kernel, descriptor: int) -> devices.Device:
    """What carries frames: a virtio port where this kernel has all the drivers for one, else a second UART."""
    arch = kernel.spec.arch
    virtio = devices.ResultPort(
        descriptor=descriptor, bus=arch.virtio, needs=(f"virtio_{arch.virtio}", "virtio_console")
    )
    if arch.second_uart is None or all(_has_driver(kernel, name) for name in virtio.modules()):
        return virtio
    return devices.ResultUart(device=arch.second_uart, descriptor=descriptor, uart=arch.uart_device)


def _has_driver(kernel: Kernel, name: str) -> bool:
    """As a module we were given, or built in as its source or its configuration says."""
    if any(path.name.startswith(f"{name}.ko") for path in kernel.modules):
        return True
    if name in kernel.source.get("modules_builtin", ()):
        return True
    return kernel.config is not None and f"CONFIG_{name.upper()}=y".encode() in kernel.config.read_bytes()


def _kernel_args(recipe: Recipe) -> tuple[str, ...]:
    tcg = recipe.kernel.spec.arch.tcg_args if recipe.accelerator.startswith("tcg") else ()
    return (*_KERNEL_ARGS, *tcg, *recipe.kernel.spec.kernel_args)


def _kernel_file(recipe: Recipe, stack: ExitStack) -> tuple[str, int | None]:
    """What QEMU's -kernel gets: a path, and the descriptor behind it if any.

    A kernel with a PVH entry (x86, CONFIG_PVH, 5.0) is handed over uncompressed: the host decompresses faster than
    the guest.
    """
    kernel = recipe.kernel
    assert kernel.vmlinuz is not None, "only a kernel in files is booted"
    if not kernel.spec.arch.pvh:
        return str(kernel.vmlinuz), None
    vmlinux = _vmlinux(recipe)
    if not _has_pvh_entry(vmlinux):
        return str(kernel.vmlinuz), None
    descriptor = stack.enter_context(_memory_file("vmlinux", vmlinux))
    return f"/proc/self/fd/{descriptor}", descriptor


def _vmlinux(recipe: Recipe) -> bytes:
    """The kernel inside vmlinuz. Kept in the cache as zstd: some kernels are packed with what only Python code here
    unpacks.
    """
    store, kernel = recipe.store, recipe.kernel
    known = store.entry("vmlinux", kernel.vmlinuz_sha256)
    path = store.blob(str(known["sha256"])) if known else None
    if path is not None:
        return zstandard.ZstdDecompressor().decompress(path.read_bytes())
    assert kernel.vmlinuz is not None
    vmlinux = unwrap(kernel.vmlinuz.read_bytes(), str(kernel.vmlinuz))
    _remember(store, "vmlinux", kernel.vmlinuz_sha256, vmlinux)
    return vmlinux


def _remember(store: Store, kind: str, name: str, data: bytes) -> None:
    """Keep what was worked out for the next boot; a cache that cannot be written costs the next boot that work."""
    with suppress(CacheError):
        digest = store.put_bytes(zstandard.ZstdCompressor(level=3).compress(data))
        store.put_entry(kind, name, {"sha256": digest})


def _has_pvh_entry(vmlinux: bytes) -> bool:
    if not vmlinux.startswith(b"\x7fELF"):
        return False
    segments = ELFFile(io.BytesIO(vmlinux)).iter_segments("PT_NOTE")
    return any(
        note["n_name"] == "Xen" and str(note["n_type"]) == _PVH_ENTRY
        for segment in segments if isinstance(segment, NoteSegment) for note in segment.iter_notes()
    )  # fmt: skip


def _user_land(recipe: Recipe) -> closure.UserLand:
    """The user land, from the cache where it has been picked before: unpacking ten packages takes two seconds."""
    packages = [package["sha256"] for package in recipe.packages.provenance]
    guest = payload.fingerprint(recipe.sources)
    name = snapshot.key({"packages": packages, "guest": guest, "image": _code_fingerprint()})
    known = recipe.store.entry("user-land", name)
    path = recipe.store.blob(str(known["sha256"])) if known else None
    if known is not None and path is not None:
        return closure.load(zstandard.ZstdDecompressor().decompress(path.read_bytes()))
    user_land = closure.user_land(recipe.packages.paths, recipe.sources)
    _remember(recipe.store, "user-land", name, closure.dump(user_land))
    return user_land


def _code_fingerprint() -> str:
    """The code that makes an initramfs: when it changes, what it made before is another thing."""
    own = Path(__file__)
    files = [own, own.parent / "payload.py", *sorted((own.parent / "image").glob("*.py"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files)).hexdigest()


def _host_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    wanted = ("model name", "flags", "microcode", "CPU part", "Features")
    return platform.machine() + "".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def _memory_file(name: str, data: bytes) -> Iterator[int]:
    descriptor = os.memfd_create(name)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        yield descriptor
    finally:
        os.close(descriptor)


def _template(path: Path) -> AbstractContextManager[int]:
    """A saved guest's memory, open. QEMU opens the file of a private mapping for writing (`readonly=on` would make the
    guest's RAM read-only); where it may not be written, a copy in memory does.
    """
    return _opened(path, os.O_RDWR) if _writable(path) else _memory_copy(path)


def _writable(path: Path) -> bool:
    """Whether it can be opened for writing: another user's cache cannot, nor one on a file system mounted read-only."""
    try:
        with _opened(path, os.O_RDWR):
            return True
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            return False
        raise


@contextmanager
def _memory_copy(path: Path) -> Iterator[int]:
    with _opened(path, os.O_RDONLY) as source, _memory_file("guest", b"") as copy:
        snapshot.copy_sparse(source, copy)
        yield copy


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)

