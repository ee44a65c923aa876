"""Kernel against kernel, and what a field has become: BTF by clang, the suggested C compiled by clang and relocated."""

from __future__ import annotations

import dataclasses
import json
import re
import tarfile
import tempfile
from pathlib import Path

import pytest

from harness.commands import diff as diff_command
from harness.errors import UsageError
from harness.guest.bpf_object import BpfObject
from harness.guest.btf import Btf, load
from harness.guest.core_relo import Targets, relocate
from harness.model.result import field_of
from harness.report import flavor_code, kernel_diff_format
from harness.report.kernel_diff import compare, history
from harness.report.leads import Lost, lead
from harness.report.renamed import enumerator_successor, type_successor
from harness.report.successor import find_field, successor
from tests.support.clang import compile_bpf, compile_target
from tests.support.facts import begun, evidence, facts, guard, judged, poisoned, prog, relo, run_of

A, B_, ARM = "debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64", "debian-5.10-cloud-arm64"


def btf(types: str, *names: str) -> Btf:
    with tempfile.NamedTemporaryFile(suffix=".o") as file:
        file.write(compile_target(types, *names))
        file.flush()
        return load(file.name)


OLD = """
    struct info { int flags; };
    struct task { struct info info; volatile long state; void *stack; int pid; u64 real_start_time; u64 utime;
                  struct { int a; int moved; }; struct info *parent; unsigned flag : 1; };
"""
NEW = """
    struct info { int flags; };
    struct stats { int moved; };
    struct task { struct info info; unsigned int __state; void *stack; int pid; u64 start_boottime; u64 utime;
                  struct { int a; }; struct stats stats; struct info *real_parent; unsigned other; };
"""


@pytest.mark.parametrize(
    ("path", "found", "reasons"),
    [
        ("state", "__state", {"a similar name (state, __state)", "it stands after info and before stack"}),
        ("moved", "stats.moved", {"the same name", "the same type"}),
        ("parent", "real_parent", {"a similar name (parent, real_parent)", "the same type"}),
        ("real_start_time", "start_boottime", {"the same type", "it stands after pid and before utime"}),
        ("pid", None, set()),  # still there: nothing new is like it
        ("nothing", None, set()),
    ],
)
def test_successors(path: str, found: str | None, reasons: set[str]) -> None:
    suggestion = successor(btf(OLD, "struct task"), btf(NEW, "struct task"), "task", path.split("."))
    if found is None:
        assert suggestion is None or (suggestion.known == ("pid",) and not suggestion.found)
        return
    assert suggestion is not None
    assert ".".join(suggestion.found) == found
    assert reasons <= set(suggestion.reasons)


def test_a_pointer_does_not_become_a_number_and_a_lost_type_nothing() -> None:
    pointer = btf("struct task { int a; void *state; int b; };", "struct task")
    number = btf("struct task { int a; int __state; int b; };", "struct task")
    assert successor(pointer, number, "task", ["state"]) is None
    assert successor(pointer, btf("struct other { int x; };", "struct other"), "task", ["state"]) is None


HEAD = """
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
"""
TYPES = """
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32; typedef unsigned long long __u64;
typedef short __s16; typedef int __s32; typedef long long __s64; typedef __u32 __wsum; typedef __u16 __be16;
typedef __u32 __be32;
enum { BPF_MAP_TYPE_UNSPEC };
"""


def outcomes(data: bytes, target: Btf) -> dict[str, tuple[str, int | None]]:
    run = relocate(BpfObject(data), Targets(target))
    assert run.error is None
    return {f"{relo.kind} {str(relo.local_spec).partition('.')[2].partition(' ')[0]}": (relo.outcome, relo.new_value)
            for relo in run.relos}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "found"),
    [("state", "__state"), ("moved", "stats.moved"), ("parent", "real_parent"), ("real_start_time", "start_boottime")],
)
def test_the_suggested_code_compiles_and_reads_either(path: str, found: str) -> None:
    """clang compiles it without a warning; relocated against each side, one check is 1 and its read resolves."""
    old, new = btf(OLD, "struct task"), btf(NEW, "struct task")
    code = flavor_code.both(old, [path], new, found.split("."), "task")
    assert code is not None
    name = re.search(r"__always_inline [\w ]+[ *](\w+)\(", code)
    assert name is not None
    use = f'SEC("raw_tp/x") int prog(void *ctx) {{ return (long){name[1]}(*(void **)ctx) > 7; }}'
    text = TYPES + HEAD + code + use + '\nchar LICENSE[] SEC("license") = "GPL";'
    data = compile_bpf(text, prelude=False, options=("-Weverything", "-Werror=all", "-Wno-unused-function"))
    for target, there, gone in ((old, path, found), (new, found, path)):
        results = outcomes(data, target)
        assert results[f"field_exists {there}"] == ("resolved", 1)
        assert results[f"field_exists {gone}"] == ("resolved", 0)
        assert results[f"byte_off {there}"][0] == "resolved"
        assert results[f"byte_off {gone}"] == ("poisoned", None)


