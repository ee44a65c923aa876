"""BTF reading. bpftool is the second witness for whole BTFs; what no compiler writes is built by hand."""

from __future__ import annotations

import json
import random
import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from harness.guest import btf as B
from harness.guest.btf import Btf, load
from harness.guest.elf import Elf
from harness.guest.errors import CoreError, GuestError, MalformedBtf
from harness.guest.names import essential_name
from tests.support.btf_builder import BtfBuilder
from tests.support.clang import compile_target

TYPES = """
typedef int (*callback)(struct task *t, const char *name, ...);
union mixed { u8 bytes[16]; struct { u32 lo : 12, hi : 20; s64 wide; }; };
enum small { S_A = -1, S_B = 7 }; enum big { B_A = 0x100000000ULL };
struct whole { volatile const char *text; callback call; union mixed mixed; enum small s; enum big b; double d; bool
flag;
  int matrix[3][4]; struct fwd *forward; s8 tail[]; };
static int hidden_number; int *use(void) { return &hidden_number; }
"""


def _dump(path: Path) -> list[dict[str, Any]]:
    if shutil.which("bpftool") is None:
        pytest.skip("bpftool is not installed")
    done = subprocess.run(["bpftool", "-j", "btf", "dump", "file", str(path)], capture_output=True, check=True)
    types: list[dict[str, Any]] = json.loads(done.stdout)["types"]
    return types


def _agree(btf: Btf, theirs: dict[str, Any]) -> None:
    t = btf.type(theirs["id"])
    assert B.KIND_NAMES[t.kind] == theirs["kind"].lower()
    assert t.name == ("" if theirs["name"] == "(anon)" else theirs["name"])
    for key in ("size", "vlen"):
        if key in theirs and theirs["kind"] != "ARRAY":
            assert getattr(t, key) == theirs[key]
    if "members" in theirs:
        ours = [(name, type_id, bits, size) for name, type_id, bits, size in btf.members(t)]
        assert ours == [
            ("" if m["name"] == "(anon)" else m["name"], m["type_id"], m["bits_offset"], m.get("bitfield_size", 0))
            for m in theirs["members"]
        ]
    if theirs["kind"] == "ARRAY":
        assert btf.array(t) == (theirs["type_id"], theirs["index_type_id"], theirs["nr_elems"])
    elif "type_id" in theirs:
        assert t.type == theirs["type_id"]
    if theirs["kind"] in ("ENUM", "ENUM64"):
        _agree_enum(btf, t, theirs)
    if "params" in theirs:
        expected = [("" if p["name"] == "(anon)" else p["name"], p["type_id"]) for p in theirs["params"]]
        assert btf.params(t) == expected
    if "vars" in theirs:
        assert btf.datasec(t) == [(v["type_id"], v["offset"], v["size"]) for v in theirs["vars"]]


def _agree_enum(btf: Btf, t: B.Type, theirs: dict[str, Any]) -> None:
    mask = (1 << 64) - 1 if t.kind == B.BTF_KIND_ENUM64 else (1 << 32) - 1
    ours = [(name, value & mask) for name, value in btf.enumerators(t)]
    assert ours == [(value["name"], value["val"] & mask) for value in theirs["values"]]


def test_every_type_as_bpftool_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "types.o"
    path.write_bytes(compile_target(TYPES, "struct whole"))
    btf, theirs = load(str(path)), _dump(path)
    assert btf.count == len(theirs) + 1
    assert {t["kind"] for t in theirs} >= {"ENUM64", "FLOAT", "FWD", "FUNC_PROTO", "DATASEC", "VAR", "ARRAY", "UNION"}
    for entry in theirs:
        _agree(btf, entry)


