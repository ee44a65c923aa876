"""`run --cover`: the smallest set of kernels, who stands for the rest, and what is said to stay unproven."""

from __future__ import annotations

import dataclasses
from itertools import combinations
from random import Random

import pytest

from harness.commands import covering
from harness.errors import UsageError
from harness.model.bpf_object import ObjectFile
from harness.model.cover import Cover, Remark, Share, StandIn
from harness.model.plain_json import to_json
from harness.model.result import run_from_json
from harness.report import cover as cover_report
from harness.report.paint import Paint
from harness.store import Store
from harness.sweep.cover import Foretold, cover
from harness.sweep.engine import Job, answers
from harness.sweep.smallest import smallest
from harness.sweep.targets import find_targets
from tests.support.clang import compile_bpf, compile_target
from tests.support.renamed_thing import guarded

PROGRAM = guarded("fentry/%s") + """
SEC("kprobe/%s")
int plain(void *ctx)
{
    return 0;
}
"""
VERIFIER = (
    "struct bpf_func_state { int x; }; struct bpf_verifier_state { int branches; };"
    "enum bpf_func_id { BPF_FUNC_unspec, BPF_FUNC_probe_read = 4, __BPF_FUNC_MAX_ID = 5 };"
)
OLD = "struct thing { long before; int old_name; };"
NEW = "struct thing { int new_name; };"
TARGET = "int attach_here(struct thing *it, int number) { return number; }"
OTHER_TARGET = "int attach_here(struct thing *it, int number, long more) { return number; }"
NAMES = ("struct thing", "struct bpf_func_state", "struct bpf_verifier_state", "enum bpf_func_id")


# -- set cover


@pytest.mark.parametrize("seed", range(200))
def test_the_cover_is_the_smallest_there_is_and_of_those_a_cheap_one(seed):
    chance = Random(seed)
    names = [f"k{number}" for number in range(chance.randint(1, 7))]
    shown = {name: frozenset(chance.sample(range(8), chance.randint(0, 4))) for name in names}
    everything = frozenset[int]().union(*shown.values())
    found = smallest(shown, dict.fromkeys(names, 1.0))
    sizes = (
        size for size in range(len(names) + 1) for some in combinations(names, size)
        if frozenset[int]().union(*(shown[name] for name in some)) == everything
    )  # fmt: skip
    assert frozenset[int]().union(*(shown[name] for name in found.chosen)) == everything
    assert (len(found.chosen), found.minimal, found.at_least) == (next(sizes), True, len(found.chosen))


def test_the_first_of_equal_kernels_is_taken_and_a_cheaper_one_before_it():
    same = {"a": frozenset([1]), "b": frozenset([1]), "c": frozenset([1])}
    assert smallest(same, {"a": 5.0, "b": 5.0, "c": 5.0}).chosen == ("a",)
    assert smallest(same, {"a": 9.0, "b": 5.0, "c": 5.0}).chosen == ("b",)


def test_a_search_that_is_cut_short_says_how_few_could_do():
    # Every pair of 12: greedy and the optimum (11) agree only by search; no two elements are independent of all.
    shown = {f"k{number}": frozenset(pair for pair in combinations(range(12), 2) if number in pair)
             for number in range(12)}  # fmt: skip
    found = smallest(shown, dict.fromkeys(shown, 1.0), most_nodes=3)
    assert not found.minimal
    assert found.at_least == 6  # a perfect matching: six pairs that share nobody
    assert len(found.chosen) == 11
    assert smallest(shown, dict.fromkeys(shown, 1.0)).minimal


# -- kernels from BTF