def test_no_code_where_there_is_no_plain_way() -> None:
    old, new = btf(OLD, "struct task"), btf(NEW, "struct task")
    assert flavor_code.both(old, ["info"], new, ["stats"], "task") is None  # structs
    assert flavor_code.both(old, ["flag"], new, ["other"], "task") is None  # a bitfield
    assert flavor_code.both(old, ["state"], new, ["real_parent"], "task") is None  # a number and a pointer
    evil = btf("struct task { int state; };", "struct task")
    assert flavor_code.both(evil, ["state;\nevil"], evil, ["state"], "task") is None


TYPES_OLD = """
    enum reason { R_NONE, R_READ, R_WRITE, R_MAX };
    enum op { OP_READ, OP_WRITE, OP_FLUSH };
    struct item { int a; int b; int c; };
    union either { int a; long b; };
    typedef struct { int quotient; int rest; } division_t;
    typedef int *where_t;
    struct gone { int x; };
    typedef unsigned long cputime_t;
"""
TYPES_NEW = """
    enum reason { R_NONE, R_READ_KERNEL, R_WRITE, R_MAX };
    enum req_op { OP_READ, OP_WRITE, OP_FLUSH, OP_ZONE };
    struct my_item { int a; int b; int c; int d; };
    union either_of { int a; long b; };
    typedef struct { int quotient; int rest; } division2_t;
    typedef int *where2_t;
    struct quite { int other; };
"""
ALL_OLD = ("enum reason", "enum op", "struct item", "union either", "division_t", "where_t", "struct gone", "cputime_t")
ALL_NEW = ("enum reason", "enum req_op", "struct my_item", "union either_of", "division2_t", "where2_t", "struct quite")


def test_what_types_and_enumerators_have_become() -> None:
    old, new = btf(TYPES_OLD, *ALL_OLD), btf(TYPES_NEW, *ALL_NEW)

    def said(spec: str, has: Btf, lacks: Btf) -> str | None:
        found = lead(Lost(spec=spec, lacks="there"), has, lacks)
        return found.suggestion.text if found else None

    assert said("<enumval_value> [3] enum reason___x::R_READ = 1", old, new) == (
        "reason::R_READ (= 1) is likely reason::R_READ_KERNEL (= 1) there: a similar name (R_READ, R_READ_KERNEL),"
        " it stands after R_NONE and before R_WRITE, the same value"
    )
    assert said("<type_exists> [3] enum op", old, new) == (
        "op (enum, 3 enumerators) is likely req_op (enum, 4 enumerators) there: a similar name (op, req_op),"
        " 3 of 4 members have the same names, the same size"
    )
    text = "item (struct, 12 bytes) is likely my_item (struct, 16 bytes) there: a similar name (item, my_item)"
    assert str(said("<type_size> [3] struct item", old, new)).startswith(text)
    assert str(said("<byte_off> [3] struct item.b (0:1 @ offset 4)", old, new)).startswith(text)
    assert "either_of" in str(said("<type_exists> [3] union either", old, new))
    assert "division2_t" in str(said("<type_exists> [3] typedef division_t", old, new))
    # From the other side the same rename.
    assert "is likely item" in str(said("<type_exists> [3] struct my_item", new, old))
    # Still there; like nothing; of another kind; unknown everywhere.
    assert said("<enumval_value> [3] enum reason::R_WRITE = 2", old, new) is None
    for spec in ("struct gone", "struct reason", "typedef cputime_t", "struct nobody", "int int"):
        assert said(f"<type_exists> [3] {spec}", old, new) is None


