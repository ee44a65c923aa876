"""`corematrix inspect`: relocate an object against BTF files, here and now: no guest, no root, no bpf(2).

It is the guest's engine (harness.guest.core_relo), so what it says is what a run would say of relocation. A command
wires it with

    add_arguments(parser)                      # OBJECT --btf FILE... [--arch A] [--kconfig FILE] [--release X.Y.Z] ...
    run(options, stdout, stderr) -> int        # exit status: 0, or 1 where libbpf would give up; UsageError means 2

and other code calls `inspect_object()` for the same results as values. `python -m harness.inspection` is the command
alone. Only light imports here: from process start to report is meant to take a third of a second.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.errors import CorematrixError, UsageError
from harness.guest import btf as guest_btf
from harness.guest import kconfig
from harness.guest.bpf_object import BpfObject
from harness.guest.btf import BTF_KIND_ENUM, BTF_KIND_ENUM64, BTF_KIND_FUNC, Btf
from harness.guest.core_relo import Rules, Targets, relocate
from harness.guest.errors import ExternError, GuestError
from harness.model.arch import ARCHITECTURES

if TYPE_CHECKING:
    import argparse

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


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An object against one BTF. `relos` are contract.md's lines (dicts) in record order, `externs` as in
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


# -- rendering


def render_jsonl(inspections: Iterable[Inspection], out: TextIO) -> None:
    """contract.md's lines. Of several BTFs one after the other, each closed by its result line (which names it)."""
    for inspection in inspections:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in inspection.lines())


def render_text(inspections: Sequence[Inspection], out: TextIO) -> None:
    """For people: by program and source line; of several BTFs a table, and details only of what is not the same in
    all.
    """
    if len(inspections) == 1:
        _render_one(inspections[0], out)
    else:
        _render_table(inspections, out)


def _render_one(inspection: Inspection, out: TextIO) -> None:
    out.write(f"{inspection.object} against {inspection.btf} ({inspection.btf_types - 1} types)\n")
    out.writelines(f"note: {note}\n" for note in inspection.notes)
    out.writelines(f"extern {_extern_text(extern)}\n" for extern in inspection.externs)
    prog, source = None, None
    for relo in inspection.relos:
        if relo["prog"] != prog:
            prog, source = relo["prog"], None
            out.write(f"\n{prog}  ({relo['section']})\n")
        if relo["source"] != source and relo["source"] is not None:
            source = relo["source"]
            out.write(f"  {source['file']}:{source['line']}  {source['text']}\n")
        out.write(f"    insn {relo['insn']:<4} {relo['kind']:<14} {field_text(relo)}  {_decision_text(relo)}\n")
    out.write(f"\n{_summary(inspection)}\n")


def _extern_text(extern: Mapping[str, Any]) -> str:
    value = "" if extern["value"] is None else f" = {extern['value']}"
    weak = ", weak" if extern["weak"] else ""
    reason = f": {extern['reason']}" if extern["reason"] else ""
    return f"{extern['name']}{value} ({extern['type']}{weak}) {extern['outcome']}{reason}"


def field_text(relo: Mapping[str, Any]) -> str:
    """`struct task_struct.pid` from a spec's text, `?` when it could not be parsed."""
    spec = relo["local_spec"]
    if spec is None:
        return "?"
    return str(spec.split("] ", 1)[1].split(" (", 1)[0])


def _decision_text(relo: Mapping[str, Any]) -> str:
    reason = f"  ({relo['reason']})" if relo["reason"] else ""
    if relo["outcome"] == "resolved":
        return f"{relo['orig_value']} -> {relo['new_value']}{reason}"
    return f"{relo['outcome'].upper()}{reason}"


def _summary(inspection: Inspection) -> str:
    counts = dict.fromkeys(("resolved", "poisoned", "error"), 0)
    for relo in inspection.relos:
        counts[relo["outcome"]] += 1
    total = len(inspection.relos)
    text = (
        f"{total} relocation{'' if total == 1 else 's'}: {counts['resolved']} resolved, {counts['poisoned']} poisoned"
    )
    if inspection.skipped:
        text += f"; {inspection.skipped} skipped (programs that are not loaded, or were linked away)"
    if inspection.error is not None:
        text += f"\nlibbpf would give up on this object: {inspection.error}"
    return text


def _render_table(inspections: Sequence[Inspection], out: TextIO) -> None:
    out.write(f"{inspections[0].object}\n")
    out.writelines(
        f"  [{number}] {inspection.btf} ({inspection.btf_types - 1} types)\n"
        for number, inspection in enumerate(inspections, 1)
    )
    out.writelines(f"note: {note}\n" for note in inspections[0].notes)
    rows = _rows(inspections)
    widths = [max((len(row[at]) for row in rows), default=0) for at in range(3 + len(inspections))]
    out.write("\n")
    out.writelines(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )
    for number, inspection in enumerate(inspections, 1):
        out.write(f"\n[{number}] {_summary(inspection)}\n")
        for relo in inspection.relos:
            if relo["outcome"] != "resolved":
                out.write(
                    f"  {relo['prog']} insn {relo['insn']} {relo['kind']} {field_text(relo)}  {_decision_text(relo)}\n"
                )


