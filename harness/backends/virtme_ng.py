"""Backend `virtme-ng`: the kernel booted by vng over this machine's own root file system, or another's, read-only.

For people who already live in virtme-ng: what is installed here is what the guest sees, or what is in the directory
that the row names as `root`. vng has no deadline of its
own; ours cover it, and its whole process group dies with the session. Frames travel on a virtio-serial port of ours, a
Unix socket that QEMU connects to, so vng's own console and script streams stay evidence.

The files go over 9p where the kernel has it, as Debian's generic ones do; else over virtiofs, as its cloud ones can,
for which a daemon is needed here (virtiofsd in Rust: QEMU's older one of that name shares nothing read-only).
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

from harness import kernels, payload, proc
from harness.backends.served import ServedSession
from harness.errors import GuestLostError, InfrastructureError
from harness.guest.init import DEFAULT_PORT
from harness.kernels.modules import ModuleFiles
from harness.model.kernel import Kernel
from harness.session import SessionOptions
from harness.transport.stream import StreamChannel
from harness.vm import accelerator, qemu

# What the guest needs before it has a root, besides what that is shared by. overlay: vng lays one over /etc.
_MODULES = ("virtio_pci", "virtio_console", "overlay", "unix")
_NINE_P, _VIRTIOFS = ("9p", "9pnet_virtio"), ("virtiofs",)
# Where vng looks for the daemon after PATH.
_DAEMONS = ("/usr/libexec/virtiofsd", "/usr/lib/virtiofsd/virtiofsd", "/usr/lib/virtiofsd", "/usr/lib/qemu/virtiofsd")
_CPUS = 2  # as boot.CPUS: the verifier bounds bpf_get_smp_processor_id() by it
# A boot under emulation takes 25 to 45 seconds on an idle machine.
_HELLO_SECONDS = 300.0
_REMEDY = "pip install virtme-ng; apt install kmod busybox-static"
_MOST_SAID = 1 << 16
_PLACE = "/tmp/corematrix"  # in a guest with a root of its own; vng's init makes /tmp a tmpfs


class VirtmeGuest:
    """A `served.Served` in a guest of vng's."""

    def __init__(self, kernel: Kernel, options: SessionOptions, *, kvm: bool, deadline: float) -> None:
        """Start it and wait at most `deadline` seconds for QEMU to call. Raises InfrastructureError, GuestLostError."""
        self._said = b""
        self._files = ExitStack()
        try:
            root = self._files.enter_context(options.store.scratch())
            self._errors = self._files.enter_context(_temporary())
            vmlinuz, shared_by = _lay_out(kernel, options, root)
            command = _serve_command(kernel, dict(options.sources), _shared(root))
            listener = self._files.enter_context(_listener())
            words = _vng(
                vmlinuz, kernel, listener.getsockname(), kvm=kvm, nine_p=shared_by is _NINE_P, shared=_shared(root),
                command=command,
            )  # fmt: skip
            quiet, said = self._files.enter_context(_open_pipe()), self._errors.fileno()
            self._process = proc.spawn(words, stdin=quiet, stdout=said, stderr=said, env=_path(), remedy=_REMEDY)
            self._files.callback(self._process.kill, grace=0.5)
            self.channel = StreamChannel(self._accepted(listener, kernel, deadline))
        except BaseException:
            self._files.close()
            raise

    def said(self) -> str:
        """See `Served`."""
        said = self._said if self._errors.closed else self._tail()
        return said.decode("utf-8", "replace")

    def end(self, pid: int | None) -> None:  # noqa: ARG002 - the guest is killed with all that runs in it
        """See `Served`."""
        self.channel.close()
        self._process.kill(grace=0.5)
        if not self._errors.closed:
            self._said = self._tail()
        self._files.close()

    def _accepted(self, listener: socket.socket, kernel: Kernel, deadline: float) -> socket.socket:
        """The connection QEMU makes when it starts; GuestLostError when vng ends or dawdles instead."""
        listener.settimeout(0.5)
        waited = 0.0
        while waited < deadline and self._process.poll() is None:
            with suppress(TimeoutError):
                return listener.accept()[0]
            waited += 0.5
        self._process.kill(grace=0.5)
        said = self._tail().decode("utf-8", "replace").strip()
        message = f"{kernel.spec.id}: vng started no QEMU: {said.splitlines()[-1] if said else 'it said nothing'}"
        raise GuestLostError(message, status="error", console_tail=said)

    def _tail(self) -> bytes:
        size = os.fstat(self._errors.fileno()).st_size
        return os.pread(self._errors.fileno(), _MOST_SAID, max(0, size - _MOST_SAID))


def open_session(kernel: Kernel, options: SessionOptions) -> ServedSession:
    """Boot `kernel` with vng. Raises InfrastructureError, GuestLostError; see `ServedSession`."""
    if os.geteuid() != 0:
        message = f"{kernel.spec.id}: virtme-ng shares this machine's files, and you are not root"
        raise InfrastructureError(message, remedy="run as root, or leave `backend` out")
    arch = kernel.spec.arch
    _check_root(kernel)
    version = qemu.version(qemu.binary(arch))
    known: str | None = options.accelerator
    if known is None:
        known = accelerator.choose(arch, version, options.store, lambda: _try_kvm(kernel, options)).name
    session = _open(kernel, options, kvm=known == accelerator.KVM, seconds=_HELLO_SECONDS)
    session.tell(accelerator=known, qemu=version)
    return session


def _check_root(kernel: Kernel) -> None:
    root = kernel.spec.root
    if root is not None and not (root / "usr/bin/python3").exists():
        message = f"{kernel.spec.id}: there is no usr/bin/python3 in {root}"
        raise InfrastructureError(message, remedy="name another `root`, or install python3 (3.9 or newer) in it")


