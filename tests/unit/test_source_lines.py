"""The source line of a relocation is what .BTF.ext's line_info says; second source: llvm-objdump's reader of it.

Only where the instruction has no record of its own may a nearby line that names the member take its place.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from harness.guest.bpf_object import BpfObject
from harness.guest.core_relo import CoreRelo, Targets, relocate
from tests.support.objects import PROGRAMS, compile_object, tool

_INSN = re.compile(r"^\s+(\d+):\s")
_LINE = re.compile(r"^; (?:.*/)?[^/:]+:(\d+)$")
_SECTION = re.compile(r"^Disassembly of section (.*):$")


class Place(NamedTuple):
    """The line in force at an instruction, and whether it was printed for just this one."""

    line: int | None
    own: bool


def objdump(path: Path) -> dict[tuple[str, int], Place]:
    """(section, instruction) -> the line llvm-objdump gives it, from .BTF.ext alone: the DWARF is stripped first."""
    stripped = path.with_suffix(".stripped.o")
    shutil.copy(path, stripped)
    subprocess.run([tool("llvm-strip"), "-g", stripped], check=True)
    command = [tool("llvm-objdump"), "-d", "--line-numbers", stripped]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found: dict[tuple[str, int], Place] = {}
    section, line, own = "", None, False
    for row in text.splitlines():
        if match := _SECTION.match(row):
            section, line = match[1], None
        elif match := _LINE.match(row):
            line, own = int(match[1]), True
        elif match := _INSN.match(row):
            found[section, int(match[1])] = Place(line, own)
            own = False
    return found


def relocations(path: Path) -> list[CoreRelo]:
    """All of the object's, against nothing: the line does not depend on the target."""
    obj = BpfObject(path.read_bytes(), str(path))
    assert obj.btf is not None
    return relocate(obj, Targets(obj.btf)).relos


NAMES = "task_state fsbase_as_published tcp_bitfields cgroup_subsys exe_name exe_name_direct cpu_time"


@pytest.mark.parametrize("name", NAMES.split())
def test_lines_are_those_of_line_info(tmp_path: Path, name: str) -> None:
    flags = ("-D__TARGET_ARCH_x86",)
    path = compile_object(PROGRAMS / f"{name}.bpf.c", tmp_path / f"{name}.o", *flags)
    lines = objdump(path)
    same = 0
    for relo in relocations(path):
        place = lines[relo.prog.section, relo.prog.sec_insn_off + relo.insn]
        assert relo.source is not None and place.line is not None
        if relo.source["line"] == place.line:
            same += 1
            continue
        assert not place.own, f"{relo.local_spec}: line {place.line} is its own, {relo.source} was named"
        member = re.findall(r"\w+", str(relo.local_spec).partition(" (")[0].partition(" = ")[0])[-1].partition("___")[0]
        assert re.search(rf"\b{member}\b", str(relo.source["text"]))
    assert same > 0


HIDDEN = """
struct task { int pid; int other; } __attribute__((preserve_access_index));
#define GET(t) ((t)->pid)
static int (*const trace)(const char *, int, ...) = (void *)6;

__attribute__((section("raw_tp/x"), used)) int prog(struct task **ctx)
{
	struct task *t = *ctx;
	volatile int first = GET(t);
	volatile int second = t->pid + 1;

	return first + second;
}
char LICENSE[] __attribute__((section("license"), used)) = "GPL";
"""


def test_a_line_of_its_own_stays_although_the_next_names_the_member(tmp_path: Path) -> None:
    """The access hidden in a macro: the line says nothing of `pid`, the next one does, and is not taken."""
    source = tmp_path / "hidden.bpf.c"
    source.write_text(HIDDEN)
    path = compile_object(source, tmp_path / "hidden.o", "-Wno-unused")
    lines = objdump(path)
    first = relocations(path)[0]
    place = lines[first.prog.section, first.prog.sec_insn_off + first.insn]
    assert place.own and first.source is not None
    assert first.source["line"] == place.line == HIDDEN.splitlines().index("\tvolatile int first = GET(t);") + 1
    assert first.source["text"] == "volatile int first = GET(t);"
