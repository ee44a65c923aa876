"""PID 1 of a guest: mounts, modules, the port to the host, power-off. Python's own `ctypes` calls, no shell, no
tools.

Kernel arguments understood (all optional): `corematrix.port=NAME` names the virtio-serial port,
`corematrix.tty=ttyS1` a UART to use where no such port turns up because the kernel has no virtio_console.
"""

from __future__ import annotations

import _socket
import os
import sys

from .libc import finit_module, mount, reboot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .port import Port

MODULES = "/usr/lib/corematrix/modules"
DEFAULT_PORT = "org.corematrix.0"

# <linux/mount.h>
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_QUIET = _MS_NOSUID | _MS_NODEV | _MS_NOEXEC

# What a loader needs; each may be missing from a kernel's configuration, and then what needs it says so itself.
_MOUNTS = (
    ("devtmpfs", "/dev", _MS_NOSUID),
    ("proc", "/proc", _QUIET),
    ("sysfs", "/sys", _QUIET),
    ("bpf", "/sys/fs/bpf", _QUIET),
    ("tracefs", "/sys/kernel/tracing", _QUIET),
    ("securityfs", "/sys/kernel/security", _QUIET),
)

# <linux/reboot.h>: RB_POWER_OFF
_POWER_OFF = 0x4321FEDC
_NETLINK_KOBJECT_UEVENT = 15
_AF_NETLINK = 16


def mount_all() -> None:
    """Mount what is there to be mounted; a file system the kernel does not know is passed over."""
    for name, place, flags in _MOUNTS:
        try:
            mount(name, place, flags)
        except OSError:
            continue


def insert_modules(directory: str = MODULES) -> list[str]:
    """Insert every module of `directory` in the order of its file names; returns complaints, one line per module
    refused.
    """
    complaints = []
    for name in sorted(os.listdir(directory)):
        descriptor = os.open(directory + "/" + name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            finit_module(descriptor)
        except OSError as error:
            complaints.append("%s: %s" % (name, error))
        finally:
            os.close(descriptor)
    return complaints


def arguments() -> dict[str, str]:
    """The kernel arguments of ours, without their `corematrix.` prefix."""
    with open("/proc/cmdline") as file:
        words = file.read().split()
    pairs = (word[len("corematrix.") :].partition("=") for word in words if word.startswith("corematrix."))
    return {key: value for key, _, value in pairs}


def power_off() -> None:
    """End the guest; does not return in a real one. Nothing is to be synced: all there is lives in memory."""
    sys.stderr.flush()
    reboot(_POWER_OFF)


def open_port() -> Port:
    """The port to the host, once it is there. Raises OSError when this kernel has none."""
    from .port import Port

    options = arguments()
    wanted = options.get("port", DEFAULT_PORT)
    node = virtio_port(wanted)
    if node is not None:
        return Port.virtio(node)
    if "tty" in options:
        return Port.tty("/dev/" + options["tty"])
    raise OSError("no virtio-serial port named %r, and no corematrix.tty= given" % wanted)


def virtio_port(wanted: str) -> str | None:
    """The node of the port named `wanted`. The driver learns its ports and their names from the host after it is
    loaded: the kernel's uevents say when to look again.
    """
    if not os.path.isdir("/sys/bus/virtio/drivers/virtio_console"):
        return None
    events = _socket.socket(_AF_NETLINK, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, _NETLINK_KOBJECT_UEVENT)
    events.bind((0, 1))
    if not os.listdir("/sys/bus/virtio/drivers/virtio_console/"):
        return None
    while True:
        node = _named(wanted)
        if node is not None:
            events.close()
            return node
        events.recv(8192)


def _named(wanted: str) -> str | None:
    base = "/sys/class/virtio-ports"
    try:
        names = os.listdir(base)
    except OSError:
        return None
    for name in names:
        try:
            with open(base + "/" + name + "/name") as file:
                if file.read().strip() == wanted:
                    return "/dev/" + name
        except OSError:
            continue
    return None
