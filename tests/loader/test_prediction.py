"""Prediction held against this kernel: random programs, and every object of this repository, really loaded."""

from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path

import pytest

from harness import judge
from harness.guest import btf
from harness.guest.syscall import ProgLoad
from harness.model.cell import CellId
from harness.model.expectation import NONE
from harness.model.result import CellResult, KernelResult, ObjectResult
from harness.predict import helpers
from harness.predict.compare import compare
from harness.predict.final import Func, Program
from harness.predict.kernels import model_from
from harness.predict.machine import predict
from harness.predict.models import Model
from tests.support.objects import OBJECTS, PROGRAMS, compile_object
from tests.support.random_programs import RandomProgram
from tests.support.this_kernel import facts_of, machine

SOURCES = sorted([*PROGRAMS.glob("*.bpf.c"), *OBJECTS.glob("*.bpf.c")], key=lambda path: path.name)
_SOCKET_FILTER, _LEVEL, _LOG = 1, 2, (1 << 24) - 1
_MANY = 150


def model() -> Model:
    machine()
    return model_from(btf.load("/sys/kernel/btf/vmlinux"))


def test_helpers_are_those_of_the_kernels_own_enum() -> None:
    machine()
    kernel = btf.load("/sys/kernel/btf/vmlinux")
    id_ = kernel.find("bpf_func_id", btf.BTF_KIND_ENUM)
    assert id_ is not None
    number = {name.removeprefix("BPF_FUNC_"): value for name, value in kernel.enumerators(kernel.type(id_))}
    names = """map_lookup_elem sk_lookup_tcp sk_lookup_udp sk_fullsock tcp_sock get_listener_sock skc_lookup_tcp
        sk_storage_get ringbuf_reserve skc_to_tcp6_sock skc_to_tcp_sock skc_to_tcp_timewait_sock skc_to_tcp_request_sock
        skc_to_udp6_sock inode_storage_get per_cpu_ptr task_storage_get sock_from_file skc_to_unix_sock kptr_xchg
        map_lookup_percpu_elem skc_to_mptcp_sock dynptr_data cgrp_storage_get"""
    assert {number[name] for name in names.split()} == helpers.RETURNS_POINTER
    callbacks = ("for_each_map_elem", "find_vma", "loop", "user_ringbuf_drain")
    assert {number[name] for name in callbacks} == set(helpers.CALLBACK_CONTEXT)
    maps = "map_lookup_elem map_update_elem map_delete_elem map_push_elem map_pop_elem map_peek_elem map_lookup_percpu_elem"
    assert {number[name] for name in maps.split()} == set(helpers.MAP_ARGUMENTS)


def walked(random: RandomProgram) -> set[int]:
    """The instructions this kernel's verifier visited, by its own complete log."""
    bpf = machine().bpf
    os.close(bpf.prog_load(ProgLoad(_SOCKET_FILTER, random.code, b"GPL"), _LEVEL, _LOG))
    return {int(number) for number in re.findall(rb"^(\d+): \(", bpf.log_buffer().text(), re.MULTILINE)}


def foretold(random: RandomProgram, of: Model) -> frozenset[int]:
    funcs = tuple(Func(name=f"f{start}", start=start, insns=0, is_global=False) for start in random.starts)
    found = predict(Program(name="random", code=random.code, funcs=funcs), of)
    assert found.complete
    return found.visited


def test_constants_branches_stack_and_subprograms_exactly_as_this_kernel() -> None:
    of, dead = model(), 0
    for seed in range(_MANY):
        random = RandomProgram(seed, ranges=False)
        real = walked(random)
        assert foretold(random, of) == real, f"seed {seed}"
        dead += len(random.insns) - len(real)
    assert dead > _MANY, "these programs have nothing to eliminate"


def test_with_random_numbers_nothing_that_this_kernel_reaches_is_called_dead() -> None:
    of, more, count = model(), 0, 0
    for seed in range(_MANY):
        random = RandomProgram(seed)
        real, said = walked(random), foretold(random, of)
        assert real <= said, f"seed {seed}: {sorted(real - said)}"
        more += len(said - real)
        count += len(random.insns)
    # Known bits (tnum) are not followed, ranges are: now and then something dead is taken for live.
    assert more < count // 50


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.name.removesuffix(".bpf.c"))
def test_no_disagreement_on_any_object(source: Path, tmp_path: Path) -> None:
    of = model()
    path = compile_object(source, tmp_path / (source.name[:-2] + ".o"), "-D__TARGET_ARCH_x86")
    name = source.name.removesuffix(".bpf.c")
    facts = facts_of(path.read_bytes(), name=f"{name}.bpf.o")
    begun = CellResult.begin(
        CellId(kernel="this", object=name), KernelResult(id="this", arch="x86_64"),
        ObjectResult(name=name, path=str(path), sha256=""),
    )  # fmt: skip
    result = judge.classify(facts, begun, NONE, today=date(2026, 7, 1))
    found = compare(result, facts, path.read_bytes(), of)
    assert found["disagreements"] == []
    assert found["reason"] is None or result.object_error
