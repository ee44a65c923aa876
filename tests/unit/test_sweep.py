"""A sweep: BTF out of archives, indexed, relocated against in parallel, and hundreds of answers in a few lines."""

from __future__ import annotations

import io
import json
import lzma
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import cli
from harness.commands import sweep as sweep_command
from harness.errors import FetchError, UsageError
from harness.guest.bpf_object import BpfObject
from harness.guest.btf import BTF_KIND_FUNC, BTF_KIND_STRUCT, Btf
from harness.guest.core_relo import Targets, relocate
from harness.guest.elf import Elf
from harness.guest.errors import MalformedBtf
from harness.guest.kconfig import kernel_version
from harness.model.arch import ARCHITECTURES
from harness.model.kernel import Kernel, KernelSpec
from harness.model.release import natural
from harness.model.sources import MainlineSource
from harness.sweep import archive, engine
from harness.sweep.answers import Fate
from harness.sweep.classes import classes
from harness.sweep.index import IndexedBtf, write_index
from harness.sweep.targets import Target, find_targets, kernel_targets
from tests.support.btf_builder import BtfBuilder
from tests.support.clang import compile_bpf, compile_target
from tests.support.derived_btf import derive
from tests.support.renamed_thing import guarded

SHARED = Path("/work/shared/btf")
PROGRAM = guarded("raw_tp/sched_process_exec") + """
SEC("raw_tp/sched_process_exit")
int unguarded(void *ctx)
{
    int value = 0;
    probe_read(&value, sizeof(value), (char *)ctx + field_info(((struct thing *)0)->old_name, BYTE_OFF));
    return value;
}
"""
# What the verifier of the kernels here follows (harness.predict.models): constants decide branches.
VERIFIER = "struct bpf_func_state { int x; }; struct bpf_verifier_state { int branches; };"
OLD = VERIFIER + "struct thing { long before; int old_name; };"
NEW = VERIFIER + "struct thing { int new_name; };"
NAMES = ("thing", "bpf_func_state", "bpf_verifier_state")


