"""What the fuzzers start from: compiled programs of programs/, BTF and .BTF.ext taken out of them, recorded facts."""

from __future__ import annotations

import functools
from pathlib import Path

from harness.guest.elf import Elf
from tests.support.btf_builder import BtfBuilder

ROOT = Path(__file__).parents[2]
FINDINGS = Path(__file__).parent / "findings"
_WANTED = ("task_state", "kconfig", "ring_or_perf", "type_matches", "tcp_bitfields", "type_ids", "sizes")


@functools.cache
def objects() -> tuple[bytes, ...]:
    """A few compiled objects that differ in what they hold; empty where programs/ is not built."""
    paths = (ROOT / "programs" / "build" / f"{name}.bpf.o" for name in _WANTED)
    return tuple(path.read_bytes() for path in paths if path.is_file())


@functools.cache
def sections(name: str) -> tuple[bytes, ...]:
    """That section of every object."""
    found = []
    for data in objects():
        elf = Elf(data)
        section = elf.section(name)
        if section is not None:
            found.append(elf.content(section))
    return tuple(found)


@functools.cache
def target_btf() -> bytes:
    """A small kernel: types the programs ask for, near misses and flavors among them."""
    b = BtfBuilder()
    number, long_, char = b.int("int", 4, 1), b.int("unsigned long", 8), b.int("char", 1, 1)
    pointer = b.add("", 2, 0)
    array = b.add("", 3, 0, (char, number, 16))
    b.struct("task_struct", 64, ("__state", number, 0), ("pid", number, 32), ("tgid", number, 64), ("comm", array, 96))
    b.struct("task_struct___old", 64, ("state", long_, 0), ("start_time", long_, 64), ("parent", pointer, 128))
    bits = (b.string("srtt_us"), number, 0, b.string("repair"), number, 3 << 24 | 40)
    b.add("tcp_sock", 4, 64, bits, vlen=2, kflag=True)
    b.add("bpf_map_type", 6, 4, (b.string("BPF_MAP_TYPE_HASH"), 1, b.string("BPF_MAP_TYPE_RINGBUF"), 27), vlen=2)
    inner = b.add("", 4, 8, (b.string("a"), number, 0), vlen=1)
    b.struct("file", 32, ("", inner, 0), ("f_path", 11, 64))
    b.struct("path", 16, ("mnt", pointer, 0), ("dentry", pointer, 64))
    return b.build()