@pytest.fixture
def foretell(tmp_path):
    """Foretold kernels from C texts: id -> (types, functions)."""

    def make(*, attach="attach_here", arch=None, program=None, **kernels):
        directory = tmp_path / "btf"
        for name, text in kernels.items():
            path = directory / "d" / "1" / "x86_64" / f"{name}.btf"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw(text if "bpf_verifier_state" in text else VERIFIER + text))
        data = compile_bpf(program or PROGRAM % (attach, attach))
        path = tmp_path / "thing.bpf.o"
        path.write_bytes(data)
        job = Job(object=ObjectFile(name="thing", path=path, sha256="0" * 64, size=len(data)))
        targets = find_targets([directory])
        with Store(tmp_path / "cache") as store:
            found = answers([job], targets, store, processes=1, detailed=True)
        return [
            Foretold(
                kernel=targets[one.target].release, distro="d", arch=arch or "x86_64", variant="1",
                release=targets[one.target].release, rules=frozenset(one.rules), cost=1.0,
                answers={"thing": one.answers[0]}, digests={"thing": "0" * 64},
            )
            for one in found
        ]  # fmt: skip

    return make


def raw(text):
    from harness.guest.elf import Elf

    elf = Elf(compile_target(text, *NAMES))
    return bytes(elf.content(elf.section(".BTF")))


def said(found, kernel, kind="unproven"):
    (one,) = [one for one in found.stand_ins if one.kernel == kernel]
    return [(remark.what, remark.prog, remark.text) for remark in getattr(one, kind)]


def test_kernels_of_one_outcome_need_one_boot_and_the_nearest_stands_in(foretell):
    old, new = OLD + TARGET, NEW + TARGET
    kernels = foretell(**{"5.4.0": old, "5.9.0": old, "5.10.0": new, "6.1.0": new})
    found = cover(kernels)
    assert (found.kernels, len(found.booted), found.minimal) == (4, 2, True)
    # Two ways for `guarded`, one for `plain`.
    assert found.outcomes == 3
    by = {one.kernel: [share.kernel for share in one.by] for one in found.stand_ins}
    assert set(by) | set(found.booted) == {"5.4.0", "5.9.0", "5.10.0", "6.1.0"}
    assert len(by) == 2
    for name, (share,) in by.items():
        assert share in found.booted
        assert {name, share} in ({"5.4.0", "5.9.0"}, {"5.10.0", "6.1.0"})


def test_of_booted_kernels_that_show_the_same_the_nearest_stands_in(foretell):
    """`plain` is the same everywhere. First counts the architecture, then the verifier, the release, the variant."""
    third = "struct thing { int third_name; };" + TARGET
    kernels = foretell(**{"5.4.0": OLD + TARGET, "5.18.0": third, "6.1.0": NEW + TARGET})
    first, other, second = kernels
    near = dataclasses.replace

    def shown_by(**changes):
        one = near(other, bootable=False, **changes)
        (found,) = cover([first, one, second]).stand_ins
        assert found.uncovered == ("guarded",)
        ((share,),) = [found.by]
        assert share.progs == ("plain",)
        return share.kernel

    assert shown_by() == "5.4.0"
    assert shown_by(release="6.0.0") == "6.1.0"
    assert shown_by(release="5.18.0", rules=first.rules ^ {"range_branches"}) == "5.4.0"
    second = near(second, rules=first.rules ^ {"range_branches"})
    assert shown_by(release="6.0.0") == "5.4.0"
    assert shown_by(release="6.0.0", rules=second.rules) == "6.1.0"
    assert shown_by(release="5.18.0", rules=second.rules) == "6.1.0"
    second = near(second, arch="arm64")
    assert shown_by(release="6.0.0", rules=second.rules) == "5.4.0"
    assert shown_by(release="5.4.0", arch="arm64") == "6.1.0"
    second = near(first, kernel="6.1.0", variant="cloud", answers=second.answers)
    assert shown_by(variant="cloud") == "6.1.0"
    assert shown_by(variant="1") == "5.4.0"


def test_a_signature_that_changed_is_unproven_and_one_that_did_not_is_checked(foretell):
    found = cover(foretell(**{"5.4.0": NEW + TARGET, "5.9.0": NEW + TARGET, "6.1.0": NEW + OTHER_TARGET}))
    (booted,) = found.booted
    assert booted == "5.4.0"
    same = "attach target attach_here: there, with the same signature int (struct thing *, int)"
    assert ("attach", "guarded", same) in said(found, "5.9.0", "checked")
    changed = "attach target attach_here: int (struct thing *, int, long); on 5.4.0: int (struct thing *, int)"
    assert ("attach", "guarded", changed) in said(found, "6.1.0")
    assert not said(found, "6.1.0", "checked")
    assert ("helpers", "guarded") in [row[:2] for row in said(found, "5.9.0")]
    assert any(what == "verifier" and "5.4.0" in text for what, _, text in said(found, "5.9.0"))


