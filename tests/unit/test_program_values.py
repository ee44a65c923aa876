"""The programs run in this machine's kernel (BPF_PROG_TEST_RUN); what they read is held against another source.

Loading proves that a verifier is content; only this proves that a relocation found the right bytes.
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path

import pytest

from tests.support.objects import PROGRAMS, compile_object
from tests.support.real_libbpf import Libbpf, needs_bpf

pytestmark = needs_bpf


def read(name: str, map_name: str, size: int, tmp_path: Path, program: str | None = None) -> bytes:
    """Load programs/NAME, run one program (default: NAME) and return the first value of its map."""
    judge = Libbpf()
    built = compile_object(PROGRAMS / f"{name}.bpf.c", tmp_path / f"{name}.bpf.o")
    with judge.loaded(built, program or name) as (judgement, opened):
        assert judgement.errno == 0, judgement.messages
        assert opened is not None
        judge.run(opened, program or name)
        return judge.value(opened, map_name, 0, size)


def words(value: bytes, count: int) -> list[int]:
    return [int.from_bytes(value[8 * at : 8 * at + 8], "little", signed=True) for at in range(count)]


@lru_cache(maxsize=1)
def kernel_btf() -> str:
    """bpftool's text of this kernel's BTF."""
    if shutil.which("bpftool") is None:
        pytest.skip("needs bpftool")
    command = ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "raw"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def type_id(kind: str, name: str) -> int:
    found = re.search(rf"^\[(\d+)\] {kind} '{name}' ", kernel_btf(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def kernel_config() -> dict[str, str]:
    """NAME -> value, of the file libbpf reads too, parsed here."""
    boot, proc = Path(f"/boot/config-{os.uname().release}"), Path("/proc/config.gz")
    if boot.exists():
        text = boot.read_text()
    elif proc.exists():
        text = gzip.decompress(proc.read_bytes()).decode()
    else:
        pytest.skip("this kernel's configuration is not at hand")
    return dict(line.split("=", 1) for line in text.splitlines() if line.startswith("CONFIG_"))


def test_exe_name_is_the_running_executable(tmp_path: Path) -> None:
    value = read("exe_name", "last_exe", 72, tmp_path)
    executable = Path("/proc/self/exe").resolve()
    assert value[8:].split(b"\0")[0].decode() == executable.name[:63]
    assert words(value, 1) == [executable.stat().st_ino]


def test_type_ids_are_bpftools(tmp_path: Path) -> None:
    value = words(read("type_ids", "last_ids", 48, tmp_path), 6)
    assert (value[1], value[3]) == (type_id("STRUCT", "task_struct"), type_id("ENUM(?:64)?", "bpf_func_id"))
    assert value[5] == 0
    assert 0 not in (value[0], value[2], value[4])


def test_cgroup_subsystems_have_the_kernels_numbers(tmp_path: Path) -> None:
    value = words(read("cgroup_subsys", "subsys_ids", 40, tmp_path), 5)
    enum = re.search(r"ENUM 'cgroup_subsys_id'.*?\n((?:\t.*\n)+)", kernel_btf())
    assert enum is not None
    numbers = {name: int(number) for name, number in re.findall(r"'(\w+)_cgrp_id' val=(\d+)", enum[1])}
    assert value == [numbers.get(name, -1) for name in ("cpu", "pids", "misc", "dmem", "debug")]


def test_kconfig_values_are_the_configurations(tmp_path: Path) -> None:
    value, config = read("kconfig", "last_config", 72, tmp_path, "kconfig_values"), kernel_config()
    version, hz, cpus, log_buf_shift, mmap_min_addr, pointer, flags = words(value, 7)
    major, minor = (int(number) for number in os.uname().release.split(".")[:2])
    assert (version >> 16, version >> 8 & 255) == (major, minor)
    names = ["HZ", "NR_CPUS", "LOG_BUF_SHIFT", "DEFAULT_MMAP_MIN_ADDR", "ILLEGAL_POINTER_VALUE"]
    expected = [int(config[f"CONFIG_{name}"], 0) for name in names]
    assert [hz, cpus, log_buf_shift, mmap_min_addr, pointer % 2**64] == expected
    assert bool(flags & 4) == (config.get("CONFIG_BPF_JIT_ALWAYS_ON") == "y")
    assert value[56:64].split(b"\0")[0].decode() == config["CONFIG_DEFAULT_HOSTNAME"].strip('"')


def test_bytes_read_are_proc_self_ios(tmp_path: Path) -> None:
    for program in ("read_bytes_by_config", "read_bytes_by_field"):
        before = _read_bytes()
        value = words(read("io_accounting", "last_read_bytes", 8, tmp_path, program), 1)[0]
        assert before <= value <= _read_bytes()


def _read_bytes() -> int:
    """Of this thread, like the program."""
    path = Path("/proc/thread-self/io")
    if not path.exists():
        pytest.skip("this kernel accounts no I/O")
    return int(dict(line.split(": ") for line in path.read_text().splitlines())["read_bytes"])


def test_the_command_name_is_read_in_its_own_size(tmp_path: Path) -> None:
    value = read("sizes", "last_sizes", 56, tmp_path)
    assert value[40:].split(b"\0")[0] == Path("/proc/thread-self/comm").read_bytes().rstrip(b"\n")
    size = re.search(r"STRUCT 'task_struct' size=(\d+)", kernel_btf())
    assert size is not None
    assert words(value, 1) == [int(size[1])]


def test_a_match_is_stricter_than_a_name(tmp_path: Path) -> None:
    """Built with gcc or clang alike: `__state` (since 5.14) matches, a member of another sign never does."""
    answer = words(read("type_matches", "answers", 8, tmp_path, "renamed_member"), 1)[0]
    assert bool(answer & 1) == bool(re.search(r"^\t'__state' ", kernel_btf(), re.MULTILINE))
    assert not answer & 4
