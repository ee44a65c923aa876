"""`corematrix inspect OBJECT --running`: this machine's kernel, read from its files; nothing is loaded, no root."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from harness import inspection
from harness.errors import UsageError
from harness.guest.btf import Btf
from harness.guest.errors import GuestError
from harness.guest.kconfig import kernel_version, reads_debian_version
from harness.inspection import Conditions, Inspection, command
from harness.inspection.text import render_text
from harness.model.machines import local_architecture
from harness.predict.kernels import model_from
from harness.report.untrusted import line
from harness.sweep.answers import Answer, ProgDetail, Subject
from harness.sweep.points import Point

_ROOT = Path("/")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`kconfig` is where `conditions.kconfig` was read, None when it is nowhere to be read."""

    release: str
    btf: Path
    kconfig: str | None
    conditions: Conditions


def this_machine(rules: str | None = None, root: Path = _ROOT) -> Machine:
    """What the files below `root` say of the kernel that runs. UsageError when it has no BTF."""
    uname = os.uname()
    btf = root / "sys/kernel/btf/vmlinux"
    if not btf.exists():
        message = f"this kernel ({uname.release}) has no BTF: {btf} is not there"
        raise UsageError(message, remedy="it wants CONFIG_DEBUG_INFO_BTF=y; or name BTF from elsewhere with --btf")
    where, text = _kconfig(root, uname.release)
    arch = local_architecture()
    conditions = Conditions(rules=rules)
    version = uname.version if reads_debian_version(conditions.rules_number) else ""
    number = kernel_version(uname.release, version, _read(root / "proc/version_signature"))
    return Machine(
        release=uname.release,
        btf=btf,
        kconfig=where,
        conditions=replace(
            conditions,
            kconfig=text,
            release=f"{number >> 16}.{number >> 8 & 255}.{number & 255}" if number else None,
            byteorder=sys.byteorder,
            syscall_prefix=arch.syscall_prefix if arch else "x64",
        ),
    )


def _kconfig(root: Path, release: str) -> tuple[str | None, str | None]:
    """Where libbpf would read it, and its text."""
    plain, packed = root / f"boot/config-{release}", root / "proc/config.gz"
    text = _read(plain)
    if text is not None:
        return str(plain), text
    try:
        return str(packed), gzip.decompress(packed.read_bytes()).decode("utf-8", "surrogateescape")
    except (OSError, EOFError, zlib.error):
        return None, None


def _read(path: Path) -> str | None:
    try:
        return path.read_text("utf-8", "surrogateescape")
    except OSError:
        return None


def run(options: argparse.Namespace, stdout: TextIO, root: Path = _ROOT) -> int:
    """Inspect and foretell; see `commands.inspect.run` for the status."""
    command.check_rules(options.rules)
    machine = this_machine(options.rules, root)
    command.check_settings(options.object, options.set, machine.conditions.byteorder)
    btf = inspection.open_btf(machine.btf)
    found = inspection.inspect_object(options.object, btf, machine.conditions)
    subject, answer = _foretold(options, btf, machine.conditions)
    if options.format == "jsonl":
        _jsonl(found, subject, answer, stdout)
    else:
        render_text([found], stdout)
        stdout.writelines(f"{line(text)}\n" for text in _text(machine, subject, answer))
    refused = any(fate.outcome == "refused" for fate in answer.progs.values())
    return 1 if refused or found.error is not None else 0


def _foretold(options: argparse.Namespace, btf: Btf, conditions: Conditions) -> tuple[Subject, Answer]:
    settings = dict(setting.split("=", 1) for setting in options.set)
    path = options.object
    try:
        name = path.name.removesuffix(".o").removesuffix(".bpf")
        subject = Subject(path.read_bytes(), str(path), name, settings, conditions.byteorder)
        return subject, subject.against(btf, conditions, model_from(btf), has_functions=True, detailed=True)
    except GuestError as error:
        raise UsageError(error.message) from error


def _details(answer: Answer) -> Iterator[tuple[str, ProgDetail]]:
    assert answer.detail is not None
    yield from answer.detail.progs.items()


def _jsonl(found: Inspection, subject: Subject, answer: Answer, stdout: TextIO) -> None:
    """docs/contract.md's lines, one more for each program before the result line."""
    *relocations, result = found.lines()
    progs = [
        {
            "type": "prog", "name": name, "section": subject.sections[name], "prog_type": detail.prog_type,
            "outcome": answer.progs[name].outcome, "reason": answer.progs[name].reason, "evidence": "predicted",
            "core_relos": [{"index": index, "liveness": liveness} for index, liveness in detail.relocations],
            "helpers": list(detail.helpers), "attach": detail.point._asdict() if detail.point else None,
        }
        for name, detail in _details(answer)
    ]  # fmt: skip
    stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in (*relocations, *progs, result))


def _text(machine: Machine, subject: Subject, answer: Answer) -> Iterator[str]:
    yield ""
    config = machine.kconfig or "nowhere to be read (values of CONFIG_ externs are not known)"
    yield f"this machine: {machine.release}; its Kconfig: {config}"
    yield "foretold, not proven: nothing was loaded (as root, `corematrix run OBJECT -k local` proves it)"
    for name, detail in _details(answer):
        fate = answer.progs[name]
        yield f"  {name}  ({subject.sections[name]}): {fate.outcome}" + (f": {fate.reason}" if fate.reason else "")
        if detail.point is not None:
            yield f"      {_point(detail.point)}"
        for word in ("eliminated", "unknown"):
            count = sum(liveness == word for _, liveness in detail.relocations)
            if count:
                yield f"      {count} of {len(detail.relocations)} relocations {word}"
    assert answer.detail is not None
    yield from (f"  {_point(point)}" for point in answer.detail.points)


def _point(point: Point) -> str:
    if point.found:
        return f"{point.what} {point.name}: there" + (f": {point.signature}" if point.signature else "")
    return f"{point.what} {point.name}: " + (
        "BTF does not tell" if point.found is None else "not in vmlinux (a module may have it, or it was inlined)"
    )