@pytest.mark.parametrize("indexed", [False, True])
def test_this_kernel_as_bpftool_sees_it(indexed: bool) -> None:
    path = Path("/sys/kernel/btf/vmlinux")
    if not path.exists():
        pytest.skip("this kernel has no /sys/kernel/btf/vmlinux")
    btf, theirs = load(str(path)), _dump(path)
    assert btf.count == len(theirs) + 1
    if indexed:
        btf.index_all_names()
    for entry in theirs[:: max(1, len(theirs) // 3000)]:
        _agree(btf, entry)
    by_name: dict[str, list[int]] = {}
    for entry in theirs:
        if entry["name"] != "(anon)":
            by_name.setdefault(essential_name(entry["name"]), []).append(entry["id"])
    for name in [
        "task_struct",
        "file",
        "list_head",
        "u64",
        "a",
        "no_such_type",
        *random.Random(1).sample(sorted(by_name), 60),
    ]:
        assert btf.ids_by_essential_name(name) == by_name.get(name, [])


@pytest.mark.parametrize(
    ("name", "essential"),
    [
        ("a", "a"), ("a___b", "a"), ("a___b___c", "a___b"), ("___a", "___a"), ("a___", "a___"), ("a____b", "a____b"),
        ("a___b_", "a"), ("_a___b", "_a"), ("a____", "a____"), ("", ""), ("___", "___"),
        ("a___b____c", "a"), ("a__b", "a__b"), ("ab___c___", "ab"),
    ],
)  # fmt: skip
def test_essential_name(name: str, essential: str) -> None:
    """Expected values follow bpf_core_is_flavor_sep(): X___Y, the last one; the differential tests hold them against
    libbpf.
    """
    assert essential_name(name) == essential


@pytest.mark.parametrize("prefix", ["<", ">"])
@pytest.mark.parametrize("hdr_len", [24, 40])
def test_byte_orders_and_longer_headers(prefix: str, hdr_len: int) -> None:
    builder = BtfBuilder(prefix=prefix)
    number = builder.int("long", 4)
    builder.struct("s", 12, ("a", number, 32), ("b", number, 64))
    btf = Btf(builder.build(hdr_len=hdr_len))
    assert btf.members(btf.type(2)) == [("a", 1, 32, 0), ("b", 1, 64, 0)]
    assert btf.pointer_size == 4
    assert btf.ids_by_essential_name("s") == [2]


def test_layout_section_steps_over_kinds_nobody_knows() -> None:
    builder = BtfBuilder()
    builder.int("int", 4)
    builder.add("new", 21, 0, (1, 2, 3, 4, 5), vlen=2)  # one fixed word, two for each element
    builder.int("u8", 1)
    rows = [(0, 0)] * 20 + [(0, 0), (4, 8)]
    layout = b"".join(struct.pack("<BBH", fixed, each, 0) for fixed, each in rows)
    btf = Btf(builder.build(layout=layout))
    assert btf.type(3).name == "u8"
    with pytest.raises(MalformedBtf, match="unknown kind 21"):
        btf.type(2)
    with pytest.raises(MalformedBtf, match="unknown kind"):
        Btf(builder.build())


def test_vlen_of_24_bits() -> None:
    builder = BtfBuilder()
    number = builder.int("int", 4)
    builder.struct("wide", 4, *((f"m{index % 9}", number, 0) for index in range(70_000)))
    assert len(Btf(builder.build()).members(Btf(builder.build()).type(2))) == 70_000


def test_names_inside_of_other_strings_are_found() -> None:
    """A string table may share tails: `sk` inside of `mask`."""
    builder = BtfBuilder()
    builder.int("mask", 4)
    at = builder.string("mask") + 2
    builder.types += struct.pack("<4I", at, B.BTF_KIND_INT << 24, 4, 32)
    assert Btf(builder.build()).ids_by_essential_name("sk") == [2]


@pytest.mark.parametrize("indexed", [False, True])
@pytest.mark.parametrize("twice", [False, True])
def test_names_borne_by_several_types_with_others_between(indexed: bool, twice: bool) -> None:
    """`twice`: the string itself stands there two times, as no compiler writes it."""
    builder = BtfBuilder()
    number = builder.int("int", 4)
    builder.struct("same", 4, ("x", number, 0))
    builder.struct("other___1", 4, ("x", number, 0))
    builder.struct("same", 4, ("y", number, 0))
    builder.struct("other", 4, ("x", number, 0))
    if twice:
        at = len(builder.strings)
        builder.strings += b"same\0"
        builder.types += struct.pack("<4I", at, B.BTF_KIND_INT << 24, 4, 32)
    btf = Btf(builder.build())
    if indexed:
        btf.index_all_names()
    assert btf.ids_by_essential_name("same") == ([2, 4, 6] if twice else [2, 4])
    assert btf.ids_by_essential_name("other") == [3, 5]
    assert btf.ids_by_essential_name("x") == btf.ids_by_essential_name("") == []


def test_split_btf_continues_its_base() -> None:
    base = BtfBuilder()
    base.int("long", 8)
    base_btf = Btf(base.build())
    split = BtfBuilder(base_strings=len(base.strings))
    split.struct("mine", 8, ("x", 1, 0))
    split.types[0:4] = struct.pack("<I", split.string("mine"))
    btf = Btf(split.build(), base=base_btf)
    assert btf.start_id == 2
    assert btf.type(2).name == "mine"
    assert btf.members(btf.type(2)) == [("x", 1, 0, 0)]
    assert (btf.resolve_size(1), btf.pointer_size, btf.find("long", B.BTF_KIND_INT)) == (8, 8, 1)
    assert btf.ids_by_essential_name("long") == []


def test_loops_end() -> None:
    builder = BtfBuilder()
    builder.add("a", B.BTF_KIND_TYPEDEF, 2)
    builder.add("b", B.BTF_KIND_CONST, 1)
    builder.add("", B.BTF_KIND_ARRAY, 0, (3, 3, 1))
    btf = Btf(builder.build())
    with pytest.raises(MalformedBtf, match="endless"):
        btf.skip_mods_and_typedefs(1)
    for id_ in (1, 3):
        with pytest.raises(CoreError, match="too deep"):
            btf.resolve_size(id_)


@pytest.mark.parametrize("id_", [4, 1 << 31, -1])
def test_ids_out_of_range(id_: int) -> None:
    builder = BtfBuilder()
    builder.int("int", 4)
    with pytest.raises(MalformedBtf, match="does not exist"):
        Btf(builder.build()).type(id_)


def _touch_everything(btf: Btf) -> None:
    own_data = {
        B.BTF_KIND_STRUCT: btf.members, B.BTF_KIND_UNION: btf.members, B.BTF_KIND_ENUM: btf.enumerators,
        B.BTF_KIND_ENUM64: btf.enumerators, B.BTF_KIND_ARRAY: btf.array, B.BTF_KIND_INT: btf.int_data,
        B.BTF_KIND_FUNC_PROTO: btf.params, B.BTF_KIND_DATASEC: btf.datasec, B.BTF_KIND_VAR: btf.linkage,
        B.BTF_KIND_DECL_TAG: btf.component,
    }  # fmt: skip
    for id_ in range(btf.count):
        for reader in (btf.resolve_size, btf.skip_mods_and_typedefs):
            with suppress(GuestError):
                reader(id_)
        with suppress(GuestError):
            own_data.get(btf.kind(id_), repr)(btf.type(id_))
    with suppress(GuestError):
        btf.ids_by_essential_name("whole")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_btf_gives_our_errors_only(seed: int) -> None:
    r = random.Random(seed)
    obj = compile_target(TYPES, "struct whole")
    elf = Elf(obj)
    section = elf.section(".BTF")
    assert section is not None
    data = bytearray(elf.content(section))
    if seed % 2:
        data = data[: r.randrange(len(data))]
    for _ in range(r.randrange(1, 8)):
        if data:
            data[r.randrange(len(data))] = r.randrange(256)
    try:
        btf = Btf(bytes(data))
    except GuestError:
        return
    _touch_everything(btf)
