"""`corematrix inspect`: relocate an object against BTF files, here and now: no guest, no root, no bpf(2).

It is the guest's engine (harness.guest.core_relo), so what it says is what a run would say of relocation. Here are the
results as values (`inspect_object()`); `text` writes them, `command` is the command, `python -m harness.inspection` the
command alone. Only light imports: from process start to report is meant to take a third of a second.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.guest import btf as guest_btf
from harness.guest import kconfig
from harness.guest.bpf_object import BpfObject
from harness.guest.btf import BTF_KIND_ENUM, BTF_KIND_ENUM64, BTF_KIND_FUNC, Btf
from harness.guest.core_relo import Rules, Targets, relocate
from harness.guest.errors import ExternError, GuestError

NOT_ASKED = "unknown"  # outcome of an extern whose Kconfig or release was not given


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What stands for the machine. `kconfig` is the text of a Kconfig, `release` as in `uname -r`; None: externs that
    need them are not judged. `byteorder` is what the object must have. `rules` is the libbpf version to follow, None
    the newest.
    """

    kconfig: str | None = None
    release: str | None = None
    byteorder: str = sys.byteorder
    syscall_prefix: str = "x64"
    rules: str | None = None

    @property
    def rules_number(self) -> tuple[int, ...] | None:
        """`rules` as the guest's modules take it."""
        return None if self.rules is None else tuple(int(word) for word in self.rules.split(".")[:2])


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An object against one BTF. `relos` are docs/contract.md's lines (dicts) in record order, `externs` as in
    docs/facts.md, `error` what libbpf would give up with (stage and sentence), None when it would not.
    """

    object: str
    btf: str
    btf_types: int
    relos: tuple[dict[str, Any], ...]
    skipped: int
    externs: tuple[dict[str, Any], ...] = ()
    error: str | None = None
    notes: tuple[str, ...] = field(default=())

    def lines(self) -> list[dict[str, Any]]:
        """The records of `--format jsonl`: one for each relocation, then the result."""
        result = {
            "type": "result",
            "ok": self.error is None,
            "error": self.error,
            "core_relos": len(self.relos),
            "skipped": self.skipped,
            "btf": self.btf,
            "externs": list(self.externs),
        }
        return [*self.relos, result]


def open_object(path: Path, byteorder: str = sys.byteorder) -> BpfObject:
    """Read an object. UsageError when it cannot be read or used."""
    try:
        return BpfObject(path.read_bytes(), str(path), byteorder)
    except OSError as error:
        message = f"{path}: cannot read this object: {error.strerror}"
        raise UsageError(message) from error
    except GuestError as error:
        raise UsageError(error.message, remedy="compile it with `clang --target=bpf -g -O2 -c`") from error


def open_btf(path: Path) -> Btf:
    """Read a BTF file: raw, or an ELF with .BTF. UsageError when it cannot be read or used."""
    try:
        return guest_btf.load(str(path))
    except OSError as error:
        message = f"{path}: cannot read this BTF: {error.strerror}"
        raise UsageError(message) from error
    except GuestError as error:
        remedy = "give raw BTF (as /sys/kernel/btf/vmlinux) or an ELF with .BTF"
        if path.name.endswith(".ko"):
            remedy = f"a module's BTF is split over its kernel's: give that as --btf, and --module {path}"
        raise UsageError(error.message, remedy=remedy) from error


def open_module(path: Path, base: Btf) -> tuple[str, Btf]:
    """A module's name and BTF, split over its kernel's, from a .ko or a file of /sys/kernel/btf. UsageError."""
    name = path.name.partition(".")[0].replace("-", "_")
    try:
        btf = guest_btf.load(str(path), base)
        for id_ in range(btf.start_id, btf.count):  # over another kernel's BTF names lie anywhere
            _ = btf.type(id_).name
        return name, btf
    except OSError as error:
        message = f"{path}: cannot read this module: {error.strerror}"
        raise UsageError(message) from error
    except GuestError as error:
        raise UsageError(error.message, remedy="give an uncompressed .ko of the kernel that --btf is of") from error


def inspect_object(
    path: Path, btf: Btf, conditions: Conditions | None = None, modules: Sequence[tuple[str, Btf]] = ()
) -> Inspection:
    """Relocate the object in `path` against `btf`, and where that has no type of a name against `modules` in their
    order. UsageError when the object cannot be used; a finding is a value.
    """
    conditions = conditions or Conditions()
    return inspect_opened(open_object(path, conditions.byteorder), str(path), btf, conditions, modules)


def inspect_opened(
    obj: BpfObject, path: str, btf: Btf, conditions: Conditions, modules: Sequence[tuple[str, Btf]] = ()
) -> Inspection:
    """The same for an object that is open: its instructions are changed in place. UsageError as above."""
    externs, error = _resolve_externs(obj, btf, conditions)
    relos: tuple[dict[str, Any], ...] = ()
    skipped = 0
    if error is None:  # libbpf resolves externs first: after a failure nothing is relocated
        try:
            run = relocate(obj, Targets(btf, lambda: list(modules)), Rules(conditions.rules))
        except GuestError as broken:
            raise UsageError(broken.message) from broken
        relos, skipped = tuple(relo.as_dict() for relo in run.relos), run.skipped
        error = f"core: {run.error.reason}: {run.error.message}" if run.error is not None else None
    return Inspection(
        object=path, btf=btf.name, btf_types=btf.count, relos=relos, skipped=skipped, externs=externs, error=error,
        notes=_notes(obj),
    )  # fmt: skip


def _notes(obj: BpfObject) -> tuple[str, ...]:
    notes = []
    if obj.btf_error is not None:
        notes.append(f"ignored, as libbpf would: {obj.btf_error}")
    elif obj.btf is None:
        notes.append("the object has no BTF: nothing in it can be relocated")
    elif obj.btf_ext is None:
        notes.append("the object has no .BTF.ext: nothing in it can be relocated")
    return tuple(notes)


# -- externs


def _resolve_externs(obj: BpfObject, btf: Btf, conditions: Conditions) -> tuple[tuple[dict[str, Any], ...], str | None]:
    """Rows for the Kconfig externs, and the error libbpf would stop with."""
    try:
        found = kconfig.find_externs(obj)[".kconfig"]
        if obj.btf is None or not found:
            return (), None
        externs = kconfig.layout(found, obj.btf)
    except GuestError as error:
        return (), f"{error.stage}: {error.message}"
    asked = [extern for extern in externs if _is_known(extern, conditions)]
    error_text, broken = None, None
    try:
        kconfig.resolve(
            asked, byteorder=obj.byteorder, extra=None, system=lambda: conditions.kconfig,
            virtual=lambda name: _virtual(name, btf, conditions),
        )  # fmt: skip
    except ExternError as error:
        error_text, broken = f"externs: {error.message}", error.name
    rows = [_extern_row(extern, obj.byteorder, extern in asked, broken) for extern in externs]
    return tuple(rows), error_text


def _is_known(extern: kconfig.Extern, conditions: Conditions) -> bool:
    if extern.name.startswith("CONFIG_"):
        return conditions.kconfig is not None
    return extern.name != "LINUX_KERNEL_VERSION" or conditions.release is not None


def _virtual(name: str, btf: Btf, conditions: Conditions) -> int | None:
    """LINUX_* externs. libbpf loads a program to find two of them out; their BTF tells the same of a kernel not
    running.
    """
    if name == "LINUX_KERNEL_VERSION":
        return kconfig.kernel_version(conditions.release or "")
    if name == "LINUX_HAS_BPF_COOKIE":  # since 5.15, 7adfc6c9b315: the probe calls bpf_get_attach_cookie()
        return int(_has_enumerator(btf, "bpf_func_id", "BPF_FUNC_get_attach_cookie"))
    if name == "LINUX_HAS_SYSCALL_WRAPPER":  # the probe attaches a kprobe to the wrapper's symbol
        return int(btf.find(f"__{conditions.syscall_prefix}_sys_bpf", BTF_KIND_FUNC) is not None)
    return None


def _has_enumerator(btf: Btf, enum: str, name: str) -> bool:
    for kind in (BTF_KIND_ENUM, BTF_KIND_ENUM64):
        id_ = btf.find(enum, kind)
        if id_ is not None:
            return any(enumerator == name for enumerator, _ in btf.enumerators(btf.type(id_)))
    return False


def _extern_row(extern: kconfig.Extern, byteorder: str, asked: bool, broken: str | None) -> dict[str, Any]:
    outcome = "resolved" if extern.is_set else "missing" if asked else NOT_ASKED
    reason = None if asked else "give --release" if extern.name == "LINUX_KERNEL_VERSION" else "give --kconfig"
    return {
        "name": extern.name,
        "kind": "kconfig",
        "type": extern.kind,
        "value": extern.plain_value(byteorder) if asked else None,
        "weak": extern.weak,
        "outcome": "error" if extern.name == broken else outcome,
        "reason": reason,
    }
