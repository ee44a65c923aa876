"""One program's way into the kernel: attach target, load attributes as libbpf sets them, the verdict load.

libbpf: libbpf_prepare_prog_load(), bpf_object_load_prog(), bpf_object__sanitize_prog(). The verdict is what libbpf's
load would give; only the log level differs (statistics at once, where libbpf asks for a log after a failure), which
decides nothing.
"""

from __future__ import annotations

import os
import sys

from . import btf as B
from . import insn as I
from . import verifier_log
from .prog_types import (
    ATTACH_BTF,
    ATTACH_PREFIX,
    ATTACH_TYPE,
    ATTACH_TYPES,
    EXP_ATTACH_OPT,
    PROG_TYPE,
    USDT,
    SecDef,
)
from .syscall import LOG_MAX, LOG_STATS, Bpf, ProgLoad

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .bpf_object import Prog
    from .externs import KernelSymbols
    from .linking import Linked

_ENOSPC, _EINVAL, _ENOENT, _ESRCH = 28, 22, 2, 3
LOG_KEPT = 1 << 20  # bytes of a log that go into the facts: its end, where the reason stands
_PROBE_READ, _PROBE_READ_STR = 4, 45
# bpf_probe_read_{user,kernel}[_str] came with 5.5; before, one helper read both (bpf_object__sanitize_prog()).
OLD_HELPER = {112: _PROBE_READ, 113: _PROBE_READ, 114: _PROBE_READ_STR, 115: _PROBE_READ_STR}


class Refusal(Exception):
    """libbpf would not even ask the kernel. `stage`, `errno` and text as in the facts; `unsupported` as there."""

    def __init__(self, message: str, errno: int, unsupported: str | None = None, stage: str = "pre_verifier") -> None:
        Exception.__init__(self, message)
        self.message = message
        self.errno = errno
        self.unsupported = unsupported
        self.stage = stage


class Attach:
    """What a program is attached to: BTF id of the target, and the fd of the module's BTF (0: vmlinux)."""

    __slots__ = ("btf_id", "btf_obj_fd")

    def __init__(self, btf_id: int = 0, btf_obj_fd: int = 0) -> None:
        self.btf_id = btf_id
        self.btf_obj_fd = btf_obj_fd


def find_attach_target(name: str, definition: SecDef, kernel: KernelSymbols) -> Attach:
    """The BTF id of SEC("fentry/NAME") and its like (find_kernel_btf_id()). Refusal when there is none."""
    where = f"prog '{name}'"
    if definition.target is None:
        raise Refusal(f"{where}: no BTF-based attach target is specified in its section name", _EINVAL, "attach_target")
    if definition.type == PROG_TYPE["ext"]:
        raise Refusal(
            f"{where}: freplace wants the running program it replaces, and there is none", _EINVAL, "attach_target"
        )
    module, colon, function = definition.target.rpartition(":")
    if kernel.btf() is None:
        raise Refusal(
            f"{where}: attaching to '{definition.target}' needs the kernel's own BTF, and it has none",
            _ESRCH,
            "attach_target",
        )
    prefix, kind = ATTACH_PREFIX.get(ATTACH_TYPES[definition.attach], ("", "func"))
    found = kernel.find_in(module if colon else None, prefix + function, B.KIND_NAMES.index(kind))
    if found is None:
        places = "the BTF of the kernel or a loaded module"
        if kernel.modules_lack_btf():
            places = "the kernel's BTF, and of the modules none has any (CONFIG_DEBUG_INFO_BTF_MODULES)"
        raise Refusal(
            f"{where}: failed to find kernel BTF type ID of '{definition.target}': {prefix}{function} is not in "
            + places, _ESRCH, "attach_target",
        )  # fmt: skip
    type_id, fd = found
    return Attach(type_id, fd)


