"""Why a kernel refused a program without a word: found out by loading smaller ones, never from a version number.

bpf_prog_load() checks attributes, program type, attach type and size before the verifier writes its first line, and
answers all of them with EINVAL or E2BIG. Others come from further down (trampolines, the JIT, memory), without a line
either.
"""

from __future__ import annotations

import os

from .insn import EXIT, INSN_SIZE, native
from .prog_types import ATTACH_TYPES, BPF_F_SLEEPABLE, PROG_TYPES
from .syscall import Bpf, ProgLoad

_EPERM, _ENOENT, _EINTR, _E2BIG, _EAGAIN, _ENOMEM, _EACCES, _EFAULT, _EBUSY = 1, 2, 4, 7, 11, 12, 13, 14, 16
_EINVAL, _ENOSPC, _ENOSYS, _EOPNOTSUPP, _ENOTSUPP = 22, 28, 38, 95, 524
_OLD_LIMIT = 4096  # BPF_MAXINSNS, itself too many until 4.14; privileged programs may be longer since 5.2
_SMALL = b"".join(native(*insn) for insn in ((0xB7,), (EXIT,)))
_BEFORE = "refused before the verifier: "


def explain(bpf: Bpf, features: dict[str, bool], load: ProgLoad, errno: int) -> tuple[str, str | None]:
    """`(text, unsupported)`: the cause for people, and which part of the load this kernel does not know ("prog_type",
    "attach_type", "prog_flags") or None."""
    if errno == _ENOSYS:
        return _BEFORE + "this kernel has no bpf(2) (CONFIG_BPF_SYSCALL is off)", "prog_type"
    if errno == _ENOMEM:
        return _memory(bpf, load)
    if errno in (_EPERM, _EACCES):
        return _BEFORE + "not permitted (CAP_BPF or CAP_PERFMON is missing, or a security policy forbids it)", None
    kind = PROG_TYPES[load.prog_type]
    if not _knows_type(bpf, load):
        built = _built_as(bpf, load)
        if built is not None:
            return _BEFORE + _OTHER_VERSION % (kind, _dotted(load.kern_version), _dotted(built)), None
        return _BEFORE + f"program type {kind} is unknown to this kernel", "prog_type"
    if load.expected_attach_type and not _accepts(bpf, load, load.expected_attach_type):
        attach = ATTACH_TYPES[load.expected_attach_type]
        what = (
            "this kernel knows no expected_attach_type"
            if not features["exp_attach_type"]
            else "it is unknown to this kernel"
        )
        return _BEFORE + f"attach type {attach} of program type {kind}: {what}", "attach_type"
    if load.prog_flags & BPF_F_SLEEPABLE and errno == _EINVAL and _refuses_flags(bpf, load):
        return _BEFORE + f"program type {kind} cannot be sleepable in this kernel", "prog_flags"
    count = len(load.insns) // INSN_SIZE
    if errno in (_E2BIG, _EINVAL) and count >= _OLD_LIMIT and not _takes(bpf, load, count):
        return _BEFORE + f"{count} instructions are more than this kernel takes ({_OLD_LIMIT})", "program_size"
    return _BEFORE + _OTHERS.get(errno, f"{os.strerror(errno)}, and the kernel does not say why"), None


# What is left when type, attach type and size are known to this kernel; kernel/bpf/syscall.c and verifier.c, 6.1.
_OTHERS = {
    _E2BIG: "E2BIG: a field of union bpf_attr that this kernel does not know is set",
    _ENOENT: "ENOENT: the kernel function, BTF or program that this one attaches to is not there",
    _EINTR: "EINTR: a signal came while the program was verified",
    _EAGAIN: "EAGAIN: a signal came while the program was verified, again and again",
    _EBUSY: "EBUSY: what this program attaches to is taken by another one",
    _EFAULT: "EFAULT: the kernel could not read what it was given (BTF or func_info of a form it does not know)",
    _ENOSPC: "ENOSPC: the verifier's log did not fit its buffer, which kernels before 6.4 answer with a refusal",
    _EOPNOTSUPP: "EOPNOTSUPP: this kernel or architecture knows the request and cannot do it",
    _ENOTSUPP: "ENOTSUPP (524): the program needs the JIT (kernel functions do, and CONFIG_BPF_JIT_ALWAYS_ON), and it "
    "is off or cannot translate this program here",
}


