"""The types of old kernels that programs/ read, as C declarations: BTF of them stands in for kernels we do not have.

A declaration holds the members the programs ask for, in the order and types of that release; offsets are the
compiler's. Which release brought which name is said a second time by RENAMES (seen on
booted 4.4.178, 4.6.2, 4.9.154, 4.15.18 and 4.19.48), and tests hold one against the other.
"""

from __future__ import annotations

from collections.abc import Mapping

from tests.support.clang import compile_target

_THREAD = {
    "fs": "struct thread_struct { unsigned long sp; unsigned long fs; unsigned long gs; };",
    "fsbase": "struct thread_struct { unsigned long sp; unsigned long fsbase; unsigned long gsbase; };",
}
_INFO = "struct thread_info { unsigned long flags; };"
_TASK = """struct task_struct {{ {info} volatile long state; int pid; int tgid; {time} utime; u64 start_time;
    u64 real_start_time; struct task_struct *real_parent; char comm[16]; struct thread_struct thread; }};"""
# arch/x86/include/asm/ptrace.h: ABI, the same ever since.
_PT_REGS = (
    "struct pt_regs { unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, "
    "flags, sp, ss; };"
)
_CPUTIME = "typedef unsigned long cputime_t;"


def _types(thread: str, *, info: bool, cputime: bool) -> str:
    task = _TASK.format(
        info="struct thread_info thread_info;" if info else "", time="cputime_t" if cputime else "u64"
    )
    return "\n".join(
        (_THREAD[thread], _INFO if info else "", _CPUTIME if cputime else "", task,
         _PT_REGS)
    )  # fmt: skip


# fs was renamed in 4.7, thread_info moved into the task in 4.9, cputime_t went with 4.11.
DECLARATIONS: Mapping[str, str] = {
    "4.4": _types("fs", info=False, cputime=True),
    "4.6": _types("fs", info=False, cputime=True),
    "4.8": _types("fsbase", info=False, cputime=True),
    "4.9": _types("fsbase", info=True, cputime=True),
    "4.14": _types("fsbase", info=True, cputime=False),
    "4.15": _types("fsbase", info=True, cputime=False),
    "4.18": _types("fsbase", info=True, cputime=False),
    "4.19": _types("fsbase", info=True, cputime=False),
    "5.4": _types("fsbase", info=True, cputime=False),
}

# (old, new) -> the release that has the new name
RENAMES: Mapping[tuple[str, str], tuple[int, int]] = {
    ("fs", "fsbase"): (4, 7), ("real_start_time", "start_boottime"): (5, 5), ("state", "__state"): (5, 14),
}  # fmt: skip


def release(version: str) -> tuple[int, int]:
    """(4, 14) of "4.14"."""
    major, minor = version.split(".")
    return int(major), int(minor)


def btf_of(version: str) -> bytes:
    """An ELF file with the BTF of that release's types."""
    return compile_target(DECLARATIONS[version], "struct task_struct", "struct pt_regs")