def _rows(inspections: Sequence[Inspection]) -> list[list[str]]:
    """A head line, then one line for each relocation: program, kind, field, and what it became in each BTF."""
    longest = max(inspections, key=lambda inspection: len(inspection.relos))
    rows = [["program", "kind", "field", *(f"[{number}]" for number in range(1, len(inspections) + 1))]]
    for index, relo in enumerate(longest.relos):
        cells = [
            _cell(inspection.relos[index] if index < len(inspection.relos) else None) for inspection in inspections
        ]
        rows.append([f"{relo['prog']}+{relo['insn']}", relo["kind"], field_text(relo), *cells])
    return rows


def _cell(relo: Mapping[str, Any] | None) -> str:
    if relo is None:
        return "-"
    return str(relo["new_value"]) if relo["outcome"] == "resolved" else str(relo["outcome"])


# -- the command


def add_arguments(parser: argparse.ArgumentParser, *, btf_required: bool = True) -> None:
    """Declare contract.md's options."""
    add = parser.add_argument
    add("object", type=Path, metavar="OBJECT", help="a compiled object")
    add(
        "--btf", type=Path, nargs="+", action="extend", required=btf_required, metavar="FILE",
        help="BTF to relocate against: raw, or an ELF with .BTF; several make a table",
    )  # fmt: skip
    add(
        "--module", type=Path, nargs="+", action="extend", default=[], metavar="FILE",
        help="modules loaded in the kernel of --btf, in that order: their types count where the kernel has none",
    )  # fmt: skip
    add("--arch", choices=sorted(ARCHITECTURES), help="architecture of the kernel (default: this machine's byte order)")
    add("--kconfig", type=Path, metavar="FILE", help="the kernel's configuration, for CONFIG_ externs")
    add("--release", metavar="X.Y.Z", help="the kernel's release, for LINUX_KERNEL_VERSION")
    add(
        "--set", action="append", default=[], metavar="VAR=VALUE",
        help="check that a .rodata variable exists (values do not change relocation)",
    )  # fmt: skip
    add("--rules", metavar="VERSION", help="follow the rules of this libbpf release (default: the newest)")
    add("--format", choices=("text", "jsonl"), default="text", help="a table for people, or an object a line")


def run(options: argparse.Namespace, stdout: TextIO, _stderr: TextIO) -> int:
    """Inspect, write the report to `stdout`; returns 0, or 1 where libbpf would give up on the object."""
    conditions = _conditions(options)
    check_settings(options.object, options.set, conditions.byteorder)
    inspections = [_against(options, path, conditions) for path in options.btf]
    render: Callable[[Sequence[Inspection], TextIO], None] = render_text if options.format == "text" else render_jsonl
    render(inspections, stdout)
    return 0 if all(inspection.error is None for inspection in inspections) else 1


def _against(options: argparse.Namespace, path: Path, conditions: Conditions) -> Inspection:
    if options.module and len(options.btf) > 1:
        message = "--module: modules belong to one kernel"
        raise UsageError(message, remedy="give one --btf")
    btf = open_btf(path)
    return inspect_object(options.object, btf, conditions, [open_module(module, btf) for module in options.module])


def _conditions(options: argparse.Namespace) -> Conditions:
    arch = ARCHITECTURES[options.arch] if options.arch else None
    try:
        text = options.kconfig.read_text("utf-8", "surrogateescape") if options.kconfig else None
    except OSError as error:
        message = f"{options.kconfig}: cannot read this Kconfig: {error.strerror}"
        raise UsageError(message) from error
    if options.release is not None and not kconfig.kernel_version(options.release):
        message = f"--release {options.release}: not a kernel release"
        raise UsageError(message, remedy="give three numbers, as in 6.1.50")
    check_rules(options.rules)
    return Conditions(
        kconfig=text,
        release=options.release,
        byteorder=arch.byteorder if arch else sys.byteorder,
        syscall_prefix=arch.syscall_prefix if arch else "x64",
        rules=options.rules,
    )


def check_rules(rules: str | None) -> None:
    """UsageError for what is no libbpf version."""
    try:
        Rules(rules)
    except ValueError as error:
        message = f"--rules {rules}: not a libbpf version"
        raise UsageError(message, remedy="give two or three numbers, as in 1.5.0") from error


def check_settings(path: Path, settings: Sequence[str], byteorder: str) -> None:
    """UsageError for a VAR=VALUE whose variable the object does not have."""
    if not settings:
        return
    obj = open_object(path, byteorder)
    rodata = {index for index, use in obj.sections.items() if use == "rodata"}
    known = {symbol.name for symbol in obj.elf.symbols if symbol.shndx in rodata and symbol.name}
    for setting in settings:
        name, separator, _ = setting.partition("=")
        if not separator or name not in known:
            message = f"--set {setting}: {path} has no .rodata variable '{name}'"
            raise UsageError(message, remedy=f"its variables: {', '.join(sorted(known)) or 'none'}; write VAR=VALUE")


def main(argv: Sequence[str] | None = None) -> int:
    """The command alone (`python -m harness.inspection`)."""
    import argparse

    parser = argparse.ArgumentParser(prog="corematrix inspect", description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv), sys.stdout, sys.stderr)
    except CorematrixError as error:
        sys.stderr.write(f"corematrix: {error}\n")
        return error.exit_status


if __name__ == "__main__":
    sys.exit(main())