def _open(kernel: Kernel, options: SessionOptions, *, kvm: bool, seconds: float) -> ServedSession:
    return ServedSession(
        kernel, options, lambda: VirtmeGuest(kernel, options, kvm=kvm, deadline=seconds), hello_seconds=seconds
    )


def _try_kvm(kernel: Kernel, options: SessionOptions) -> None:
    _open(kernel, options, kvm=True, seconds=accelerator.PROBE_SECONDS).close()


def _shared(root: Path) -> Path:
    """What a guest with another root file system needs of ours."""
    path = root / "shared"
    path.mkdir(exist_ok=True)
    return path


def _vng(
    vmlinuz: Path, kernel: Kernel, address: str, *, kvm: bool, nine_p: bool, shared: Path, command: list[str]
) -> list[str]:  # fmt: skip
    vng = shutil.which("vng", path=_path()["PATH"]) or "vng"
    devices = (
        f"-chardev socket,id=corematrix,path={address} -device virtio-serial-pci,id=corematrix"
        f" -device virtserialport,bus=corematrix.0,name={DEFAULT_PORT},chardev=corematrix"
    )
    options = ["--force-9p"] if nine_p else []
    options += ["--disable-microvm", "--cpus", str(_CPUS), "--memory", f"{kernel.spec.memory_mb + 256}M"]
    options += [] if kvm else ["--disable-kvm"]
    options += [f"--append={word}" for word in kernel.spec.kernel_args]
    if kernel.spec.root is not None:
        options += ["--root", str(kernel.spec.root), f"--rodir={_PLACE}={shared}"]
    return [vng, "--run", str(vmlinuz), "--verbose", *options, f"--qemu-opts={devices}", "--", shlex.join(command)]


def _path() -> dict[str, str]:
    """With where this Python's own commands are: vng looks for its other half there."""
    return {"PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}"}


def _sharing(kernel: Kernel, options: SessionOptions) -> tuple[tuple[str, ...], ModuleFiles]:
    """By what this kernel takes files from here, and its modules for it. InfrastructureError when by nothing."""
    for shared_by in (_NINE_P, _VIRTIOFS):
        found = kernels.kernel_modules(kernel, (*shared_by, *_MODULES), options.store, options.on_event)
        if not set(shared_by) & set(found.missing):
            if shared_by is _VIRTIOFS and not _has_daemon():
                message = f"{kernel.spec.id}: a kernel without 9p takes files by virtiofs, and no virtiofsd is here"
                remedy = "apt install virtiofsd (Debian 13 and newer), or take a kernel with 9p (a generic one)"
                raise InfrastructureError(message, remedy=remedy)
            return shared_by, found
    message = f"{kernel.spec.id}: this kernel has neither 9p nor virtiofs, by which virtme-ng shares files"
    raise InfrastructureError(message, remedy="leave `backend` out")


def _has_daemon() -> bool:
    """Whether vng finds the virtiofsd it can use: `virtiofsd 1.13.2`; QEMU's own says `virtiofsd version 7.2.22`."""
    for path in (shutil.which("virtiofsd", path=_path()["PATH"]), *_DAEMONS):
        if path is not None and os.access(path, os.X_OK) and Path(path).is_file():
            said = proc.run([path, "--version"], check=False).text.split()
            if said[:1] == ["virtiofsd"] and said[1:2] != ["version"]:
                return True
    return False


def _lay_out(kernel: Kernel, options: SessionOptions, root: Path) -> tuple[Path, tuple[str, ...]]:
    """boot/ and lib/modules/RELEASE/ below `root`, as vng looks for them; the vmlinuz, and by what files are shared."""
    assert kernel.vmlinuz is not None
    shared_by, found = _sharing(kernel, options)
    modules = root / "lib" / "modules" / kernel.release
    (modules / "kernel").mkdir(parents=True)
    for path in found.paths:
        (modules / "kernel" / path.name).symlink_to(path)
    for name in ("modules.order", "modules.builtin"):
        (modules / name).touch()
    proc.run(["depmod", "-b", root, kernel.release], remedy="apt install kmod")
    vmlinuz = root / "boot" / f"vmlinuz-{kernel.release}"
    vmlinuz.parent.mkdir()
    shutil.copyfile(kernel.vmlinuz, vmlinuz)
    return vmlinuz, shared_by


def _serve_command(kernel: Kernel, sources: dict[str, bytes], shared: Path) -> list[str]:
    """With this machine's own root the guest sees the files where they are; with another they are mounted there."""
    bundle = payload.build(sources)
    files = {f"{bundle.sha256}.zip": bundle.data}
    options = []
    if kernel.btf is not None and kernel.btf_external:
        files["btf"] = kernel.btf.read_bytes()
        options += ["--btf", "btf"]
    if kernel.config is not None:
        files["config"] = kernel.config.read_bytes()
        options += ["--kconfig", "config"]
    for name, data in files.items():
        (shared / name).write_bytes(data)
    seen = shared if kernel.spec.root is None else Path(_PLACE)
    python = os.path.realpath(sys.executable) if kernel.spec.root is None else "/usr/bin/python3"
    words = [word if word.startswith("--") else str(seen / word) for word in options]
    return [python, "-I", "-S", str(seen / f"{bundle.sha256}.zip"), "serve", "--port", DEFAULT_PORT, *words]


@contextmanager
def _listener() -> Iterator[socket.socket]:
    """A listening Unix socket in a private directory of a short name (unix(7): 107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="corematrix-") as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/port")
        listener.listen(1)
        yield listener


@contextmanager
def _temporary() -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as file:
        yield file


@contextmanager
def _open_pipe() -> Iterator[int]:
    """The reading end of a pipe nobody writes to and nobody closes: vng ends its guest at the end of its input."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)
