"""Section names against the installed libbpf, and numbers against the kernel's enums."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from harness.guest import btf, prog_types

VMLINUX = Path("/sys/kernel/btf/vmlinux")
# libbpf 1.1's rules: what Debian 12 installs. A newer libbpf knows more names, never fewer.
OLD = (1, 1)


def _libbpf() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libbpf.so.1")
    except OSError:
        pytest.skip("libbpf.so.1 is not installed")


def _by_name(lib: ctypes.CDLL, name: str) -> tuple[int, int] | None:
    kind, attach = ctypes.c_int(), ctypes.c_int()
    status = lib.libbpf_prog_type_by_name(name.encode(), ctypes.byref(kind), ctypes.byref(attach))
    return (kind.value, attach.value) if status == 0 else None


def _names() -> list[str]:
    rows = [row[0] for row in prog_types._ROWS]
    names = [row.rstrip("+") for row in rows]
    names += [f"{row[:-1]}/target" for row in rows if row.endswith("+")]
    names += [f"{row}/more" for row in rows if not row.endswith("+")]
    return [
        *names,
        "kprobes/x",
        "kprobe.s/x",
        "tcx",
        "xdp.frag",
        "cgroup/connect",
        "",
        "no_such_section",
        "fentry.s",
        "SEC",
    ]


@pytest.mark.parametrize("name", _names())
def test_a_section_means_what_it_means_to_libbpf(name: str) -> None:
    lib = _libbpf()
    lib.libbpf_set_print(None)
    lib.libbpf_major_version.restype = lib.libbpf_minor_version.restype = ctypes.c_uint32
    version = (lib.libbpf_major_version(), lib.libbpf_minor_version())
    ours = prog_types.parse_section(name, version)
    assert (None if ours is None else (ours.type, ours.attach)) == _by_name(lib, name)


def test_younger_names_are_unknown_to_older_rules() -> None:
    assert prog_types.parse_section("netkit/peer") is not None
    assert prog_types.parse_section("netkit/peer", OLD) is None


@pytest.mark.parametrize(
    ("enum", "prefix", "names"),
    [("bpf_prog_type", "BPF_PROG_TYPE_", prog_types.PROG_TYPES), ("bpf_attach_type", "BPF_", prog_types.ATTACH_TYPES)],
)
def test_numbers_are_the_kernels(enum: str, prefix: str, names: list[str]) -> None:
    if not VMLINUX.exists():
        pytest.skip("this kernel has no BTF")
    types = btf.load(str(VMLINUX))
    type_id = types.find(enum, btf.BTF_KIND_ENUM)
    assert type_id is not None
    kernel = {
        name.removeprefix(prefix).lower(): value
        for name, value in types.enumerators(types.type(type_id))
        if "__" not in name[:2]
    }
    ours = {name: number for number, name in enumerate(names) if name in kernel}
    assert ours == {name: kernel[name] for name in ours}
    assert len(ours) >= min(len(kernel), len(names)) - 1


def test_flags_make_prog_flags() -> None:
    sleepable = prog_types.parse_section("lsm.s/file_open")
    frags = prog_types.parse_section("xdp.frags")
    assert sleepable is not None
    assert frags is not None
    assert (sleepable.prog_flags, sleepable.is_sleepable, sleepable.target) == (
        prog_types.BPF_F_SLEEPABLE,
        True,
        "file_open",
    )
    assert frags.prog_flags == prog_types.BPF_F_XDP_HAS_FRAGS


def test_a_question_mark_only_turns_autoload_off() -> None:
    plain, marked = prog_types.parse_section("fentry/vfs_read"), prog_types.parse_section("?fentry/vfs_read")
    assert plain is not None
    assert marked is not None
    assert (plain.type, plain.attach, plain.target) == (marked.type, marked.attach, marked.target)