def _memory(bpf: Bpf, load: ProgLoad) -> tuple[str, str | None]:
    """ENOMEM: memory, or (where smaller programs load) bpf_trampoline_get(), a stub without CONFIG_BPF_JIT whose NULL
    check_attach_btf_id() takes for a lack of memory (6.1)."""
    attaching = _minimal(load)
    attaching.expected_attach_type, attaching.attach_btf_id = load.expected_attach_type, load.attach_btf_id
    attaching.attach_btf_obj_fd = load.attach_btf_obj_fd
    plain = ProgLoad(PROG_TYPES.index("socket_filter"), _SMALL, b"GPL")
    plain.kern_version = load.kern_version
    if load.attach_btf_id and _errno(bpf, attaching)[0] == _ENOMEM and _errno(bpf, plain)[0] != _ENOMEM:
        text = "no trampolines, by which programs of this type attach: CONFIG_BPF_JIT is off (the kernel says ENOMEM)"
        return _BEFORE + text, "attach_type"
    return _BEFORE + "ENOMEM: out of memory (`memory_mb` of the kernel's row gives a guest more)", None


def _minimal(load: ProgLoad) -> ProgLoad:
    small = ProgLoad(load.prog_type, _SMALL, b"GPL")
    small.kern_version = load.kern_version
    return small


def _errno(bpf: Bpf, load: ProgLoad) -> tuple[int, bytes]:
    try:
        os.close(bpf.prog_load(load, 1, 65536))
    except OSError as error:
        return error.errno or 0, bpf.log_buffer().text()
    return 0, b""


def _knows_type(bpf: Bpf, load: ProgLoad) -> bool:
    """A type the kernel knows either loads, with some attach type, or gets as far as a word from the verifier."""
    tries = [_minimal(load)]
    for attach_type, attach_btf in ((load.expected_attach_type, 0), (load.expected_attach_type, load.attach_btf_id)):
        one = _minimal(load)
        one.expected_attach_type, one.attach_btf_id, one.attach_btf_obj_fd = (
            attach_type,
            attach_btf,
            load.attach_btf_obj_fd,
        )
        tries.append(one)
    return any(errno == 0 or log for errno, log in (_errno(bpf, one) for one in tries))


def _built_as(bpf: Bpf, load: ProgLoad) -> int | None:
    """The version a kprobe program must name here, where it is another sublevel than the one we were told: kernels
    before 5.0 compare it with the LINUX_VERSION_CODE they were built with (6c4fc209fcf9 ended that), and a vendor's
    `uname -r` may say another. None where no sublevel will do.
    """
    if PROG_TYPES[load.prog_type] != "kprobe":
        return None
    for sublevel in range(256):
        one = _minimal(load)
        one.kern_version = load.kern_version & ~0xFF | sublevel
        if _errno(bpf, one)[0] == 0:
            return one.kern_version
    return None


_OTHER_VERSION = (
    "programs of type %s must name the version this kernel was built as, and what it says of itself is another (told "
    "%s, it takes %s): give the object a `version` section, or tell libbpf's kern_version"
)


def _dotted(version: int) -> str:
    return f"{version >> 16}.{version >> 8 & 0xFF}.{version & 0xFF}"


def _takes(bpf: Bpf, load: ProgLoad, count: int) -> bool:
    """Whether this kernel takes so many instructions of the plainest kind."""
    long = _minimal(load)
    long.insns = native(0xB7) * (count - 1) + native(EXIT)
    errno, log = _errno(bpf, long)
    return errno == 0 or bool(log)


def _accepts(bpf: Bpf, load: ProgLoad, attach_type: int) -> bool:
    one = _minimal(load)
    one.expected_attach_type = attach_type
    one.attach_btf_id, one.attach_btf_obj_fd = load.attach_btf_id, load.attach_btf_obj_fd
    errno, log = _errno(bpf, one)
    return errno == 0 or bool(log)


def _refuses_flags(bpf: Bpf, load: ProgLoad) -> bool:
    one = _minimal(load)
    one.expected_attach_type, one.prog_flags = load.expected_attach_type, load.prog_flags
    one.attach_btf_id, one.attach_btf_obj_fd = load.attach_btf_id, load.attach_btf_obj_fd
    errno, log = _errno(bpf, one)
    return errno != 0 and not log
