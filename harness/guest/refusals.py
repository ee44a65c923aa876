"""Why a kernel refused a program without a word: found out by loading smaller ones, never from a version number.

bpf_prog_load() checks attributes, program type, attach type and size before the verifier writes its first line, and
answers all of them with EINVAL or E2BIG.
"""

from __future__ import annotations

import os

from .insn import EXIT, INSN_SIZE, native
from .prog_types import ATTACH_TYPES, BPF_F_SLEEPABLE, PROG_TYPES
from .syscall import Bpf, ProgLoad

_EPERM, _E2BIG, _EINVAL, _ENOSPC = 1, 7, 22, 28
_OLD_LIMIT = 4096  # BPF_MAXINSNS; privileged programs may be longer since 5.2
_SMALL = b"".join(native(*insn) for insn in ((0xB7,), (EXIT,)))
_BEFORE = "refused before the verifier: "


def explain(bpf: Bpf, features: dict[str, bool], load: ProgLoad, errno: int) -> tuple[str, str | None]:
    """`(text, unsupported)`: the cause for people, and which part of the load this kernel does not know ("prog_type",
    "attach_type", "prog_flags") or None."""
    if errno == _EPERM:
        return _BEFORE + "not permitted (CAP_BPF or CAP_PERFMON is missing, or a security policy forbids it)", None
    kind = PROG_TYPES[load.prog_type]
    if not _knows_type(bpf, load):
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
    if errno in (_E2BIG, _EINVAL) and count > _OLD_LIMIT:
        return _BEFORE + f"{count} instructions are more than this kernel takes ({_OLD_LIMIT})", "program_size"
    return _BEFORE + f"{os.strerror(errno)}, and the kernel does not say why", None


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