@pytest.mark.parametrize(
    ("spec", "use", "checks", "reads"),
    [
        ("<enumval_exists> [3] enum reason::R_READ = 1", "value_of_R_READ()",
         ("enumval_exists R_READ___one", "enumval_exists R_READ_KERNEL___other"),
         ("enumval_value R_READ___one", "enumval_value R_READ_KERNEL___other")),
        ("<enumval_exists> [3] enum op::OP_READ = 0", "which_op()",
         ("type_exists op___one", "type_exists req_op___other"), ()),
        ("<type_exists> [3] struct item", "which_item()",
         ("type_exists item___one", "type_exists my_item___other"), ()),
        ("<type_exists> [3] union either", "which_either()",
         ("type_exists either___one", "type_exists either_of___other"), ()),
        ("<type_exists> [3] typedef division_t", "which_division_t()",
         ("type_exists division_t___one", "type_exists division2_t___other"), ()),
        ("<byte_off> [3] struct item.b (0:1 @ offset 4)", "item_b(ctx)",
         ("field_exists item___with_b.b", "field_exists my_item___with_b.b"),
         ("byte_off item___with_b.b", "byte_off my_item___with_b.b")),
    ],
)  # fmt: skip
def test_the_suggested_code_serves_both_names(
    spec: str, use: str, checks: tuple[str, str], reads: tuple[str, ...]
) -> None:
    """clang compiles it without a warning; relocated against each side, one check is 1 and only its read resolves."""
    old, new = btf(TYPES_OLD, *ALL_OLD), btf(TYPES_NEW, *ALL_NEW)
    found = lead(Lost(spec=spec, lacks="there"), old, new)
    assert found is not None and found.code is not None
    program = f'SEC("raw_tp/x") int prog(void *ctx) {{ return (long){use} > (long)ctx; }}'
    text = TYPES + HEAD + found.code + program + '\nchar LICENSE[] SEC("license") = "GPL";'
    data = compile_bpf(text, prelude=False, options=("-Weverything", "-Werror=all", "-Wno-unused-function"))
    for target, side_ in ((old, 0), (new, 1)):
        run = relocate(BpfObject(data), Targets(target))
        assert run.error is None
        results = {f"{relo.kind} {_said(relo.local_spec)}": (relo.outcome, relo.new_value) for relo in run.relos}
        assert [results[check] for check in checks] == [("resolved", 1 - side_), ("resolved", side_)]
        for number, read in enumerate(reads):
            assert results[read][0] == ("resolved" if number == side_ else "poisoned")


def _said(spec: object) -> str:
    """What is looked for, as people write it; of an enumerator its own name."""
    return field_of(str(spec)).rpartition("::")[2]


def test_no_code_for_a_typedef_of_a_pointer_nor_for_names_that_are_none() -> None:
    old, new = btf(TYPES_OLD, *ALL_OLD), btf(TYPES_NEW, *ALL_NEW)
    assert flavor_code.either_type(old, new, "typedef", "where_t", "where2_t") is None
    assert flavor_code.either_type(old, new, "struct", "item", "x { evil") is None
    assert flavor_code.either_enumerator("reason", "R_READ", "1; evil()") is None


def side(kernel: str, value: int, **more: object):
    relos = [guard(0, "task___old.state", value), (relo if value else poisoned)(1, "task___old.state")]
    found = "<byte_off> [1] struct task.state (0:1 @ offset 8)" if value else None
    relos[1]["target_spec"] = relos[0]["target_spec"] = found
    relos.append(relo(2, "task.pid", target_spec="<byte_off> [1] struct task.pid (0:2 @ offset 9)", new_value=value))
    alive = evidence([[0, 9]]) if value else evidence([[0, 2], [3, 9]])
    cell = begun(kernel, "tool", arch="arm64" if "arm64" in kernel else "x86_64")
    cell = judged(facts([prog(relos=[(0, 1), (1, 2), (2, 3)], evidence=alive)], relos), cell=cell)
    return dataclasses.replace(cell, kernel=dataclasses.replace(cell.kernel, btf_sha256=kernel), **more)


def test_between_kernels_only_what_matters_changes_and_the_rename_is_named() -> None:
    run = run_of(side(A, 1), side(B_, 0))
    btfs = {A: btf(OLD, "struct task"), B_: btf(NEW, "struct task")}
    found = compare(run, A, B_, btfs.get)
    assert [(step.field, step.kind, step.texts[0].split(":")[0]) for step in found.steps] == [
        ("task___old.state", "field_exists", "= 1 -> = 0"),
        ("task___old.state", "byte_off", "resolved, live -> poisoned, eliminated"),
    ]  # task.pid has another offset: no change
    (lead,) = found.leads
    assert lead.lacks == B_ and lead.suggestion.found == ("__state",) and lead.code
    text = kernel_diff_format.render("text", [found])
    assert "suggestion, to be checked: on debian-6.1-cloud-amd64, task.state (volatile long) is likely" in text
    assert json.loads(kernel_diff_format.render("json", [found]))["kernels"][0]["first"] == A
    # The other way round the same rename is found once more, from the other side.
    (back,) = compare(run, B_, A, btfs.get).leads
    assert (back.lacks, back.suggestion.known, back.suggestion.found) == (B_, ("state",), ("__state",))