def test_a_function_that_is_missing_is_another_outcome_where_btf_decides_it_and_unproven_where_not(foretell):
    without = "int something_else(int x) { return x; }"
    found = cover(foretell(**{"5.4.0": NEW + TARGET, "6.1.0": NEW + without}))
    assert found.booted == ("5.4.0", "6.1.0")  # fentry is refused there
    assert found.stand_ins == ()


BRANCHES = """
struct thing { int old_name; } PAI;
struct thing___new { int new_name; } PAI;
SEC("kprobe/x")
int decided(void *ctx)
{
    int value = 1;
    if (field_info(((struct thing___new *)0)->new_name, EXISTS) > 1)
        %s;
    return value;
}
"""


@pytest.mark.parametrize(
    ("dead", "what"),
    [
        ("value = field_info(((struct thing *)0)->old_name, BYTE_OFF)", "relocations"),
        ("value = ((long (*)(void))4)()", "helpers"),
    ],
)
def test_what_only_another_verifier_reaches_is_another_outcome(foretell, dead, what):
    """Both load, and every relocation comes to the same; but one verifier walks a branch that the other decides."""
    types = "struct thing { int new_name; int old_name; };"
    older = VERIFIER.replace("int branches", "int x") + types
    kernels = foretell(program=BRANCHES % dead, **{"4.18.0": older, "5.4.0": types})
    fates = [one.answers["thing"].progs["decided"].key for one in kernels]
    details = [one.detail("thing").progs["decided"] for one in kernels]
    assert fates[0] == fates[1]
    assert getattr(details[0], what) != getattr(details[1], what)
    assert cover(kernels).booted == ("4.18.0", "5.4.0")


def test_of_an_object_that_is_refused_as_a_whole_no_liveness_is_foretold(foretell, monkeypatch):
    """Two candidates with the field at different offsets: the relocation is fatal, and no instruction is walked."""
    monkeypatch.setitem(globals(), "NAMES", (*NAMES, "struct thing___b"))
    two = "struct thing { int old_name; }; struct thing___b { long x; int old_name; };" + TARGET
    (one,) = foretell(**{"5.4.0": two})
    answer = one.answers["thing"]
    assert {fate.outcome for fate in answer.progs.values()} == {"refused"}
    details = one.detail("thing").progs
    assert {liveness for _, liveness in details["guarded"].relocations} == {"unknown"}
    assert (details["plain"].relocations, details["guarded"].helpers) == ((), ())


def test_other_bytes_are_another_object(foretell):
    one, other = foretell(**{"5.4.0": OLD + TARGET, "5.9.0": OLD + TARGET})
    assert cover([one, other]).booted == ("5.4.0",)
    rebuilt = dataclasses.replace(other, digests={"thing": "1" * 64})
    assert cover([one, rebuilt]).booted == ("5.4.0", "5.9.0")


def test_an_outcome_that_no_bootable_kernel_shows_is_said(foretell):
    kernels = foretell(**{"5.4.0": NEW + TARGET, "6.1.0": OLD + TARGET})
    here, elsewhere = kernels
    object.__setattr__(elsewhere, "bootable", False)
    found = cover([here, elsewhere])
    (one,) = found.stand_ins
    assert (found.booted, one.bootable, one.uncovered) == (("5.4.0",), False, ("guarded",))
    assert [(share.kernel, share.progs) for share in one.by] == [("5.4.0", ("plain",))]
    text = "\n".join(cover_report.terminal(found, Paint(), verbose=False))
    assert "of which only BTF is at hand" in text
    assert (found.outcomes, found.unshown) == (2, 1)
    assert "shown by no kernel that can be booted: thing/guarded" in text


