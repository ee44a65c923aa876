"""`corematrix inspect --btf`:

    add_arguments(parser)                      # OBJECT --btf FILE... [--arch A] [--kconfig FILE] [--release X.Y.Z] ...
    run(options, stdout, stderr) -> int        # exit status: 0, or 1 where libbpf would give up; UsageError means 2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from harness.errors import CorematrixError, UsageError
from harness.guest import kconfig
from harness.guest.core_relo import Rules
from harness.inspection import Conditions, Inspection, inspect_object, open_btf, open_module, open_object
from harness.inspection.text import render_jsonl, render_text
from harness.model.arch import ARCHITECTURES


def add_arguments(parser: argparse.ArgumentParser, *, btf_required: bool = True) -> None:
    """Declare docs/contract.md's options."""
    add = parser.add_argument
    add("object", type=Path, metavar="OBJECT", help="a compiled object")
    add(
        "--btf", type=Path, nargs="+", action="extend", required=btf_required, metavar="FILE",
        help="BTF to relocate against: raw, or an ELF with .BTF; several make a table",
    )  # fmt: skip
    add(
        "--module", type=Path, nargs="+", action="extend", default=[], metavar="FILE",
        help="modules loaded in the kernel of --btf, in that order: searched for types that the kernel lacks",
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
    parser = argparse.ArgumentParser(prog="corematrix inspect", description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    try:
        return run(parser.parse_args(argv), sys.stdout, sys.stderr)
    except CorematrixError as error:
        sys.stderr.write(f"corematrix: {error}\n")
        return error.exit_status

