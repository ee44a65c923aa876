"""programs/: each object is built without a word, the same bytes anywhere, and holds what its expectations speak of.

The second source for relocations is LLVM's reader of .BTF.ext (llvm-objdump), not ours.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from harness.config import load_yaml
from harness.guest.prog_types import parse_section
from harness.model.expectation import expectations_from
from tests.support.objects import OBJECTS, PROGRAMS, clang, compile_object, core_relos
from tests.support.real_libbpf import Libbpf, needs_bpf

NAMES = sorted(path.name.removesuffix(".bpf.c") for path in PROGRAMS.glob("*.bpf.c"))
PER_ARCH = {
    "file_open": ["x86_64", "arm64"],
    "tcp_connect": ["x86_64", "arm64"],
    "thread_fsbase": ["x86_64"],
    "thread_fsbase_else": ["x86_64"],
}
# Meant for 4.x: no 32-bit jumps (-mcpu=v3, 5.1), no JLT and kin (v2, 4.14), and no global data (5.2) but cpu_time's.
FOR_OLD_KERNELS = ["cpu_time", "start_time", "task_state", "thread_fsbase", "thread_fsbase_else"]
ASKED_FOR = [
    "bpf_cookie", "cgroup_subsys", "cpu_time", "exe_name", "exe_name_direct", "fancy_helper", "file_open",
    "fsbase_as_published", "io_accounting", "kconfig", "process_lineage", "ring_or_perf", "sizes", "start_time",
    "task_state", "tcp_bitfields", "tcp_connect", "thread_fsbase", "thread_fsbase_else", "type_ids", "type_matches",
    "user_read",
]  # fmt: skip
# What each program is there to show; every kind of CO-RE relocation appears in some program.
SHOWS = {
    "task_state": {"byte_off", "field_exists"},
    "tcp_bitfields": {"byte_off", "byte_sz", "lshift_u64", "rshift_u64", "signed"},
    "ring_or_perf": {"type_exists", "enumval_exists"},
    "cgroup_subsys": {"enumval_exists", "enumval_value"},
    "sizes": {"type_size", "byte_sz"},
    "type_ids": {"local_type_id", "target_type_id"},
    "type_matches": {"type_matches"},
}
ALL_KINDS = {
    "byte_off", "byte_sz", "field_exists", "signed", "lshift_u64", "rshift_u64", "local_type_id", "target_type_id",
    "type_exists", "type_matches", "type_size", "enumval_exists", "enumval_value",
}  # fmt: skip


def _objects(name: str) -> list[str]:
    return [f"{name}.{arch}.bpf.o" for arch in PER_ARCH.get(name, [])] or [f"{name}.bpf.o"]


def _make(directory: Path) -> Path:
    directory.mkdir()
    for source in (*PROGRAMS.glob("*.bpf.c"), PROGRAMS / "Makefile"):
        shutil.copy(source, directory)
    shutil.copytree(PROGRAMS / "include", directory / "include")
    done = subprocess.run(
        ["make", "-s", "-j2", f"CLANG={clang()}"], cwd=directory, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "a compiler's warning"
    return directory / "build"


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(tmp_path_factory.mktemp("programs") / "first")


def test_the_list_is_complete() -> None:
    assert NAMES == ASKED_FOR


def test_each_source_becomes_its_objects_and_nothing_else(build: Path) -> None:
    assert sorted(path.name for path in build.iterdir()) == sorted(name for one in NAMES for name in _objects(one))


def test_objects_do_not_depend_on_the_directory(build: Path, tmp_path: Path) -> None:
    again = _make(tmp_path / "a longer name, with spaces")
    different = [path.name for path in build.iterdir() if path.read_bytes() != (again / path.name).read_bytes()]
    assert different == []


def test_without_a_compiler_make_says_what_to_install(tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "Makefile", tmp_path)
    done = subprocess.run(["make", "CLANG="], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "apt-get install clang-19" in done.stderr


def test_an_old_compiler_is_refused(tmp_path: Path) -> None:
    shutil.copy(PROGRAMS / "Makefile", tmp_path)
    old = tmp_path / "old-clang"
    old.write_text("#!/bin/sh\necho 14\n")
    old.chmod(0o755)
    done = subprocess.run(["make", f"CLANG={old}"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "older than clang 15" in done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_expected_relocation_is_in_the_object(name: str, build: Path) -> None:
    path = PROGRAMS / f"{name}.yaml"
    expectations = expectations_from(load_yaml(path), str(path))
    for file in _objects(name):
        there = core_relos(build / file)
        for rule in expectations.rules:
            for entry in rule.relocations:
                matching = [
                    field for kind, field in there if entry.kind in {None, kind} and _glob(entry.field).fullmatch(field)
                ]
                assert matching, f"{file}: no relocation {entry.kind} {entry.field}, only {sorted(there)}"


def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in pattern))


@pytest.mark.parametrize("name", sorted(SHOWS))
def test_a_program_holds_the_kinds_it_is_there_to_show(name: str, build: Path) -> None:
    assert SHOWS[name] <= {kind for kind, _field in core_relos(build / f"{name}.bpf.o")}


def test_every_kind_of_relocation_is_used(build: Path) -> None:
    kinds: Counter[str] = Counter()
    for path in build.iterdir():
        kinds.update(kind for kind, _field in core_relos(path))
    assert set(kinds) == ALL_KINDS


@pytest.mark.parametrize("name", FOR_OLD_KERNELS)
def test_objects_for_old_kernels_use_nothing_new(name: str, build: Path) -> None:
    for file in _objects(name):
        with (build / file).open("rb") as stream:
            elf = ELFFile(stream)
            for section in elf.iter_sections():
                if section["sh_flags"] & 4:  # SHF_EXECINSTR
                    assert _newer_jumps(section.data()) == [], section.name
            data = {section.name for section in elf.iter_sections()} & {".rodata", ".data", ".bss"}
            assert data == set(), "global data needs 5.2"
            externs = {symbol.name for symbol in elf.get_section_by_name(".symtab").iter_symbols()}
    assert ("LINUX_KERNEL_VERSION" in externs) == (name == "cpu_time")


def _newer_jumps(code: bytes) -> list[int]:
    """Opcodes of class JMP32, and JLT, JLE, JSLT, JSLE of class JMP, with care for ldimm64's second half."""
    found, at = [], 0
    while at < len(code):
        opcode = code[at]
        if opcode & 7 == 6 or (opcode & 7 == 5 and opcode >> 4 in {0xA, 0xB, 0xC, 0xD}):
            found.append(opcode)
        at += 16 if opcode == 0x18 else 8
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_section_is_one_libbpf_knows(name: str, build: Path) -> None:
    for file in _objects(name):
        with (build / file).open("rb") as stream:
            names = [section.name for section in ELFFile(stream).iter_sections() if section["sh_flags"] & 4]
        for section in names:
            if section != ".text":
                assert parse_section(section) is not None, section


