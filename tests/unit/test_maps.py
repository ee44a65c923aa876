"""Definitions of maps without a kernel; what libbpf makes of the same objects is the second source where it is
installed."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from harness.guest import map_create, maps
from harness.guest.bpf_object import BpfObject
from harness.guest.btf import KIND_NAMES, Btf
from harness.guest.btf_load import BtfImage, complete, sanitise, variable_places
from harness.guest.errors import MapError
from tests.support.clang import compile_bpf

MACROS = """
#define __uint(name, val) int (*name)[val]
#define __type(name, val) typeof(val) *name
#define __array(name, val) typeof(val) *name[]
#define __ulong(name, val) enum { unique_##name = val } name
"""
PROG = 'SEC("socket") int f(void *ctx) { return 0; }\n'
OBJECT = MACROS + """
struct value { u64 a; char b[3]; };
struct { __uint(type, 1); __uint(max_entries, 10); __uint(map_flags, 1);
  __type(key, u32); __type(value, struct value); } h SEC(".maps");
struct { __uint(type, 27); __uint(max_entries, 10000); } rb SEC(".maps");
struct { __uint(type, 30); __uint(max_entries, 5); __type(value, u32); __uint(map_extra, 3); } bloom SEC(".maps");
struct { __uint(type, 5); __uint(key_size, 16); __uint(value_size, 24); __uint(max_entries, 7); } sized SEC(".maps");
const volatile u32 constant = 5; const volatile u32 custom SEC(".rodata.mine") = 6;
u64 zeroed; u64 set = 3; static u64 hidden_static = 9;
""" + PROG.replace("return 0", "return constant + custom + zeroed++ + set++ + hidden_static++")  # fmt: skip


def _ours(data: bytes, name: str = "some-object") -> dict[str, maps.Map]:
    obj = BpfObject(data, "x.bpf.o")
    return {item.name: item for item in maps.read_maps(obj, name, variable_places(obj))}


def _libbpf(data: bytes, name: str) -> dict[str, tuple[int, ...]]:
    """name -> (type, key size, value size, max entries, flags, extra), as libbpf opens it."""
    try:
        lib = ctypes.CDLL("libbpf.so.1")
    except OSError:
        pytest.skip("libbpf.so.1 is not installed")
    lib.libbpf_set_print(None)
    pointer = ctypes.c_void_p
    lib.bpf_object__open_mem.restype = lib.bpf_object__next_map.restype = pointer
    lib.bpf_object__next_map.argtypes = (pointer, pointer)
    lib.bpf_map__name.restype = ctypes.c_char_p

    class Options(ctypes.Structure):
        _fields_ = (("size", ctypes.c_size_t), ("object_name", ctypes.c_char_p), ("rest", ctypes.c_char * 64))

    options = Options(size=ctypes.sizeof(Options), object_name=name.encode())
    obj = pointer(lib.bpf_object__open_mem(data, ctypes.c_size_t(len(data)), ctypes.byref(options)))
    assert obj.value
    found, item = {}, lib.bpf_object__next_map(obj, None)
    while item:
        row = []
        for getter in ("type", "key_size", "value_size", "max_entries", "map_flags", "map_extra"):
            function = getattr(lib, f"bpf_map__{getter}")
            function.argtypes, function.restype = (
                (pointer,),
                ctypes.c_uint64 if getter == "map_extra" else ctypes.c_uint32,
            )
            row.append(function(item))
        lib.bpf_map__name.argtypes = (pointer,)
        found[lib.bpf_map__name(item).decode()] = tuple(row)
        item = lib.bpf_object__next_map(obj, item)
    lib.bpf_object__close(obj)
    return found


def test_definitions_are_what_libbpf_reads() -> None:
    data = compile_bpf(OBJECT)
    ours = {
        # libbpf gives the section's own name for .rodata.* and .data.*, the kernel the cut one
        item.real_name if item.real_name.count(".") > 1 else item.name: (
            item.type, item.key_size, item.value_size, item.max_entries, item.flags, item.extra,
        )
        for item in _ours(data).values()
    }  # fmt: skip
    assert ours == _libbpf(data, "some-object")


def test_a_long_value_is_read_from_its_enumerator() -> None:
    """`__ulong` came after libbpf 1.1, so the number in the C text is the witness."""
    fields = "__uint(type, 33); __uint(max_entries, 1); __ulong(map_extra, 0x100000000000);"
    data = compile_bpf(MACROS + f'struct {{ {fields} }} a SEC(".maps");\n' + PROG)
    assert _ours(data)["a"].extra == 0x100000000000


@pytest.mark.parametrize("wanted", [0, 1, 4095, 4096, 4097, 8192, 10000, 12288, 1 << 20, (1 << 20) + 1])
def test_ring_buffers_are_sized_as_by_libbpf(wanted: int) -> None:
    data = compile_bpf(
        MACROS + f'struct {{ __uint(type, 27); __uint(max_entries, {wanted}); }} rb SEC(".maps");\n' + PROG
    )
    assert maps.ringbuf_size(wanted, 4096) == _libbpf(data, "x")["rb"][3]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("__uint(max_entries, 1);", "map type isn't specified"),
        ("__uint(type, 1); __uint(unknown_thing, 1);", "unknown field 'unknown_thing'"),
        ("__uint(type, 1); __uint(key_size, 8); __type(key, u32);", "conflicting key_size"),
        ("__uint(type, 1); __array(values, int (void *));", "map-in-map or prog-array"),
        ("__uint(type, 1); int max_entries;", "expected PTR to ARRAY"),
        ("__uint(type, 1); __uint(pinning, 7);", "invalid pinning"),
    ],
)
def test_a_bad_definition_names_map_and_field(fields: str, words: str) -> None:
    data = compile_bpf(MACROS + f'struct {{ {fields} }} broken SEC(".maps");\n' + PROG)
    with pytest.raises(MapError, match="'broken'") as caught:
        _ours(data)
    assert words in caught.value.message
    assert caught.value.name == "broken"


@pytest.mark.parametrize(("text", "count"), [("0", 1), ("0-3", 4), ("0-1,4,6-7\n", 5)])
def test_possible_cpus(tmp_path: Path, text: str, count: int) -> None:
    place = tmp_path / "possible"
    place.write_text(text)
    assert map_create.possible_cpus(str(place)) == count


RICH = MACROS + """
enum big { BIG = 0x100000000 }; typedef double real;
struct holder { real r; enum big e; int __attribute__((btf_type_tag("t"))) *p; };
struct holder held; u64 zeroed; extern int strong SEC(".data.custom");
noinline u64 global_part(u64 x) { return x + zeroed; }
__attribute__((btf_decl_tag("d"))) u64 tagged;
SEC("socket") int f(void *ctx) { held.e = BIG; return global_part(1) + tagged; }
"""  # fmt: skip
KIND_OF_FEATURE = {
    "btf_datasec": ("datasec", "var"), "btf_decl_tag": ("decl_tag",), "btf_float": ("float",),
    "btf_type_tag": ("type_tag",),
    "btf_enum64": ("enum64",), "btf_func": ("func", "func_proto"),
}  # fmt: skip
FEATURES = (*KIND_OF_FEATURE, "btf_func_global", "btf_qmark_datasec")


def _kinds(btf: Btf) -> set[str]:
    return {KIND_NAMES[btf.kind(i)] for i in range(1, btf.count)}


@pytest.mark.parametrize("missing", [*KIND_OF_FEATURE, "all"])
def test_sanitised_btf_holds_no_kind_the_kernel_lacks(missing: str) -> None:
    obj = BpfObject(compile_bpf(RICH.replace('extern int strong SEC(".data.custom");', "")))
    assert obj.btf is not None
    gone = set(KIND_OF_FEATURE) if missing == "all" else {missing}
    before = _kinds(obj.btf)
    image = BtfImage(obj.btf)
    complete(image, obj)
    assert set(sanitise(image, {name: name not in gone for name in FEATURES})) == gone
    after = Btf(image.bytes())
    assert after.count >= obj.btf.count
    for feature in gone:
        for kind in KIND_OF_FEATURE[feature]:
            assert kind in before, f"the object was meant to hold a {kind}"
            assert kind not in _kinds(after)
