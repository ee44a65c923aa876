"""Generated pairs of local and target types through libbpf and through our engine: every decision and instruction is
the same.

A seed that fails is written to seeds.txt beside this file, and the seeds there always run. CORE_SEEDS=START:END runs
others.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from harness.guest.bpf_object import BpfObject
from harness.guest.core_relo import CoreRun, Rules, Targets, relocate
from tests.support.agreement import difference, read_btf
from tests.support.c_types import Generator
from tests.support.clang import CompileError, compile_bpf, compile_target
from tests.support.libbpf_judge import judge, libbpf_version

PAIRS = 60
KEPT = Path(__file__).with_name("seeds.txt")


def _seeds() -> list[int]:
    start, _, end = os.environ.get("CORE_SEEDS", "0:10").partition(":")
    kept = [int(word) for word in KEPT.read_text().split()] if KEPT.exists() else []
    return sorted({*kept, *range(int(start), int(end))})


def _keep(seed: int) -> None:
    known = KEPT.read_text().split() if KEPT.exists() else []
    if str(seed) not in known:
        KEPT.write_text("\n".join([*known, str(seed)]) + "\n")


def _both(data: bytes, target: bytes, skip: set[str]) -> tuple[CoreRun, list[str]]:
    judged = judge(data, target=target, skip=skip)
    obj = BpfObject(data)
    for prog in obj.progs:
        prog.autoload = prog.name not in skip
    run = relocate(obj, Targets(read_btf(target)), Rules(libbpf_version()))
    return run, difference(obj, run, judged, skip)


def _compile(generator: Generator) -> tuple[bytes, bytes]:
    while True:
        local, types, names = generator.sources()
        try:
            return compile_bpf(local), compile_target(types, *names)
        except CompileError as error:
            refused = re.search(r'on function "prog(\d+)"', str(error))
            if refused is None or "Unsupported field expression" not in str(error):
                raise
            generator.drop_fields(int(refused[1]))


@pytest.mark.parametrize("seed", _seeds())
def test_generated_types(seed: int) -> None:
    """A fatal relocation ends an object, so its program is left out and the rest goes on; that is compared as well."""
    data, target = _compile(Generator(seed, PAIRS))
    skip: set[str] = set()
    outcomes: set[str] = set()
    total = 0
    while True:
        run, differences = _both(data, target, skip)
        if differences:
            _keep(seed)
        assert not differences, f"seed {seed}, without {sorted(skip)}:\n" + "\n".join(differences[:10])
        outcomes |= {relo.outcome for relo in run.relos}
        total = max(total, len(run.relos))
        if run.error is None:
            break
        skip.add(run.relos[-1].prog.name)
    assert total > PAIRS, "the generator makes too few relocations"
    assert {"resolved", "poisoned"} <= outcomes