def test_a_btf_that_is_not_in_the_cache_is_said() -> None:
    found = compare(run_of(side(A, 1), side(B_, 0)), A, B_, {A: btf(OLD, "struct task")}.get)
    assert found.missing == (B_,) and not found.leads and len(found.steps) == 2
    assert "the BTF of debian-6.1-cloud-amd64 is not in the cache" in kernel_diff_format.render("text", [found])


def test_history_compares_neighbours_of_one_architecture() -> None:
    run = run_of(side(A, 1), side(ARM, 1), side(B_, 0), side("debian-7.2-cloud-amd64", 0))
    assert history(run) == [(A, B_), (B_, "debian-7.2-cloud-amd64")]
    assert not compare(run, B_, "debian-7.2-cloud-amd64", {}.get).steps
    with pytest.raises(UsageError, match="no kernel 'x'"):
        compare(run, A, "x", {}.get)


@pytest.mark.parametrize("arguments", [["a"], ["a", "b", "c"], ["--kernels", A, B_, "a", "b"], ["--history", "a", "b"]])
def test_how_many_runs_are_wanted(arguments: list[str], tmp_path: Path) -> None:
    import argparse
    import io

    parser = argparse.ArgumentParser()
    diff_command.add_arguments(parser)
    with pytest.raises(UsageError, match="wanted"):
        diff_command.run(parser.parse_args(arguments), io.StringIO(), io.StringIO())


# Renames of the kernel's history between 4.19 and today, by their commits.
HISTORY = [
    ("task_struct", "real_start_time", "start_boottime"),  # 5.5, cf25e24db61c
    ("mm_struct", "mmap_sem", "mmap_lock"),  # 5.8, da1c55f1b272
    ("task_struct", "state", "__state"),  # 5.14, 2f064a59a11f
    ("kernfs_node", "parent", "__parent"),  # 6.15, 633488947ef6
    ("task_struct", "addr_limit", None),  # gone for good
    ("request", "rq_disk", None),  # gone in 5.17: the disk is found through its queue
]


@pytest.fixture(scope="module")
def btf_4_19(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Btf:
    archive = next(shared.glob("btf/bclinux/21.10U3/x86_64/4.19.90-*.btf.tar.xz"), None)
    if archive is None:
        pytest.skip(f"no BTF of 4.19 below {shared}/btf")
    directory = tmp_path_factory.mktemp("btf")
    with tarfile.open(archive) as tar:
        tar.extractall(directory, filter="data")
    return load(str(next(directory.glob("*.btf"))))


@pytest.mark.parametrize(("root", "path", "found"), HISTORY)
def test_renames_of_the_kernels_history(btf_4_19: Btf, root: str, path: str, found: str | None) -> None:
    here = Path("/sys/kernel/btf/vmlinux")
    today = load(str(here)) if here.exists() else None
    if today is None or find_field(today, "kernfs_node", ["__parent"]) is None:
        pytest.skip("this kernel has no BTF, or is older than 6.15")
    suggestion = successor(btf_4_19, today, root, [path])
    assert (suggestion.found if suggestion else None) == ((found,) if found else None)


# (keyword, name) or (enum, enumerator)
TYPE_HISTORY = [
    ("struct", "compat_timespec", "old_timespec32"),  # 5.0, 9afc5eee65ca
    ("struct", "compat_timeval", "old_timeval32"),  # 5.0, 9afc5eee65ca
    ("union", "tcp_md5_addr", "tcp_ao_addr"),  # 6.7, c845f5f3590e
    ("node_stat_item", "NR_SLAB_RECLAIMABLE", "NR_SLAB_RECLAIMABLE_B"),  # 5.9, d42f3245c7e2
    ("ttu_flags", "TTU_IGNORE_HWPOISON", "TTU_HWPOISON"),  # 6.3, 6da6b1d4a7df
    ("struct", "zone_reclaim_stat", None),  # gone in 5.8
    ("struct", "hd_struct", None),  # gone in 5.11: struct block_device took over
    ("node_stat_item", "NR_UNSTABLE_NFS", None),  # gone in 5.8
]


@pytest.mark.parametrize(("what", "name", "found"), TYPE_HISTORY)
def test_renamed_types_and_enumerators_of_the_kernels_history(
    btf_4_19: Btf, what: str, name: str, found: str | None
) -> None:
    here = Path("/sys/kernel/btf/vmlinux")
    today = load(str(here)) if here.exists() else None
    if today is None or find_field(today, "kernfs_node", ["__parent"]) is None:
        pytest.skip("this kernel has no BTF, or is older than 6.15")
    ask = type_successor if what in {"struct", "union"} else enumerator_successor
    suggestion = ask(btf_4_19, today, what, name)
    assert (suggestion.found if suggestion else None) == ((found,) if found else None)
