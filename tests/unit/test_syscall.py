"""Attribute layouts against the kernel's own description of `union bpf_attr`: its BTF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.guest import btf as kernel_types
from harness.guest import syscall
from harness.guest.syscall import Bpf, MapCreate, ProgLoad

VMLINUX = Path("/sys/kernel/btf/vmlinux")


class _Recorder(Bpf):
    """Keeps what would have gone to the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.attrs: dict[int, bytes] = {}

    def call(self, command: int, attr: bytes | bytearray) -> int:
        self.attrs[command] = bytes(attr)
        return 0


def _offsets(member: str) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of the fields of the anonymous struct of bpf_attr that holds `member`."""
    if not VMLINUX.exists():
        pytest.skip("this kernel has no BTF")
    btf = kernel_types.load(str(VMLINUX))
    attr_id = btf.find("bpf_attr", kernel_types.BTF_KIND_UNION)
    assert attr_id is not None
    for _, type_id, _, _ in btf.members(btf.type(attr_id)):
        struct = btf.skip_mods_and_typedefs(type_id)
        fields = _fields(btf, struct, 0)
        if member in fields:
            return fields
    raise AssertionError(member)


def _fields(btf: kernel_types.Btf, struct: kernel_types.Type, base: int) -> dict[str, tuple[int, int]]:
    found: dict[str, tuple[int, int]] = {}
    for name, type_id, bits, _ in btf.members(struct):
        inner = btf.skip_mods_and_typedefs(type_id)
        if name:
            found[name] = (base + bits // 8, btf.resolve_size(type_id))
        elif inner.kind in (kernel_types.BTF_KIND_STRUCT, kernel_types.BTF_KIND_UNION):
            found.update(_fields(btf, inner, base + bits // 8))
    return found


def _value(attr: bytes, place: tuple[int, int]) -> int:
    return int.from_bytes(attr[place[0] : place[0] + place[1]], "little")


def test_prog_load_fields_are_where_the_kernel_has_them() -> None:
    fields = _offsets("prog_type")
    bpf = _Recorder()
    load = ProgLoad(5, bytes(16), b"GPL")
    wanted: dict[str, Any] = {"prog_flags": 17, "expected_attach_type": 42, "attach_btf_id": 99, "attach_btf_obj_fd": 7,
                              "kern_version": 0x60100}  # fmt: skip
    for name, number in wanted.items():
        setattr(load, name, number)
    load.btf_fd, load.func_info, load.line_info, load.fd_array, load.name = 33, bytes(24), bytes(48), [0, 5], "a_name"
    bpf.prog_load(load, 6, 4096)
    attr = bpf.attrs[syscall.PROG_LOAD]
    wanted |= {"prog_type": 5, "insn_cnt": 2, "log_level": 6, "log_size": 4096, "prog_btf_fd": 33,
               "func_info_rec_size": 8,
               "func_info_cnt": 3, "line_info_rec_size": 16, "line_info_cnt": 3}  # fmt: skip
    assert {name: _value(attr, fields[name]) for name in wanted} == wanted
    assert all(
        _value(attr, fields[name]) for name in ("insns", "license", "log_buf", "func_info", "line_info", "fd_array")
    )
    offset, size = fields["prog_name"]
    assert attr[offset : offset + size] == b"a_name".ljust(16, b"\0")


def test_without_btf_no_records_are_passed() -> None:
    bpf = _Recorder()
    load = ProgLoad(5, bytes(16))
    load.func_info, load.line_info = bytes(8), bytes(16)
    bpf.prog_load(load)
    fields = _offsets("prog_type")
    attr = bpf.attrs[syscall.PROG_LOAD]
    assert all(
        _value(attr, fields[name]) == 0 for name in ("func_info", "func_info_cnt", "line_info", "line_info_rec_size")
    )


def test_map_create_fields_are_where_the_kernel_has_them() -> None:
    fields = _offsets("map_type")
    bpf = _Recorder()
    item = MapCreate(1, 4, 8, 16)
    item.flags, item.inner_fd, item.numa_node, item.btf_fd, item.btf_key, item.btf_value = 3, 4, 5, 6, 7, 8
    item.btf_vmlinux_value, item.extra, item.value_btf_obj_fd, item.name = 9, 10, 11, "m"
    bpf.map_create(item)
    attr = bpf.attrs[syscall.MAP_CREATE]
    wanted = {"map_type": 1, "key_size": 4, "value_size": 8, "max_entries": 16, "map_flags": 3, "inner_map_fd": 4,
              "numa_node": 5, "btf_fd": 6, "btf_key_type_id": 7, "btf_value_type_id": 8, "btf_vmlinux_value_type_id": 9,
              "map_extra": 10, "value_type_btf_obj_fd": 11}  # fmt: skip
    assert {name: _value(attr, fields[name]) for name in wanted} == wanted


def test_prog_load_gives_up_after_five_times_eagain() -> None:
    class Busy(Bpf):
        calls = 0

        def call(self, command: int, attr: bytes | bytearray) -> int:
            self.calls += 1
            raise OSError(11, "EAGAIN")

    bpf = Busy()
    with pytest.raises(OSError, match="EAGAIN"):
        bpf.prog_load(ProgLoad(1, bytes(16)))
    assert bpf.calls == 5
