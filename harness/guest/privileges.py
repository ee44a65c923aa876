"""What a process may ask of a kernel that is not a guest of ours, and what it will not see."""

from __future__ import annotations

import os

from .insn import EXIT, native
from .prog_types import PROG_TYPE
from .syscall import Bpf, ProgLoad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_EPERM = 1
_MOV64_IMM = 0xB7

# <linux/capability.h>
_CAPS = {"net_admin": 12, "sys_admin": 21, "syslog": 34, "perfmon": 38, "bpf": 39}

# What the kernel keeps from whoever lacks a capability; CAP_SYS_ADMIN includes bpf and perfmon (5.8, a17b53c4a4b5).
_HIDDEN = (
    ("sys_admin", "BTF of kernel modules (BPF_BTF_GET_FD_BY_ID wants CAP_SYS_ADMIN): their types are not found"),
    ("net_admin", "networking program types (xdp, tc, cgroup_skb, ...): they want CAP_NET_ADMIN"),
    ("syslog", "addresses in /proc/kallsyms (CAP_SYSLOG): externs that are kernel symbols without a type"),
)


def capabilities() -> list[str]:
    """Those of this process's effective capabilities that matter here, by their names in lower case."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        line = next((line for line in file if line.startswith("CapEff:")), "CapEff:\t0")
    bits = int(line.split()[1], 16)
    return [name for name, bit in _CAPS.items() if bits >> bit & 1]


def survey(bpf: Bpf) -> dict[str, Any]:
    """Facts for a greeting: `uid`, `pid`, `caps`, `denied` (bpf(2) says EPERM to a program) and `hidden`, in words.

    Capabilities within a user namespace count for nothing with bpf(2): so the kernel itself is asked.
    """
    caps = capabilities()
    return {
        "uid": os.geteuid(), "pid": os.getpid(), "caps": caps, "denied": _denied(bpf),
        "hidden": [words for name, words in _HIDDEN if name not in caps],
    }  # fmt: skip


def _denied(bpf: Bpf) -> bool:
    """EPERM, and nothing else: an old kernel may not know the program type."""
    code = native(_MOV64_IMM) + native(EXIT)
    for kind in ("socket_filter", "tracepoint"):
        try:
            os.close(bpf.prog_load(ProgLoad(PROG_TYPE[kind], code)))
        except OSError as error:
            if error.errno == _EPERM:
                return True
    return False
