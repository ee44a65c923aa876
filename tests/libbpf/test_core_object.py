"""Rules that need a whole object, a damaged one, or a target that is not a 64-bit little-endian kernel; libbpf
judges.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass
from typing import Literal

import pytest

from harness.guest.bpf_object import BpfObject
from harness.guest.core_relo import CoreRun, Rules, Targets, relocate
from tests.support.agreement import compare, difference, read_btf
from tests.support.clang import compile_bpf, compile_target
from tests.support.libbpf_judge import Judgement, judge, libbpf_version

LOCAL = """
struct s { int a; u32 b; void *c; enum e { A = 1, B = 2 } d; u64 f : 5; } PAI;
static noinline int sub(struct s *p) { return p->a + field_info(p->f, LSHIFT); }
noinline int global_sub(struct s *p) { return p->b; }
noinline int unused_sub(struct s *p) { return p->b + 1; }
SEC("socket") u64 one(struct s *p) { return sub(p) + global_sub(p) + p->b; }
SEC("socket") u64 two(struct s *p) { return sub(p) + field_info(p->c, EXISTS) + enum_value(enum e, B, E_VALUE); }
SEC("?socket") u64 optional(struct s *p) { return p->a; }
SEC("xdp") u64 three(struct s *p) { return p->b + type_info(struct s, T_SIZE) + type_id(struct s, ID_TARGET); }
"""
TARGET = "struct s { long z; u64 b; void *c; enum e { B = 7, A = 9 } d; u64 f : 9; int a; };"


def _both(data: bytes, target: bytes) -> tuple[CoreRun, Judgement]:
    return compare(data, target)


def test_sections_subprograms_and_optional_programs() -> None:
    run, judged = _both(compile_bpf(LOCAL), compile_target(TARGET, "struct s", "enum e"))
    progs = [relo.prog.name for relo in run.relos]
    assert set(progs) == {"sub", "global_sub", "unused_sub", "one", "two", "three"}
    assert run.skipped == 1
    assert {name for name, _ in judged.appended["one"]} == {"sub", "global_sub"}


def test_without_target_types_every_kind_has_its_answer() -> None:
    run, _ = _both(compile_bpf(LOCAL), compile_target("struct other { int a; };", "struct other"))
    assert {relo.outcome for relo in run.relos} == {"resolved", "poisoned"}
    assert {relo.kind: relo.new_value for relo in run.relos}["type_size"] == 0


@pytest.mark.parametrize("cpu", ["v1", "v2", "v3", "v4"])
def test_every_instruction_set(cpu: str) -> None:
    run, _ = _both(compile_bpf(LOCAL, cpu=cpu), compile_target(TARGET, "struct s", "enum e"))
    assert len(run.relos) > 8


@pytest.mark.parametrize("arch", ["i386-linux-gnu", "armv7-linux-gnueabi", "aarch64-linux-gnu", "s390x-linux-gnu"])
def test_targets_of_other_machines(arch: str) -> None:
    """32-bit pointers and, for s390x, a byte-swapped BTF. clang only emits BTF for bpf, so pahole or a swap would be
    needed for a real vmlinux; here the ELF's class and byte order are changed around a BTF that is right for them.
    """
    data = compile_bpf(LOCAL)
    swapped = arch.startswith("s390x")
    types = "struct s { u32 z; u64 b; u32 c; enum e { B = 7, A = 9 } d; int a; };" if arch[0] in "ia" else TARGET
    btf = _raw_btf(compile_target(types + "unsigned long keep_long;", "struct s", "enum e"))
    target = _swap(btf) if swapped else btf
    run, _ = _both(data, target)
    assert any(relo.outcome == "resolved" for relo in run.relos)


def _raw_btf(elf: bytes) -> bytes:
    obj = BpfObject(elf)
    section = obj.elf.section(".BTF")
    assert section is not None
    return obj.elf.content(section)


def _swap(btf: bytes) -> bytes:
    """A little-endian BTF in big-endian order: a header of 2+1+1 bytes and words, types of words, strings as they
    are.
    """
    header = struct.unpack_from("<HBBIIIII", btf)
    hdr_len, type_off, type_len = header[3], header[4], header[5]
    start, end = hdr_len + type_off, hdr_len + type_off + type_len
    words = struct.unpack(f"<{type_len // 4}I", btf[start:end])
    return struct.pack(">HBBIIIII", *header) + struct.pack(f">{len(words)}I", *words) + btf[end:]


def test_pointer_size_follows_long() -> None:
    """A load of a pointer shrinks to 4 bytes on a target whose "long" has 4 (libbpf's core_autosize)."""
    local = 'struct s { void *p; } PAI;\nSEC("socket") u64 prog(struct s *x) { return (u64)x->p; }\n'
    btf = bytearray(_raw_btf(compile_target("struct s { int a; void *p; };", "struct s", "long")))
    place = _int_named(btf, b"long")
    struct.pack_into("<I", btf, place + 8, 4)
    run, _ = _both(compile_bpf(local), bytes(btf))
    assert (run.relos[0].before[0] & 0x18, run.relos[0].after[0] & 0x18) == (0x18, 0x00)


def _int_named(btf: bytearray, name: bytes) -> int:
    """Where the record of that int begins."""
    _, _, _, hdr_len, type_off, type_len, str_off, str_len = struct.unpack_from("<HBBIIIII", btf)
    strings = bytes(btf[hdr_len + str_off : hdr_len + str_off + str_len])
    for place in range(hdr_len + type_off, hdr_len + type_off + type_len, 4):
        name_off, info = struct.unpack_from("<II", btf, place)
        if info == 1 << 24 and strings[name_off:].split(b"\0")[0] == name:
            return place
    raise AssertionError(name)


# -- damaged objects: libbpf's fatal outcomes


def _records(data: bytes) -> list[int]:
    """File offsets of the core_relo records {insn_off, type_id, access_str_off, kind}."""
    obj = BpfObject(data)
    section = obj.elf.section(".BTF.ext")
    assert section is not None
    hdr_len = struct.unpack_from("<I", data, section.offset + 4)[0]
    core_off, core_len = struct.unpack_from("<II", data, section.offset + 24)
    at = section.offset + hdr_len + core_off
    size, end = struct.unpack_from("<I", data, at)[0], at + core_len
    at, places = at + 4, []
    while at < end:
        _, count = struct.unpack_from("<II", data, at)
        places += [at + 8 + index * size for index in range(count)]
        at += 8 + count * size
    return places


def _insn_place(data: bytes, record: int) -> int:
    obj, at = BpfObject(data), 0
    assert obj.btf_ext is not None
    assert obj.btf is not None
    places = _records(data)
    for info in obj.btf_ext.core_relos:
        for values in info.records:
            if places[at] == record:
                section = obj.elf.section(obj.btf.string(info.sec_name_off))
                assert section is not None
                return section.offset + values[0]
            at += 1
    raise AssertionError(record)


@dataclass(frozen=True)
class Damage:
    """A number written into the core_relo record or the instruction it names; `relative`: added to what is there."""

    into: Literal["record", "insn"]
    offset: int
    form: str
    value: int
    relative: bool = False


# struct bpf_core_relo: insn_off, type_id, access_str_off, kind; struct bpf_insn: code, registers, off, imm
DAMAGES = {
    "insn_off_odd": Damage("record", 0, "<I", 4, relative=True),
    "insn_off_far": Damage("record", 0, "<I", 8000),
    "type_other": Damage("record", 4, "<I", 2),
    "kind_unknown": Damage("record", 12, "<I", 13),
    "kind_size": Damage("record", 12, "<I", 1),
    "kind_enum_of_struct": Damage("record", 12, "<I", 11),
    "kind_type_of_field": Damage("record", 12, "<I", 8),
    "access_empty": Damage("record", 8, "<I", 0),
    "class_jump": Damage("insn", 0, "<B", 0x05),
    "class_alu_register": Damage("insn", 0, "<B", 0x0F),
    "class_alu_immediate": Damage("insn", 0, "<B", 0x07),
    "class_ld_abs": Damage("insn", 0, "<B", 0x20),
    "offset_differs": Damage("insn", 2, "<h", 1, relative=True),
    "width_differs": Damage("insn", 0, "<B", 0x71),
}


def _damaged(damage: Damage, record: int) -> bytes:
    data = bytearray(compile_bpf(LOCAL))
    place = _records(bytes(data))[record]
    if damage.into == "insn":
        place = _insn_place(bytes(data), place)
    before = struct.unpack_from(damage.form, data, place + damage.offset)[0] if damage.relative else 0
    struct.pack_into(damage.form, data, place + damage.offset, before + damage.value)
    return bytes(data)


@pytest.mark.parametrize("record", range(6))
@pytest.mark.parametrize("name", DAMAGES)
def test_damage(name: str, record: int) -> None:
    _both(_damaged(DAMAGES[name], record), compile_target(TARGET, "struct s", "enum e"))


def test_damages_reach_fatal_outcomes() -> None:
    target = compile_target(TARGET, "struct s", "enum e")
    fatal = sum(not judge(_damaged(damage, 0), target=target).relocated for damage in DAMAGES.values())
    assert fatal > len(DAMAGES) // 2


# What is written where in .BTF.ext: offsets from its start, or from the core_relo records (u32 record size, then
# sections {sec_name_off, num_info}). The letter is what libbpf makes of it: i(gnores records), f(atal), r(elocates).
HEADERS = {
    "magic": ("header", 0, "<H", 0x1234, "i"), "version": ("header", 2, "<B", 2, "i"),
    "flags": ("header", 3, "<B", 1, "i"), "header_before_core_relo": ("header", 4, "<I", 24, "i"),
    "header_tiny": ("header", 4, "<I", 8, "i"), "header_huge": ("header", 4, "<I", 1 << 20, "i"),
    "core_len_none": ("header", 28, "<I", 0, "i"), "core_len_of_a_size_alone": ("header", 28, "<I", 4, "i"),
    "core_len_huge": ("header", 28, "<I", 1 << 28, "i"), "core_len_odd": ("header", 28, "<I", 210, "i"),
    "func_len_none": ("header", 12, "<I", 0, "r"), "line_len_none": ("header", 20, "<I", 0, "r"),
    "func_len_odd": ("header", 12, "<I", 3, "i"),
    "record_small": ("core", 0, "<I", 12, "i"), "record_no_multiple": ("core", 0, "<I", 18, "i"),
    "record_empty": ("core", 0, "<I", 0, "i"), "record_larger": ("core", 0, "<I", 20, "i"),
    "section_empty": ("core", 8, "<I", 0, "i"), "section_huge": ("core", 8, "<I", 1 << 30, "i"),
    "section_short": ("core", 8, "<I", 1, "i"), "section_of_no_name": ("core", 4, "<I", 0, "f"),
    "section_name_outside": ("core", 4, "<I", 1 << 20, "f"), "section_of_another_name": ("core", 4, "<I", 1, "r"),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADERS)
def test_damaged_btf_ext(name: str) -> None:
    place, offset, form, value, known = HEADERS[name]
    data = bytearray(compile_bpf(LOCAL))
    section = BpfObject(bytes(data)).elf.section(".BTF.ext")
    assert section is not None
    hdr_len, core_off = struct.unpack_from("<I16xI", data, section.offset + 4)
    start = section.offset + (hdr_len + core_off if place == "core" else 0)
    struct.pack_into(form, data, start + offset, value)
    run, judged = _both(bytes(data), compile_target(TARGET, "struct s", "enum e"))
    assert known == ("f" if not judged.relocated else "r" if judged.decisions else "i"), judged.log
    assert (run.error is not None) == (known == "f")


@pytest.mark.parametrize("seed", range(60))
def test_random_records(seed: int) -> None:
    """Records with other types, access strings and kinds than the compiler wrote, on the instructions it wrote."""
    r = random.Random(seed)
    data = bytearray(compile_bpf(LOCAL))
    obj = BpfObject(bytes(data))
    assert obj.btf is not None
    assert obj.btf_ext is not None
    accesses = [record[2] for info in obj.btf_ext.core_relos for record in info.records]
    for place in r.sample(_records(bytes(data)), 3):
        struct.pack_into("<I", data, place + 4, r.randrange(1, obj.btf.count))
        struct.pack_into("<I", data, place + 8, r.choice(accesses))
        struct.pack_into("<I", data, place + 12, r.randrange(13))
    target = compile_target(TARGET, "struct s", "enum e")
    judged = judge(bytes(data), target=target)
    damaged = BpfObject(bytes(data))
    run = relocate(damaged, Targets(read_btf(target)), Rules(libbpf_version()))
    assert difference(damaged, run, judged) == []