def test_a_kernel_whose_boot_would_show_nothing_of_an_object_stands_for_none(foretell):
    """It has no configuration, say, and the object reads it: whatever is foretold of it there, another has to show."""
    first, second, third = foretell(**{"5.4.0": OLD + TARGET, "6.1.0": NEW + TARGET, "6.2.0": NEW + TARGET})
    assert cover([first, second, third]).booted == ("5.4.0", "6.1.0")
    silent = dataclasses.replace(second, silent=frozenset({"thing"}))
    found = cover([first, silent, third])
    assert found.booted == ("5.4.0", "6.2.0")
    (one,) = found.stand_ins
    assert (one.kernel, [share.kernel for share in one.by], one.uncovered) == ("6.1.0", ["6.2.0"], ())
    found = cover([first, silent])
    (one,) = found.stand_ins
    assert (found.booted, one.uncovered, found.unshown) == (("5.4.0",), ("guarded",), 1)


def test_what_a_rule_takes_out_is_neither_shown_nor_looked_for(foretell):
    first, second = foretell(**{"5.4.0": OLD + TARGET, "6.1.0": NEW + TARGET})
    without = dataclasses.replace(second, left_out={"thing": frozenset({"guarded"})})
    found = cover([first, without])
    (one,) = found.stand_ins
    assert (found.booted, found.outcomes, one.uncovered) == (("5.4.0",), 2, ())
    assert [share.progs for share in one.by] == [("plain",)]
    nothing = dataclasses.replace(second, left_out={"thing": frozenset({"guarded", "plain"})})
    found = cover([first, nothing])
    assert (found.booted, found.stand_ins, found.unshown) == (("5.4.0",), (), 0)


def test_values_that_are_not_known_are_one_line():
    def remark(name, value="not known"):
        return Remark(what="config", text=f"{name} is {value}, 250 on booted-here")

    one = StandIn(
        kernel="alien", distro="d", arch="x86_64", release="4.19", object="thing",
        by=(Share(kernel="booted-here", progs=("plain",)),), bootable=False,
        unproven=(*(remark(f"CONFIG_{number}") for number in range(9)), remark("CONFIG_HZ", "100")),
    )  # fmt: skip
    found = Cover(kernels=2, outcomes=1, booted=("booted-here",), minimal=True, at_least=1, stand_ins=(one,))
    text = [line.strip() for line in cover_report.terminal(found, Paint(columns=300), verbose=False)]
    assert [line for line in text if "configuration" in line] == [
        "unproven: configuration: CONFIG_HZ is 100, 250 on booted-here (thing)",
        ("unproven: configuration: known of booted-here, not of this one:"
        " CONFIG_0, CONFIG_1, CONFIG_2, CONFIG_3 and 5 more (thing)"),
    ]
    assert "CONFIG_8 is not known" in "\n".join(cover_report.terminal(found, Paint(columns=300), verbose=True))


def test_reports_hold_the_cover_and_read_it_back(foretell):
    found = cover(foretell(**{"5.4.0": NEW + TARGET, "6.1.0": NEW + OTHER_TARGET}), ["old"], ["old: no BTF"])
    assert found.booted == ("5.4.0", "old")
    run = {"schema": 1, "tool": {}, "host": {}, "started": "", "seconds": 0, "cells": [], "cover": to_json(found)}
    assert run_from_json(run).cover == found
    text = "\n".join(cover_report.terminal(found, Paint(columns=200), verbose=True))
    assert "2 of 3 kernels booted, 1 not" in text
    assert "attach target attach_here" in text
    assert "old: no BTF" in text
    assert "attach\\_here" in cover_report.markdown_section(found)


# -- the command


@pytest.mark.parametrize(
    ("words", "said"), [({"cover_btf": ["x"]}, "--cover-btf"), ({"cover": True, "shard": (1, 2)}, "--shard")]
)
def test_options_that_do_not_go_together(words, said):
    import argparse

    options = argparse.Namespace(**{"cover": False, "cover_btf": [], "shard": None, **words})
    with pytest.raises(UsageError, match=said):
        covering.check(options)