def packed(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as made:
        member = tarfile.TarInfo("x.btf")
        member.size = len(data)
        made.addfile(member, io.BytesIO(data))
    path.write_bytes(lzma.compress(raw.getvalue()))
    return path


@pytest.fixture(scope="module")
def btfs():
    made = {}
    for name, text in (("old", OLD), ("new", NEW)):
        elf = Elf(compile_target(text, *(f"struct {one}" for one in NAMES)))
        made[name] = bytes(elf.content(elf.section(".BTF")))
    return made


@pytest.fixture
def tree(tmp_path, btfs):
    """Seven kernels of two distributions and two architectures: the field is renamed with 5.10."""
    releases = {"5.4.0": "old", "5.9.0": "old", "5.10.0": "new", "5.11.0": "new"}
    for release, which in releases.items():
        packed(tmp_path / "tree" / "alpha" / "1" / "x86_64" / f"{release}.btf.tar.xz", btfs[which])
    packed(tmp_path / "tree" / "alpha" / "1" / "aarch64" / "5.11.0.btf.tar.xz", btfs["new"])
    packed(tmp_path / "tree" / "beta" / "9" / "x86_64" / "4.18.0.btf.tar.xz", btfs["old"])
    packed(tmp_path / "tree" / "beta" / "10" / "x86_64" / "6.1.0.btf.tar.xz", btfs["new"])
    return tmp_path / "tree"


@pytest.fixture
def obj(tmp_path):
    path = tmp_path / "thing.bpf.o"
    path.write_bytes(compile_bpf(PROGRAM))
    return path


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """The command: (exit status, standard output, standard error)."""
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "cache"))

    def run(*words):
        status = cli.main(["sweep", *map(str, words)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


# -- the index


ENDLESS = """
import os, pathlib, sys, time
from harness import cli
from harness.sweep import engine
def endless(path):
    pathlib.Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)
engine.read_btf = endless
sys.exit(cli.main(sys.argv[2:]))
"""


def until(look, suits, seconds=60.0):
    """What `look` finds once it suits."""
    deadline = time.monotonic() + seconds
    while not suits(found := look()):
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


def runs(pid):
    """Whether a process is there, and no zombie: who takes over a dead parent's children may leave them so."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def opened(tmp_path, data, **options):
    write_index(data, tmp_path / "index", "x")
    return IndexedBtf(tmp_path / "index", "x", **options)


@pytest.mark.parametrize("prefix", ["<", ">"])
def test_an_index_answers_as_the_btf_does(tmp_path, prefix):
    builder = BtfBuilder(prefix)
    integer = builder.int("int", 4)
    wanted = [builder.struct("a", 4, ("x", integer, 0)), builder.struct("a___flavor", 8, ("y", integer, 32))]
    builder.struct("b___c", 4, ("x", integer, 0))
    proto = builder.add("", 13, integer)
    function = builder.add("f", BTF_KIND_FUNC, proto)
    data = builder.build()
    full = Btf(data)
    with opened(tmp_path, data) as indexed:
        assert indexed.ids_by_essential_name("a") == full.ids_by_essential_name("a") == wanted
        assert indexed.ids_by_essential_name("b") == full.ids_by_essential_name("b")
        assert indexed.ids_by_essential_name("nothing") == []
        assert indexed.find("a___flavor", BTF_KIND_STRUCT) == wanted[1]
        assert indexed.find("f", BTF_KIND_FUNC) == function
        assert indexed.find("a", BTF_KIND_FUNC) is None
        assert indexed.has_functions
        for id_ in range(full.count):
            assert repr(indexed.type(id_)) == repr(full.type(id_))
        assert indexed.members(indexed.type(wanted[1])) == [("y", integer, 32, 0)]
        assert indexed.resolve_size(wanted[1]) == 8
    with opened(tmp_path, data, all_kinds=True) as indexed:
        assert indexed.ids_by_essential_name("f") == [function]


def test_a_name_inside_of_another_is_found(tmp_path):
    builder = BtfBuilder()
    integer = builder.int("int", 4)
    builder.struct("unsigned_thing", 4, ("x", integer, 0))
    data = bytearray(builder.build())
    full = Btf(bytes(data))
    place = 24 + 16  # the struct's first word: its name's offset
    offset = int.from_bytes(data[place : place + 4], "little") + len("unsigned_")
    data[place : place + 4] = offset.to_bytes(4, "little")
    assert full.find("unsigned_thing", BTF_KIND_STRUCT) == 2
    with opened(tmp_path, bytes(data)) as indexed:
        assert indexed.ids_by_essential_name("thing") == [2]
        assert indexed.find("thing", BTF_KIND_STRUCT) == 2


def test_damaged_btf_is_refused_and_no_index_is_taken_for_one(tmp_path):
    builder = BtfBuilder()
    builder.int("int", 4)
    with pytest.raises(MalformedBtf):
        write_index(builder.build()[:-3], tmp_path / "index", "x")
    (tmp_path / "other").write_bytes(b"something else" * 9)
    with pytest.raises(UsageError, match="not an index"):
        IndexedBtf(tmp_path / "other", "x")
    write_index(builder.build(), tmp_path / "index", "x")
    (tmp_path / "index").write_bytes((tmp_path / "index").read_bytes()[:-1])
    with pytest.raises(UsageError, match="cut off"):
        IndexedBtf(tmp_path / "index", "x")


def test_long_names_inside_of_each_other_are_refused_and_not_read_for_hours(tmp_path):
    builder = BtfBuilder()
    builder.int("x" * (1 << 20), 4)
    for _ in range(20_000):
        builder.struct("", 4)
    data = bytearray(builder.build())
    for number in range(20_000):  # each name begins one further inside of the first
        place = 24 + 16 + 12 * number
        data[place : place + 4] = (1 + number).to_bytes(4, "little")
    with pytest.raises(MalformedBtf, match="inside of each other"):
        write_index(bytes(data), tmp_path / "index", "x")


def test_a_name_outside_of_the_strings_is_refused(tmp_path):
    builder = BtfBuilder()
    builder.int("int", 4)
    data = bytearray(builder.build())
    data[24:28] = (1 << 20).to_bytes(4, "little")
    with pytest.raises(MalformedBtf, match="outside the string section"):
        write_index(bytes(data), tmp_path / "index", "x")


@pytest.mark.parametrize(("name", "size"), [("long int", 8), ("long", 4), ("something", 8)])
def test_the_size_of_pointers_is_that_of_long_wherever_it_stands(tmp_path, name, size):
    builder = BtfBuilder()
    builder.int("int", 4)
    builder.struct("long", 4)
    builder.int(name, size)
    data = builder.build()
    with opened(tmp_path, data) as indexed:
        assert indexed.pointer_size == Btf(data).pointer_size == size


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs /work/shared/btf")
@pytest.mark.parametrize("derived", [None, 1, 2, 3])
def test_real_kernels_relocate_the_same_with_and_without_an_index(tmp_path, derived):
    """Every line of every relocation: candidates, reasons, values, also in BTF with members moved about."""
    data = archive.read_btf(next(SHARED.glob("kylin/V10/aarch64/*52.22*")))
    if derived is not None:
        data = derive(data, derived, frozenset(("task_struct", "sock", "file")), others=0.05)
    full, compared = Btf(data), 0
    source = """
struct task_struct { int pid; int tgid; long state; int corematrix_none; } PAI;
struct sock { int sk_protocol; } PAI;
struct file { void *f_op; } PAI;
enum bpf_map_type { BPF_MAP_TYPE_HASH = 99, BPF_MAP_TYPE_RINGBUF = 98 };
SEC("raw_tp/x") int prog(void *ctx)
{
    return field_info(((struct task_struct *)0)->pid, BYTE_OFF) + field_info(((struct task_struct *)0)->state, BYTE_OFF)
        + field_info(((struct task_struct *)0)->corematrix_none, BYTE_OFF)
        + field_info(((struct sock *)0)->sk_protocol, BYTE_SZ) + field_info(((struct file *)0)->f_op, BYTE_OFF);
}
"""
    compiled = compile_bpf(source)
    with opened(tmp_path, data) as indexed:
        found = []
        for target in (indexed, full):
            run = relocate(BpfObject(compiled, "x"), Targets(target))
            found.append([relo.as_dict() for relo in run.relos] + [str(run.error)])
            compared += len(run.relos)
        assert found[0] == found[1]
    assert compared >= 8


# -- archives


def test_btf_comes_out_of_a_hub_archive_and_out_of_a_raw_file(tmp_path):
    data = b"\x9f\xeb" + bytes(50_000)
    assert archive.read_btf(packed(tmp_path / "x.btf.tar.xz", data)) == data
    (tmp_path / "x.btf").write_bytes(data)
    assert archive.read_btf(tmp_path / "x.btf") == data


def test_a_small_archive_that_asks_for_very_much_is_refused_before_it_is_unpacked(tmp_path):
    bomb = packed(tmp_path / "bomb.btf.tar.xz", bytes(64 << 20))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(UsageError, match="more than 1 MB of BTF"):
        archive.read_btf(bomb, limit=1 << 20)


def test_padding_before_the_file_counts_too(tmp_path):
    """An endless run of empty blocks is no file, and is not walked to its end."""
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(b"x" * (64 << 20)))
    with pytest.raises(UsageError):
        archive.read_btf(tmp_path / "x.tar.xz", limit=1 << 20)


@pytest.mark.parametrize("keep", [0, 10, 40])
def test_cut_off_archives_are_told(tmp_path, keep):
    whole = packed(tmp_path / "x.btf.tar.xz", bytes(range(256)) * 100).read_bytes()
    (tmp_path / "x.btf.tar.xz").write_bytes(whole[: len(whole) * keep // 100])
    with pytest.raises(UsageError, match=r"x\.btf\.tar\.xz"):
        archive.read_btf(tmp_path / "x.btf.tar.xz")


def test_an_archive_without_a_file_and_an_elf_without_btf(tmp_path):
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as made:
        directory = tarfile.TarInfo("directory")
        directory.type = tarfile.DIRTYPE
        made.addfile(directory)
    (tmp_path / "x.tar.xz").write_bytes(lzma.compress(raw.getvalue()))
    with pytest.raises(UsageError, match="no file in this archive"):
        archive.read_btf(tmp_path / "x.tar.xz")
    with pytest.raises(UsageError, match=r"without a \.BTF section"):
        archive.read_btf(Path("/bin/true"))


# -- targets


def test_releases_are_ordered_as_people_count():
    releases = ["5.10.0-8", "5.4.0-100", "5.4.0-99", "4.18.0-80.el8", "4.18.0-147.el8", "5.10.0-10"]
    assert sorted(releases, key=natural) == [
        "4.18.0-80.el8", "4.18.0-147.el8", "5.4.0-99", "5.4.0-100", "5.10.0-8", "5.10.0-10",
    ]  # fmt: skip


def test_a_tree_names_distribution_version_architecture_and_release(tree):
    found = find_targets([tree])
    assert [target.id for target in found] == [
        "alpha/1/arm64/5.11.0", "alpha/1/x86_64/5.4.0", "alpha/1/x86_64/5.9.0", "alpha/1/x86_64/5.10.0",
        "alpha/1/x86_64/5.11.0", "beta/9/x86_64/4.18.0", "beta/10/x86_64/6.1.0",
    ]  # fmt: skip
    assert find_targets([tree / "beta", tree / "beta" / "9"])[0].kernel_version == "4.18.0"
    assert len(find_targets([tree / "beta", tree / "beta" / "9"])) == 2
    with pytest.raises(UsageError, match="no such file"):
        find_targets([tree / "gamma"])


def test_debians_patch_level_is_in_the_package_and_an_old_libbpf_does_not_see_it():
    debian = Target(
        id="d", distro="debian", version="cloud", arch="x86_64", release="6.1.0-56-cloud-amd64", path=Path("x"),
        kernel_version="6.1.192",
    )  # fmt: skip
    assert [debian.version_by(rules) for rules in (None, (1, 5), (1, 2))] == ["6.1.192"] * 3
    # libbpf 1.1.2's get_kernel_version() reads uname's release
    assert debian.version_by((1, 1)) == "6.1.0-56-cloud-amd64"


@pytest.mark.parametrize(
    ("release", "package", "read"),
    [
        ("6.1.0-56-cloud-amd64", "6.1.192-2", kernel_version("6.1.192")),
        ("6.18.44-own", "", kernel_version("6.18.44")),
        ("7.3-cloud-amd64", "7.3~rc7-1~exp1", 0),  # seen in a guest: "failed to get kernel version"
    ],
)
def test_a_release_candidate_of_debian_has_no_version_for_libbpf(release, package, read):
    spec = KernelSpec(id="debian-x", arch=ARCHITECTURES["x86_64"], variant="cloud", source=MainlineSource(version="v1"))
    kernel = Kernel(
        spec=spec, release=release, vmlinuz=None, vmlinuz_sha256="", config=None, modules=(), btf=Path("x"),
        btf_sha256="0", config_sha256=None, source={"version": package} if package else {},
    )  # fmt: skip
    (target,) = kernel_targets([kernel])
    assert kernel_version(target.version_by(None) or "") == read


# -- classes and ranges


def kernels(*releases, distro="d", arch="x86_64"):
    return [
        Target(id=f"{distro}/{release}", distro=distro, version="1", arch=arch, release=release, path=Path("x"))
        for release in releases
    ]


def text(found):
    return [(one.outcome, one.count, [f"{r.distro} {r.text}" for r in one.ranges]) for one in found]


def test_equal_fates_are_one_class_and_lie_in_ranges():
    targets = kernels("1.0", "2.0", "3.0", "4.0", "5.0") + kernels("7.0", "8.0", distro="e")
    fates = dict.fromkeys(range(7), Fate("resolved", 8))
    fates |= {0: Fate("poisoned", reason="r"), 1: Fate("poisoned", reason="r"), 5: Fate("poisoned", reason="r")}
    assert text(classes(fates, targets)) == [
        ("poisoned", 3, ["d before 3.0 (2)", "e 7.0"]),
        ("resolved", 4, ["d from 3.0 (3)", "e 8.0"]),
    ]


def test_what_was_not_judged_leaves_no_hole_in_a_range():
    targets = kernels("1.0", "2.0", "3.0")
    fates = {0: Fate("resolved", 1), 2: Fate("resolved", 2)}
    (only,) = classes(fates, targets)
    assert (text([only]), only.distinct_values) == ([("resolved", 2, ["d all 2"])], 2)


def test_a_check_is_told_apart_by_its_value_and_an_offset_is_not():
    targets = kernels("1.0", "2.0", "3.0", "4.0")
    checks = {number: Fate("resolved", number % 2, value_matters=True) for number in range(4)}
    assert sorted(one.values for one in classes(checks, targets)) == [(0,), (1,)]
    assert text(classes(checks, targets))[0][2] == ["d 1.0", "d 3.0"]


def test_a_range_in_the_middle():
    targets = kernels("1.0", "2.0", "3.0", "4.0")
    fates = {number: Fate("poisoned" if number in (1, 2) else "resolved") for number in range(4)}
    assert text(classes(fates, targets))[0] == ("poisoned", 2, ["d 2.0 to 3.0 (2)"])


# -- the command


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_loads_where_and_why_not(sweep, tree, obj, jobs):
    status, out, err = sweep(obj, "--btf", tree, "--format", "json", "--jobs", jobs)
    assert (status, err) == (1, "")
    found = json.loads(out)
    (swept,) = found["objects"]
    assert swept["btfs"] == 7
    # Of two contents; processes at the same time may both make the same index.
    assert found["indexed"] == 2 if jobs == 1 else 2 <= found["indexed"] <= 7
    progs = {prog["name"]: prog["classes"] for prog in swept["progs"]}
    assert [(one["outcome"], one["count"]) for one in progs["guarded"]] == [("loads", 7)]
    refused, loads = progs["unguarded"]
    assert (refused["outcome"], refused["count"], loads["count"]) == ("refused", 4, 3)
    assert "thing.old_name" in refused["reason"]
    assert [(one["distro"], one["arch"], one["text"]) for one in refused["ranges"]] == [
        ("alpha", "arm64", "5.11.0"), ("alpha", "x86_64", "from 5.10.0 (2)"), ("beta", "x86_64", "6.1.0"),
    ]  # fmt: skip
    again = json.loads(sweep(obj, "--btf", tree, "--format", "json", "--jobs", jobs)[1])
    assert again["indexed"] == 0
    assert again["objects"] == found["objects"]


def test_poison_under_a_guard_is_predicted_dead_and_poison_without_one_live(sweep, tree, obj):
    (swept,) = json.loads(sweep(obj, "--btf", tree, "--format", "json")[1])["objects"]
    fates = {
        (relo["prog"], relo["field"], relo["kind"]): {
            (one["outcome"], one["liveness"], one["count"]) for one in relo["classes"]
        }
        for relo in swept["core_relos"]
    }
    new_name = fates["guarded", "thing___new.new_name", "byte_off"]
    assert new_name == {("poisoned", "eliminated", 3), ("resolved", "live", 4)}
    assert fates["guarded", "thing.old_name", "byte_off"] == {("poisoned", "eliminated", 4), ("resolved", "live", 3)}
    assert fates["unguarded", "thing.old_name", "byte_off"] == {("poisoned", "live", 4), ("resolved", "live", 3)}
    assert all(one["evidence"] == "predicted" for relo in swept["core_relos"] for one in relo["classes"])


def test_a_number_of_a_configuration_nobody_has_leaves_open_what_it_decides(sweep, tmp_path):
    """Values tried by chance would call the one that is compared with impossible."""
    kernel = tmp_path / "vmlinux"  # 5.5 and later: Kconfig values decide branches
    kernel.write_bytes(compile_target(
        NEW + "struct bpf_prog_aux { int attach_btf_id; }; enum bpf_func_id { FIRST, __BPF_FUNC_MAX_ID = 3 };",
        "enum bpf_func_id", *(f"struct {one}" for one in (*NAMES, "bpf_prog_aux")),
    ))  # fmt: skip
    path = tmp_path / "config.bpf.o"
    path.write_bytes(compile_bpf("""
struct thing { int nowhere; } PAI;
extern int CONFIG_HZ __attribute__((section(".kconfig")));
SEC("raw_tp/x") int open_(struct thing *t) { return CONFIG_HZ == 1000 ? t->nowhere : 0; }
SEC("raw_tp/x") int both(struct thing *t) { int x = t->nowhere; return CONFIG_HZ == 1000 ? x : 0; }
static long (*const probe_read)(void *dst, u32 size, const void *src) = (void *)4;
SEC("raw_tp/x") int helper(void *t) { int x = 0; if (CONFIG_HZ == 1000) probe_read(&x, 4, t); return x; }
"""))
    status, out, _ = sweep(path, "--btf", kernel, "--format", "json")
    (swept,) = json.loads(out)["objects"]
    assert {prog["name"]: prog["classes"][0]["outcome"] for prog in swept["progs"]} == {
        "open_": "unknown", "both": "refused", "helper": "unknown",
    }  # fmt: skip
    assert "the configuration decides: this kernel has no helper #4" in out
    assert status == 1


@pytest.mark.parametrize("kind", ["bool", "enum libbpf_tristate"])
def test_each_value_of_a_switch_nobody_knows_is_assumed(sweep, tmp_path, kind):
    """On one side, on the other, and on both: only what each value reaches is live, and what none does is dead."""
    types = "struct bpf_prog_aux { int attach_btf_id; }; struct thing { int on; int off; int both; int no; };"
    path = tmp_path / "vmlinux"
    path.write_bytes(compile_target(VERIFIER + types, *(f"struct {one}" for one in (*NAMES, "bpf_prog_aux"))))
    obj = tmp_path / "switch.bpf.o"
    obj.write_bytes(compile_bpf(f"""
struct thing {{ int on; int off; int both; int no; }} PAI;
enum libbpf_tristate {{ TRI_NO = 0, TRI_YES = 1, TRI_MODULE = 2 }};
extern {kind} CONFIG_X __attribute__((section(".kconfig")));
SEC("raw_tp/x") int prog(struct thing *t)
{{
    int x = t->both;
    if (CONFIG_X == 1) x += t->on;
    if (CONFIG_X == 0) x += t->off;
    if (CONFIG_X > 2) x += t->no;
    return x;
}}
"""))
    (swept,) = json.loads(sweep(obj, "--btf", path, "--format", "json")[1])["objects"]
    found = {relo["field"].partition(".")[2]: relo["classes"][0]["liveness"] for relo in swept["core_relos"]}
    assert found.pop("no", "eliminated") == "eliminated"  # clang knows a bool's values itself
    assert found == {"both": "live", "on": "unknown", "off": "unknown"}


def test_what_an_offset_decides_on_one_kernel_is_decided_for_none(sweep, tmp_path):
    """Kernels that differ in offsets share a prediction. Both sides of such a branch are followed: on 5.1 the read
    counts as reached, though its verifier would find it dead; on 5.2 it must not count as dead.
    """
    for release, text in (("5.1.0", "int at; int used;"), ("5.2.0", "long more[9]; int at; int used;")):
        target = compile_target(f"{VERIFIER} struct thing {{ {text} }};", *(f"struct {one}" for one in NAMES))
        elf = Elf(target)
        packed(tmp_path / "tree" / "x86_64" / f"{release}.btf.tar.xz", bytes(elf.content(elf.section(".BTF"))))
    obj = tmp_path / "offset.bpf.o"
    obj.write_bytes(compile_bpf("""
struct thing { int at; int used; } PAI;
SEC("raw_tp/x") int prog(struct thing *t)
{
    return field_info(t->at, BYTE_OFF) > 8 ? t->used : 0;
}
"""))
    (swept,) = json.loads(sweep(obj, "--btf", tmp_path / "tree", "--format", "json", "--jobs", 1)[1])["objects"]
    classes = {relo["field"]: relo["classes"] for relo in swept["core_relos"]}
    found = {field: [(one["liveness"], one["count"]) for one in given] for field, given in classes.items()}
    assert found == {"thing.at": [("live", 2)], "thing.used": [("live", 2)]}


def test_the_text_says_it_in_one_line_a_finding(sweep, tree, obj):
    _, out, _ = sweep(obj, "--btf", tree, "--quiet")
    lines = out.splitlines()
    where = "alpha arm64 5.11.0; alpha x86_64 from 5.10.0 (2); beta x86_64 6.1.0"
    assert any(line.strip().startswith(f"refused on 4: {where}: poison") for line in lines)
    assert any(line.strip().startswith("= 1, live on 4") for line in lines)
    assert lines[-1].startswith("1 object against 7 BTFs of 2 distributions")


def test_an_object_for_one_architecture_meets_no_other(sweep, tree, obj):
    only = obj.rename(obj.with_name("thing.arm64.bpf.o"))
    (swept,) = json.loads(sweep(only, "--btf", tree, "--format", "json")[1])["objects"]
    assert (swept["arch"], swept["btfs"], swept["other_arch"]) == ("arm64", 1, 6)
    status, out, _ = sweep(only, "--btf", tree / "beta", "--format", "json")
    assert (status, json.loads(out)["objects"][0]["btfs"]) == (3, 0)


def test_a_damaged_btf_is_a_line_of_its_own_and_the_others_are_judged(sweep, tree, obj):
    (tree / "beta" / "9" / "x86_64" / "4.19.0.btf.tar.xz").write_bytes(b"no archive")
    packed(tree / "beta" / "9" / "x86_64" / "4.20.0.btf.tar.xz", b"no BTF")
    status, out, _ = sweep(obj, "--btf", tree)
    assert status == 1
    assert sum(line.startswith("not judged: beta/9/x86_64/4.") for line in out.splitlines()) == 2
    assert "against 7 BTFs" in out


def test_a_btf_that_could_not_be_judged_is_no_pass(sweep, tree, obj):
    """The object loads where the field is there; of the kernel in the damaged archive nobody knows."""
    assert sweep(obj, "--btf", tree / "beta" / "9")[0] == 0
    (tree / "beta" / "9" / "x86_64" / "4.19.0.btf.tar.xz").write_bytes(b"no archive")
    status, out, _ = sweep(obj, "--btf", tree / "beta" / "9")
    assert status == 4
    assert "not judged: " in out


def test_what_else_a_struct_has_parts_no_kernels(sweep, tmp_path):
    """Two kernels lack the same member; that their neighbours are called otherwise makes no two classes of them."""
    path = tmp_path / "nested.bpf.o"
    path.write_bytes(compile_bpf("""
struct io { int bytes; } PAI;
struct thing { struct io ioac; } PAI;
SEC("raw_tp/x") u64 read_it(struct thing *t) { return t->ioac.bytes; }
"""))
    for release, member in (("5.1.0", "bytes_read"), ("5.2.0", "bytes_written")):
        elf = Elf(compile_target(f"struct io {{ int {member}; }}; struct thing {{ struct io ioac; }};", "struct thing"))
        packed(tmp_path / "tree" / "x86_64" / f"{release}.btf.tar.xz", bytes(elf.content(elf.section(".BTF"))))
    _, out, _ = sweep(path, "--btf", tmp_path / "tree", "--format", "json")
    (relo,) = json.loads(out)["objects"][0]["core_relos"]
    (only,) = relo["classes"]
    assert (only["outcome"], only["count"]) == ("poisoned", 2)
    assert "has no member 'bytes' in 'ioac' (struct io) for" in only["reason"]


@pytest.mark.parametrize("damage", [b"", b"something else" * 9, None])
def test_a_damaged_index_is_made_anew(sweep, tree, obj, tmp_path, damage):
    first = json.loads(sweep(obj, "--btf", tree, "--format", "json", "--jobs", 1)[1])
    (index, _) = (tmp_path / "cache" / "trees" / "btf-index").glob("*/index")
    index.unlink()
    if damage is not None:
        index.write_bytes(damage)
    again = json.loads(sweep(obj, "--btf", tree, "--format", "json", "--jobs", 1)[1])
    assert again["indexed"] == 1
    assert again["objects"] == first["objects"]


def test_an_archive_that_changed_is_indexed_anew(sweep, tmp_path, obj, btfs):
    path = packed(tmp_path / "tree" / "alpha" / "1" / "x86_64" / "5.4.0.btf.tar.xz", btfs["old"])
    before = path.stat()
    found = []
    for which in ("old", "new", "new"):
        packed(path, btfs[which])
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns - 3600 * 10**9))  # as `cp -p` or git would
        result = json.loads(sweep(obj, "--btf", tmp_path / "tree", "--format", "json")[1])
        unguarded = result["objects"][0]["progs"][1]
        found.append((result["indexed"], unguarded["name"], unguarded["classes"][0]["outcome"]))
    assert found == [(1, "unguarded", "loads"), (1, "unguarded", "refused"), (0, "unguarded", "refused")]


def test_an_archive_that_changes_while_it_is_read_is_not_taken_for_what_it_was(sweep, tree, obj, btfs, monkeypatch):
    path = tree / "beta" / "9" / "x86_64" / "4.18.0.btf.tar.xz"
    read = engine.read_btf

    def changing(asked):
        data = read(asked)
        if asked == path:
            packed(path, btfs["new"])
        return data

    monkeypatch.setattr(engine, "read_btf", changing)
    status, out, _ = sweep(obj, "--btf", path, "--jobs", 1)
    assert status == 3
    assert "it is being written" in out


def test_processes_leave_nothing_in_the_cache_but_indexes(sweep, tree, obj, tmp_path):
    sweep(obj, "--btf", tree, "--jobs", 3)
    assert list((tmp_path / "cache" / "tmp").iterdir()) == []
    assert not (tmp_path / "cache" / "blobs").exists()


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)]
)
def test_what_never_ends_is_not_read(sweep, tree, obj, make):
    make(tree / "beta" / "9" / "x86_64" / "4.19.0.btf")
    (tree / "beta" / "9" / "x86_64" / "directory.btf").mkdir()
    status, out, _ = sweep(obj, "--btf", tree)
    assert status == 1
    (said,) = [line for line in out.splitlines() if line.startswith("not judged: ")]
    assert "4.19.0.btf: not a regular file" in said or "4.19.0.btf: cannot be read: Too many" in said
    assert "against 7 BTFs" in out


@pytest.mark.parametrize("interruption", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_sweep_leaves_no_process_and_goes_on_next_time(tmp_path, tree, obj, interruption):
    """Its processes say that they have begun, and never come to an end by themselves."""
    cache, began = tmp_path / "cache", tmp_path / "began"
    began.mkdir()
    words = [sys.executable, "-c", ENDLESS, began, "sweep", obj, "--btf", tree, "--jobs", "2"]
    environment = {**os.environ, "COREMATRIX_CACHE": str(cache), "PYTHONPATH": str(Path(cli.__file__).parents[1])}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        workers = until(lambda: [int(path.name) for path in began.iterdir()], lambda found: len(found) == 2)
        process.send_signal(interruption)
        process.communicate(timeout=60)  # its end is that of the last process that holds the pipes
    assert process.returncode == (-9 if interruption == signal.SIGKILL else 130)
    until(lambda: [pid for pid in workers if runs(pid)], lambda alive: not alive)
    if interruption != signal.SIGKILL:
        assert list((cache / "tmp").iterdir()) == []


def test_large_ones_take_turns_and_are_all_judged(sweep, tree, obj, monkeypatch):
    before = json.loads(sweep(obj, "--btf", tree, "--format", "json", "--jobs", 1)[1])
    monkeypatch.setattr(engine, "_LARGE_ARCHIVE", 0)
    monkeypatch.setenv("COREMATRIX_CACHE", str(tree.with_name("another cache")))
    after = json.loads(sweep(obj, "--btf", tree, "--format", "json", "--jobs", 4)[1])
    assert after["objects"] == before["objects"]
    worker = engine._Worker((), (), tree, None, False)
    worker.turns = guard = multiprocessing.get_context("fork").BoundedSemaphore(2)
    assert worker._turn(next(tree.rglob("*.xz"))) is guard
    monkeypatch.setattr(engine, "_LARGE_ARCHIVE", 2 << 20)
    assert worker._turn(next(tree.rglob("*.xz"))) is not guard


def test_json_is_written_beside_the_text(sweep, tree, obj, tmp_path):
    _, out, _ = sweep(obj, "--btf", tree, "--json", tmp_path / "sweep.json")
    assert "refused" in out
    assert json.loads((tmp_path / "sweep.json").read_text())["type"] == "sweep"
    assert json.loads(sweep(obj, "--btf", tree, "--json", "-")[1])["type"] == "sweep"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "nobody=1"], "no object here has a .rodata variable"),
        (["--set", "x"], "expected VAR=VALUE"),
        (["--rules", "newest"], "not a libbpf version"),
        (["--btf", "nowhere/at-all"], "no such file"),
    ],
)
def test_what_cannot_be_is_refused_by_name(sweep, tree, obj, words, said):
    status, _, err = sweep(obj, "--btf", tree, *words)
    assert status == 2
    assert said in err


def test_no_processes_are_no_number_of_processes(sweep, tree, obj):
    with pytest.raises(SystemExit, match="2"):
        sweep(obj, "--btf", tree, "--jobs", "0")


def test_kernels_that_nobody_has(sweep, obj):
    status, _, err = sweep(obj, "--btf", "debian-0.1-*")
    assert status == 3
    assert "debian-0.1-*" in err
    status, _, err = sweep(obj, "--btf", "debian-6.1-cloud-amd64")  # of the matrix, and not in this cache
    assert status == 2
    assert "corematrix kernels fetch" in err


def test_kernels_that_are_left_out_are_named(monkeypatch, tmp_path):
    """Of a matrix: those that nobody has fetched, and those whose files hold no BTF (s390x's raw payload)."""
    known = {
        name: Kernel(
            spec=KernelSpec(id=name, arch=ARCHITECTURES["s390x"], variant="x", source=MainlineSource(version="v1")),
            release="6.12.0", vmlinuz=None, vmlinuz_sha256="", config=None, modules=(), btf=btf, btf_sha256=None,
        )
        for name, btf in (("with", tmp_path / "btf"), ("without", None))
    }  # fmt: skip
    rows = (*(kernel.spec for kernel in known.values()), replace(known["with"].spec, id="absent"))

    def provide(spec, *_arguments, **_options):
        if spec.id not in known:
            raise FetchError("offline")
        return known[spec.id]

    monkeypatch.setattr(sweep_command.config, "load_matrix", lambda _path: SimpleNamespace(kernels=rows, lock=None))
    monkeypatch.setattr(sweep_command.kernels, "provide", provide)
    found, notes = sweep_command._cached(SimpleNamespace(matrix=None), None, ["*"])
    assert [target.id for target in kernel_targets(found)] == ["with"]
    assert notes == ("not cached: absent (corematrix kernels fetch)", "no BTF in the files of without: left out")


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13, 40])
def test_every_btf_is_one_processs_share_the_largest_first_and_the_last_alone(tmp_path, count):
    targets = []
    for number in range(count):
        path = tmp_path / f"{number}.btf"
        path.write_bytes(bytes(number * 7 % 11))
        targets.append(Target(id=str(number), distro="d", version="1", arch=None, release="1", path=path))
    if targets:
        targets[0].path.unlink()  # it went away meanwhile: its own error, when its turn comes
    shares = engine._chunks(engine._largest_first(targets), 3)
    order = [index for share in shares for index in share]
    assert sorted(order) == list(range(count))
    sizes = [0 if index == 0 else index * 7 % 11 for index in order]
    assert sizes == sorted(sizes, reverse=True)
    assert {len(share) for share in shares} <= {1, 2, 3, 4}
    assert all(len(share) == 1 for share in shares[-min(count, 12) :])
