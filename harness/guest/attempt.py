"""One program to be attached, and the two ways of not getting there that are no errno."""

from __future__ import annotations

import os

from .prog_types import ATTACH_TYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from .syscall import Bpf


class NotAttempted(Exception):
    """Attaching would take something that is not here; the message says what."""


class Gone(Exception):
    """What it attaches to does not exist on this kernel; the message says so."""


class Attempt:
    """One program to be attached. `target` is the text after the section's "/", None without; `attach_type` a number.

    `syscall_prefix` is what system call functions are called here (`__x64_sys_`), `modules` (name -> bytes) are
    modules of this kernel that may be inserted for the time of the attempt. What was tried in place of the target is
    noted in `stand_in`, another way than the usual one in `how`. `maps` are the names of the object's.
    """

    __slots__ = (
        "attach_type", "bpf", "fd", "how", "kind", "maps", "modules", "prog_type", "stand_in", "syscall_prefix",
        "target",
    )  # fmt: skip

    def __init__(
        self, bpf: Bpf, fd: int, facts: dict[str, Any], syscall_prefix: str, modules: dict[str, bytes],
        maps: Iterable[str] = (),
    ) -> None:  # fmt: skip
        section = facts["section"].removeprefix("?")
        self.bpf = bpf
        self.fd = fd
        self.kind = section.partition("/")[0]
        self.target = facts["attach_target"]
        self.prog_type = facts["prog_type"]
        self.attach_type = ATTACH_TYPE.get(facts["expected_attach_type"] or "", 0)
        self.syscall_prefix = syscall_prefix
        self.modules = modules
        self.maps = frozenset(maps)
        self.stand_in: str | None = None
        self.how: str | None = None

    def wanted(self) -> str:
        """The target; NotAttempted without one."""
        if not self.target:
            raise NotAttempted("the section names nothing to attach to; the program's own code does")
        return str(self.target)


def closing(fd: int) -> Callable[[], None]:
    """What closes a descriptor: detaching, for a link."""
    return lambda: os.close(fd)