# Nothing may depend on this machine's kernel being so, except this: what it cannot run at all is named.
FENTRY = {"exe_name_direct", "tcp_bitfields"}


@needs_bpf
@pytest.mark.parametrize("name", sorted(set(NAMES) - FENTRY - {"fsbase_as_published"} - set(PER_ARCH)))
def test_this_machine_loads_it_with_libbpf(name: str, build: Path) -> None:
    judgement = Libbpf().load(build / f"{name}.bpf.o")
    assert judgement.errno == 0, judgement.messages


@needs_bpf
def test_the_published_guard_is_refused_and_the_field_named(build: Path) -> None:
    judgement = Libbpf().load(build / "fsbase_as_published.bpf.o")
    assert judgement.errno == 22
    assert "thread_struct___v46.fs" in judgement.messages


# tests/objects, program by program: the errno of libbpf's load on this machine. (subprog_global_poison is
# left out: its verdict
# differs between kernels, and that is what it is for.)
VERDICTS = {
    "cpu_poison": {"cpu_poison": 22},
    "kconfig_missing": {"kconfig_missing": 3},
    "ldimm64": {"guarded": 0, "unguarded": 22, "between": 0},
    "poison_past_poison": {"straight": 22, "two_paths": 22, "then_dead": 22, "then_other": 22},
    "subprog_global_dead": {"entry": 0},
    "subprog_guard_argument": {"through_static": 0, "through_global": 22},
    "subprog_static": {"first": 0, "second": 0},
    "without_btf": {"without_btf": 0},
}


@needs_bpf
@pytest.mark.parametrize("name", sorted(VERDICTS))
def test_the_test_objects_are_what_they_say(name: str, tmp_path: Path) -> None:
    if name == "cpu_poison" and (os.cpu_count() or 1) == 1:
        pytest.skip("a machine with one CPU may prove this poison dead")
    built = compile_object(OBJECTS / f"{name}.bpf.c", tmp_path / "x.o", debug=name != "without_btf")
    kconfig = "CONFIG_HZ=250\n" if name == "kconfig_missing" else None
    assert {one: Libbpf().load(built, one, kconfig=kconfig).errno for one in VERDICTS[name]} == VERDICTS[name]
