"""The ELF reader; pyelftools is the second witness."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from harness.guest.bpf_object import BpfObject
from harness.guest.elf import SHT_REL, Elf
from harness.guest.errors import GuestError, MalformedElf, NotBpf, NotElf, Unsupported, WrongEndian
from tests.support.clang import CLANG, compile_bpf, needs_clang

SOURCE = """
int counter = 3; static const volatile int limit = 7; extern int outside;
static noinline int helper(int x) { return x + counter + limit; }
SEC("tc") int entry(void *ctx) { return helper((u64)ctx); }
SEC("?xdp") int optional(void *ctx) { return 2; }
"""
MACHINES = ["x86_64-linux-gnu", "i386-linux-gnu", "s390x-linux-gnu", "powerpc-linux-gnu", "bpfel", "bpfeb"]


def _compile(tmp_path: Path, triple: str) -> bytes:
    needs_clang()
    source = tmp_path / "x.c"
    source.write_text(
        "int counter = 3; static int hidden; int *f(void) { return &hidden; } int g(void) { return counter; }\n"
    )
    subprocess.run(
        [CLANG, f"--target={triple}", "-g", "-O1", "-c", str(source), "-o", str(tmp_path / "x.o")], check=True
    )
    return (tmp_path / "x.o").read_bytes()


def _agree(data: bytes) -> None:
    ours, theirs = Elf(data), ELFFile(io.BytesIO(data))
    assert (ours.is64, ours.byteorder == "little") == (theirs.elfclass == 64, theirs.little_endian)
    assert ours.type == {"ET_REL": 1, "ET_EXEC": 2, "ET_DYN": 3}[theirs["e_type"]]
    assert len(ours.sections) == theirs.num_sections()
    for section, other in zip(ours.sections, theirs.iter_sections(), strict=True):
        assert (section.name, section.offset, section.size) == (other.name, other["sh_offset"], other["sh_size"])
        assert (section.flags, section.link, section.info) == (other["sh_flags"], other["sh_link"], other["sh_info"])
        if other["sh_type"] not in ("SHT_NOBITS", "SHT_NULL"):
            assert ours.content(section) == other.data()
        if section.type == SHT_REL and isinstance(other, RelocationSection):
            expected = [(r["r_offset"], r["r_info_type"], r["r_info_sym"]) for r in other.iter_relocations()]
            assert ours.relocs(section) == expected
    table = theirs.get_section_by_name(".symtab")
    if isinstance(table, SymbolTableSection):
        expected_symbols = [(s.name, s["st_value"], s["st_size"]) for s in table.iter_symbols()]
        named = [(s.name, s.value, s.size) for s in ours.symbols]
        sections = [s["st_info"]["type"] == "STT_SECTION" for s in table.iter_symbols()]
        assert [a for a, skip in zip(named, sections, strict=True) if not skip] == [
            b for b, skip in zip(expected_symbols, sections, strict=True) if not skip
        ]


@pytest.mark.parametrize("triple", MACHINES)
def test_relocatable_files_of_every_class_and_order(tmp_path: Path, triple: str) -> None:
    _agree(_compile(tmp_path, triple))


def test_an_executable_of_this_machine() -> None:
    path = shutil.which("true")
    assert path is not None
    _agree(Path(path).read_bytes())


def test_programs_of_an_object() -> None:
    obj = BpfObject(compile_bpf(SOURCE))
    assert [(p.name, p.section, p.is_subprog, p.autoload, p.is_global) for p in obj.progs] == [
        ("helper", ".text", True, True, False),
        ("entry", "tc", False, True, True),
        ("optional", "xdp", False, False, True),
    ]
    assert obj.license == "GPL"
    entry = obj.prog("entry")
    assert entry is not None
    assert obj.find_prog(entry.sec_idx, 0) is entry
    assert obj.find_prog(entry.sec_idx, entry.insn_count) is None
    helper = obj.prog("helper")
    assert helper is not None
    assert {reloc.sym.name for reloc in helper.elf_relocs} >= {"counter"}


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotElf):
        BpfObject(b"#!/bin/sh\n" + bytes(100))
    with pytest.raises(NotElf):
        BpfObject(b"")
    with pytest.raises(NotBpf):
        BpfObject(_compile(tmp_path, "x86_64-linux-gnu"))
    with pytest.raises(WrongEndian, match="big-endian"):
        BpfObject(_compile(tmp_path, "bpfeb"), byteorder="little")
    with pytest.raises(Unsupported, match="static"):
        BpfObject(compile_bpf('static SEC("tc") int entry(void *ctx) { return 0; }'))
    with pytest.raises(Unsupported, match="legacy map"):
        BpfObject(compile_bpf('int m SEC("maps"); SEC("tc") int entry(void *ctx) { return m; }'))


@pytest.mark.parametrize("part", range(20))
def test_truncated_objects(part: int) -> None:
    data = compile_bpf(SOURCE)
    with pytest.raises((MalformedElf, NotElf)):
        BpfObject(data[: len(data) * part // 20])


@pytest.mark.parametrize("seed", range(150))
def test_damaged_objects_give_our_errors_only(seed: int) -> None:
    r = random.Random(seed)
    data = bytearray(compile_bpf(SOURCE))
    places = (
        range(64) if seed % 3 == 0 else range(len(data) - 64 * 20, len(data)) if seed % 3 == 1 else range(len(data))
    )
    for _ in range(r.randrange(1, 6)):
        data[r.choice(places)] = r.choice((0, 1, 0x7F, 0x80, 0xFF, r.randrange(256)))
    try:
        obj = BpfObject(bytes(data))
        assert len(obj.progs) < 10_000
    except GuestError as error:
        assert str(error)