def sanitise_calls(code: bytearray, features: dict[str, bool]) -> int:
    """Rewrite calls of helpers this kernel lacks to the older one that does the same; how many there were."""
    if features["probe_read_kern"]:
        return 0
    count = 0
    for at in range(len(code) // I.INSN_SIZE):
        op, dst, src, off, imm = I.read(code, at, sys.byteorder)
        if op == I.CALL and src == 0 and imm in OLD_HELPER:
            I.write(code, at, op, dst, src, off, OLD_HELPER[imm], sys.byteorder)
            count += 1
    return count


class Preparer:
    """Turns linked programs into load attributes, on one kernel and for one object.

    `btf_fd` is the object's loaded BTF (0: none), `license_` and `kern_version` the object's. Adaptations taken are
    told to the list each call is given, as facts.
    """

    def __init__(
        self, features: dict[str, bool], kernel: KernelSymbols, btf_fd: int, license_: bytes, kern_version: int
    ) -> None:
        self._features = features
        self._kernel = kernel
        self._btf_fd = btf_fd
        self._license = license_
        self._kern_version = kern_version

    def prepare(
        self, prog: Prog, definition: SecDef | None, linked: Linked, info: tuple[bytes, bytes], attach: Attach | None,
        adaptations: list[dict[str, Any]],
    ) -> ProgLoad:  # fmt: skip
        """The verdict load's attributes. Refusal where libbpf stops before the kernel. `attach` is given for
        struct_ops only."""
        if definition is None:
            raise Refusal(
                f"prog '{prog.name}': missing BPF prog type, check ELF section name '{prog.section}'",
                _EINVAL,
                "section",
            )
        rewritten = sanitise_calls(linked.code, self._features)
        if rewritten:
            detail = f"{rewritten} calls of bpf_probe_read_kernel/user and their _str forms became bpf_probe_read[_str]"
            adaptations.append({"name": "no_probe_read_kernel", "libbpf": True, "detail": detail})
        load = ProgLoad(definition.type, bytes(linked.code), self._license)
        load.kern_version = self._kern_version
        load.prog_flags = definition.prog_flags
        self._set_name(load, prog, adaptations)
        self._set_attach_type(load, definition, adaptations)
        if attach is None and definition.flags & ATTACH_BTF:
            attach = find_attach_target(prog.name, definition, self._kernel)
        if attach is not None:
            load.attach_btf_id, load.attach_btf_obj_fd = attach.btf_id, attach.btf_obj_fd
        if self._btf_fd and self._features["btf_func"]:
            load.btf_fd = self._btf_fd
            load.func_info, load.line_info = info
        return load

    def _set_name(self, load: ProgLoad, prog: Prog, adaptations: list[dict[str, Any]]) -> None:
        if self._features["prog_name"]:
            load.name = prog.name
        else:
            adaptations.append({"name": "no_prog_name", "libbpf": True, "detail": "loaded without a name"})

    def _set_attach_type(self, load: ProgLoad, definition: SecDef, adaptations: list[dict[str, Any]]) -> None:
        load.expected_attach_type = definition.attach
        if definition.flags & EXP_ATTACH_OPT and not self._features["exp_attach_type"]:
            load.expected_attach_type = 0
            adaptations.append(
                {"name": "no_expected_attach_type", "libbpf": True, "detail": "loaded without its attach type"}
            )
        if definition.flags & USDT and self._features["uprobe_multi_link"]:
            load.expected_attach_type = ATTACH_TYPE["trace_uprobe_multi"]


class Verdict:
    """What the kernel said: `fd` of the loaded program or None with `errno`; `log` its words, `truncated` when they
    did not all fit; `figures` the verifier's numbers."""

    __slots__ = ("errno", "fd", "figures", "log", "truncated")

    def __init__(self) -> None:
        self.fd: int | None = None
        self.errno: int | None = None
        self.log = ""
        self.truncated = False
        self.figures: dict[str, int | None] | None = None


def verdict_load(bpf: Bpf, load: ProgLoad) -> Verdict:
    """Load once for the figures; when refused, once more for the log a person would read (libbpf's level 1).

    Levels change what is printed and never what is decided, with one exception: a log that does not fit is ENOSPC, so
    a load that failed with that is done again without a log.
    """
    verdict = Verdict()
    try:
        verdict.fd = bpf.prog_load(load, LOG_STATS, LOG_MAX)
    except OSError as error:
        verdict.errno = error.errno
    if verdict.errno == _ENOSPC:
        _load_silently(bpf, load, verdict)
    elif verdict.errno is not None and bpf.log_buffer().text():
        _load_for_log(bpf, load, verdict)
    else:
        _take_log(bpf.log_buffer().text(), verdict)
    return verdict


def with_its_end(log: bytes, short: bytes) -> bytes:
    """A log that did not fit, and after it what it has lost, if that is its end: the reason and the figures, which the
    `short` log of the same load (statistics only) has too.

    A full buffer keeps its end since 6.4 (commit 121664093803), its beginning before that.
    """
    if verifier_log.figures(log[-verifier_log.TAIL :].decode("utf-8", "replace")) is not None:
        return log
    return log + b"\n[... the kernel's log buffer was full ...]\n" + short


def _load_silently(bpf: Bpf, load: ProgLoad, verdict: Verdict) -> None:
    _take_log(bpf.log_buffer().text(), verdict)
    verdict.truncated = True
    verdict.errno = None
    try:
        verdict.fd = bpf.prog_load(load)
    except OSError as error:
        verdict.errno = error.errno


def _load_for_log(bpf: Bpf, load: ProgLoad, verdict: Verdict) -> None:
    short = log = bpf.log_buffer().text()
    try:
        # A second load can only end as the first; should it not, the first one counts and the program is not kept.
        os.close(bpf.prog_load(load, 1 | LOG_STATS, LOG_MAX))
    except OSError as error:
        verdict.truncated = error.errno == _ENOSPC
        log = bpf.log_buffer().text()
    _take_log(with_its_end(log, short) if verdict.truncated else log, verdict)


def _take_log(log: bytes, verdict: Verdict) -> None:
    if len(log) > LOG_KEPT:
        log, verdict.truncated = log[-LOG_KEPT:], True
    verdict.log = log.decode("utf-8", "replace")
    verdict.figures = verifier_log.figures(verdict.log)
