"""Types, functions and kernel functions of kernel modules, in guests with real modules: libbpf and our loader agree on
what they find there, and bpftool's reading of the modules' files is the third witness.

virtio_console and the virtio_pci modules are in a guest of Debian 12's kernels anyway; nf_conntrack (with what it
depends on) is loaded besides, since it has kernel functions (since 5.18, kernel commit b4c2b9593a1c).
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import inspection
from harness.errors import FetchError
from harness.judge.agreement import disagreements
from harness.kernels import apt_source
from harness.model.kernel import Kernel
from harness.session import JudgeRequest, Session
from tests.support import guests
from tests.support.clang import compile_bpf

pytestmark = [pytest.mark.vm, pytest.mark.network]

KERNELS = ("debian-6.1-cloud-amd64", "debian-6.1-cloud-arm64")
EXTRA = "nf_conntrack"

# struct console is a type of vmlinux and another one of virtio_console: libbpf does not come to look at the latter.
FOUND = """
struct port_buffer { u64 offset; u64 size; u32 sgpages; int gone; } PAI;
struct virtio_pci_modern_device { void *notify_base; } PAI;
struct console { u32 vtermno; } PAI;
struct nf_conntrack_net___mine { u32 expect_count; } PAI;
struct of_no_module { int a; } PAI;
SEC("raw_tp/sys_enter") u64 prog(void *p)
{
    u64 r = 0;
    r += field_info(((struct port_buffer *)p)->offset, BYTE_OFF);
    r += field_info(((struct port_buffer *)p)->sgpages, BYTE_OFF);
    r += field_info(((struct port_buffer *)p)->size, BYTE_SZ);
    r += field_info(((struct port_buffer *)p)->gone, EXISTS);
    r += type_info(struct port_buffer, T_SIZE);
    r += type_id(struct port_buffer, ID_TARGET);
    r += field_info(((struct virtio_pci_modern_device *)p)->notify_base, BYTE_OFF);
    r += type_info(struct virtio_pci_modern_device, T_EXISTS);
    r += field_info(((struct console *)p)->vtermno, EXISTS);
    r += field_info(((struct nf_conntrack_net___mine *)p)->expect_count, BYTE_OFF);
    r += type_info(struct of_no_module, T_EXISTS);
    return r;
}
"""
AMBIGUOUS = """
struct virtio_pci_modern_device { void *notify_base; } PAI;
SEC("raw_tp/sys_enter") u64 prog(void *p) { return type_id(struct virtio_pci_modern_device, ID_TARGET); }
"""
FUNCTIONS = """
#define KSYM SEC(".ksyms")
struct nf_conn {}; struct xdp_md {}; struct bpf_sock_tuple {};
struct bpf_ct_opts { u32 netns_id; int error; u8 proto; u8 dir; u8 pad[2]; };
extern struct nf_conn *
bpf_xdp_ct_lookup(struct xdp_md *, struct bpf_sock_tuple *, u32, struct bpf_ct_opts *, u32) KSYM;
extern void bpf_ct_release(struct nf_conn *) KSYM;
extern int corematrix_no_such_kfunc(int) KSYM __attribute__((weak));
SEC("xdp") int kernel_functions(struct xdp_md *ctx)
{
    struct bpf_ct_opts opts = { .netns_id = -1, .proto = 6 };
    u8 tuple[12] = {};
    struct nf_conn *found = bpf_xdp_ct_lookup(ctx, (void *)tuple, sizeof(tuple), &opts, sizeof(opts));
    if (found)
        bpf_ct_release(found);
    return corematrix_no_such_kfunc ? 1 : 2;
}
SEC("fentry/virtcons_probe") int into_a_module(void *ctx) { return 0; }
SEC("fexit/nf_conntrack_destroy") int of_vmlinux(void *ctx) { return 0; }
SEC("fentry/corematrix_no_such_function") int into_nothing(void *ctx) { return 0; }
"""

# The kernel's nf_conn is no forward declaration, and kinds are compared through a pointer.
FORWARD = """
struct nf_conn;
extern void bpf_ct_release(struct nf_conn *) SEC(".ksyms");
SEC("xdp") int prog(void *ctx) { bpf_ct_release(ctx); return 0; }
"""


class Types:
    """The structures of vmlinux and modules as bpftool reads them from files, by module (`""` for vmlinux) and name."""

    def __init__(self, kernel: Kernel) -> None:
        if shutil.which("bpftool") is None:
            pytest.skip("bpftool is not installed")
        assert kernel.btf is not None
        base = ["-B", str(kernel.btf)]
        self.of: dict[str, Mapping[str, Any]] = {"": _structs([], kernel.btf)}
        self.of.update({path.stem: _structs(base, path) for path in kernel.modules})

    def owners(self, name: str) -> list[str]:
        return [owner for owner, types in self.of.items() if name in types]

    def offset(self, owner: str, name: str, member: str) -> int:
        (found,) = [one for one in self.of[owner][name]["members"] if one["name"] == member]
        return int(found["bits_offset"]) // 8


def _structs(options: list[str], path: Path) -> dict[str, Any]:
    command = ["bpftool", "-j", *options, "btf", "dump", "file", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"bpftool cannot read {path.name}: {done.stderr.strip()}")
    return {one["name"]: one for one in json.loads(done.stdout)["types"] if one["kind"] == "STRUCT"}


def with_module(identity: str) -> Kernel:
    """A kernel whose guest has nf_conntrack too."""
    kernel = guests.kernel(identity)
    try:
        found = apt_source.extra_modules(kernel, (EXTRA,), guests.store(), lambda _line: None)
    except FetchError as error:
        pytest.skip(f"{EXTRA} cannot be had: {error.message}")
    assert not found.missing
    return replace(kernel, modules=(*kernel.modules, *(path for path in found.paths if path not in kernel.modules)))


@pytest.fixture(scope="module", params=KERNELS)
def asked(request: pytest.FixtureRequest) -> tuple[Kernel, dict[str, tuple[dict[str, Any], dict[str, Any]]]]:
    """A kernel, and for each object what (python, libbpf) said in one guest of it."""
    kernel = with_module(request.param)
    answers = {}
    with Session(kernel, guests.options(kernel, cold=True)) as session:
        for name, text in {"found": FOUND, "ambiguous": AMBIGUOUS, "functions": FUNCTIONS, "forward": FORWARD}.items():
            data = compile_bpf(text)
            libbpf = session.judge(
                JudgeRequest(name=name, loader="libbpf", evidence=False), data, lambda _message: None
            )
            wanted = JudgeRequest(name=name, evidence=False, rules=libbpf["rules"])
            answers[name] = session.judge(wanted, data, lambda _message: None), libbpf
    return kernel, answers


Asked = tuple[Kernel, dict[str, tuple[dict[str, Any], dict[str, Any]]]]


@pytest.mark.parametrize("name", ["found", "ambiguous", "functions", "forward"])
def test_both_loaders_agree(asked: Asked, name: str) -> None:
    python, libbpf = asked[1][name]
    assert libbpf["core_relos"] or name in ("functions", "forward")
    assert disagreements(python, libbpf) == []


def test_types_of_modules_are_found_where_bpftool_sees_them(asked: Asked) -> None:
    kernel, answers = asked
    python, _ = answers["found"]
    lines = python["core_relos"]
    values = [line["new_value"] for line in lines]
    types = Types(kernel)
    port, modern, net = "port_buffer", "virtio_pci_modern_device", "nf_conntrack_net"
    assert types.owners(port) == ["virtio_console"] and types.owners(net) == [EXTRA]
    assert set(types.owners(modern)) == {"virtio_pci", "virtio_pci_modern_dev"}
    assert types.owners("console") == ["", "virtio_console"]
    of_port = types.of["virtio_console"][port]
    assert values == [
        types.offset("virtio_console", port, "offset"), types.offset("virtio_console", port, "sgpages"), 8, 0,
        of_port["size"], of_port["id"], types.offset("virtio_pci", modern, "notify_base"), 1,
        0, types.offset(EXTRA, net, "expect_count"), 0,
    ]  # fmt: skip
    assert [sorted(str(one.get("module")) for one in line["candidates"]) for line in lines[6:10]] == [
        ["virtio_pci", "virtio_pci_modern_dev"], ["virtio_pci", "virtio_pci_modern_dev"], ["None"], [EXTRA],
    ]  # fmt: skip


def test_inspect_finds_the_same_in_the_modules_files(asked: Asked, tmp_path: Path) -> None:
    """Offline, from the .ko files, what libbpf decided in the guest."""
    kernel, answers = asked
    assert kernel.btf is not None
    base = inspection.open_btf(kernel.btf)
    modules = [inspection.open_module(path, base) for path in kernel.modules]
    for name, text in {"found": FOUND, "ambiguous": AMBIGUOUS}.items():
        path = tmp_path / f"{name}.bpf.o"
        path.write_bytes(compile_bpf(text))
        mine, theirs = inspection.inspect_object(path, base, modules=modules), answers[name][1]
        fields = ("outcome", "target_spec", "new_value", "after")
        wanted = [[line[word] for word in fields] for line in theirs["core_relos"] if line["outcome"] != "error"]
        assert [[line[word] for word in fields] for line in mine.relos if line["outcome"] != "error"] == wanted
        assert (mine.error is None) == (theirs["object_error"] is None)


def test_an_id_in_two_modules_is_ambiguous(asked: Asked) -> None:
    for facts in asked[1]["ambiguous"]:
        assert facts["object_error"]["stage"] == "core"
        assert facts["core_relos"][-1]["outcome"] == "error"


def test_a_forward_declaration_is_another_type(asked: Asked) -> None:
    for facts in asked[1]["forward"]:
        assert facts["object_error"]["stage"] == "externs"
        assert [extern["outcome"] for extern in facts["externs"]] == ["error"]


def test_functions_of_modules_are_called_and_attached_to(asked: Asked) -> None:
    for facts in asked[1]["functions"]:
        progs = {prog["name"]: prog for prog in facts["progs"]}
        assert progs["kernel_functions"]["loaded"], progs["kernel_functions"]["log"]
        assert progs["into_nothing"]["unsupported"] == "attach_target"
        outcomes = {extern["name"]: extern["outcome"] for extern in facts["externs"]}
        assert outcomes == {
            "bpf_xdp_ct_lookup": "resolved", "bpf_ct_release": "resolved", "corematrix_no_such_kfunc": "missing"
        }  # fmt: skip
        assert progs["into_a_module"]["loaded"] and progs["of_vmlinux"]["loaded"]


def test_a_kernel_whose_modules_have_no_btf_says_so() -> None:
    """5.10 is one (module BTF came with 5.11): a module's function is not merely not there."""
    kernel = guests.kernel("debian-5.10-cloud-amd64")
    data = compile_bpf('SEC("fentry/virtcons_probe") int into_a_module(void *ctx) { return 0; }')
    with Session(kernel, guests.options(kernel)) as session:
        facts = session.judge(JudgeRequest(name="module", evidence=False), data, lambda _message: None)
    (prog,) = facts["progs"]
    assert prog["loaded"] is False
    assert "of the modules none has any (CONFIG_DEBUG_INFO_BTF_MODULES)" in json.dumps(prog)
