"""Load in real guests: a program at the verifier's limit, a thousand programs in an object, five hundred objects in a
run, objects of 20 MB. Nothing is lost, the kernel's own words are there, and the host process stays small.

`python -m tests.vm.test_load` prints the figures docs/reliability.md states.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.objects import OBJECTS, PROGRAMS, compile_object

pytestmark = [pytest.mark.vm, pytest.mark.ondemand]

ROOT = Path(__file__).resolve().parents[2]
KERNEL = "debian-6.1-cloud-amd64"
# kernel/bpf/verifier.c: BPF_COMPLEXITY_LIMIT_INSNS
LIMIT = 1_000_000
# The least that `corematrix run` takes is some 60 MiB; a copy too many of a 20 MB object, or of five hundred answers,
# would show.
MOST_MIB = 250


class Done:
    """A run over `place`: its cells, the most memory its process had (MiB; its guests are children of its own and
    counted apart), seconds.
    """

    def __init__(self, place: Path, *words: str) -> None:
        output = place / "result.json"
        command = [sys.executable, "-m", "tests.support.own_memory", "run", str(place), "--output", str(place / "runs"),
                   "--json", str(output), "--quiet", *words]  # fmt: skip
        started = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        self.seconds = time.monotonic() - started
        assert done.returncode in (0, 1), done.stderr
        self.mib = int(done.stderr.rpartition("VmHWM ")[2]) // 1024
        self.cells: list[dict[str, Any]] = json.loads(output.read_text())["cells"]
        (self.directory,) = (path for path in (place / "runs").iterdir())

    def __str__(self) -> str:
        return f"{len(self.cells)} cells, {self.mib} MiB, {self.seconds:.0f} s"


def at_the_limit(place: Path, kernel: str) -> Done:
    compile_object(OBJECTS / "instruction_limit.bpf.c", place / "instruction_limit.bpf.o")
    settings = {"settings": [{"rounds": 499998}, {"rounds": 499999}]}  # four instructions beside two in each round
    (place / "instruction_limit.yaml").write_text(json.dumps(settings))
    return Done(place, "-k", kernel, "--timeout", "900")


def a_thousand_programs(place: Path) -> Done:
    lines = ['#include "types.h"', "#include <bpf/bpf_helpers.h>", 'char LICENSE[] SEC("license") = "GPL";']
    lines += [f'SEC("raw_tp/sched_process_exec") int p{n:04}(void *ctx) {{ return {n} & 1; }}' for n in range(1000)]
    (place / "thousand.c").write_text("\n".join(lines) + "\n")
    compile_object(place / "thousand.c", place / "thousand.bpf.o")
    return Done(place, "-k", KERNEL, "--timeout", "900")


def five_hundred_objects(place: Path) -> Done:
    compile_object(PROGRAMS / "task_state.bpf.c", place / "o000.bpf.o")
    for number in range(1, 500):
        shutil.copy(place / "o000.bpf.o", place / f"o{number:03}.bpf.o")
    return Done(place, "-k", KERNEL)


def objects_of_twenty_megabytes(place: Path) -> Done:
    compile_object(PROGRAMS / "task_state.bpf.c", place / "o0.bpf.o")
    data = (place / "o0.bpf.o").read_bytes()
    for number in range(4):
        (place / f"o{number}.bpf.o").write_bytes(data + bytes([number]) * (20 << 20))
    return Done(place, "-k", KERNEL)


@pytest.mark.parametrize("kernel", ["debian-5.10-cloud-amd64", KERNEL, "debian-7.2-cloud-amd64"])
def test_a_program_at_the_limit_of_a_million_instructions(kernel: str, tmp_path: Path) -> None:
    """The last that is accepted, and the first that is not, which must say so although its log is far too long."""
    done = at_the_limit(tmp_path, kernel)
    just, over = (cell["progs"][0] for cell in done.cells)
    assert (just["verdict"], just["verifier"]["processed_insns"]) == ("loaded", LIMIT)
    assert (over["verdict"], over["stage"], over["errno"]) == ("rejected", "verifier", 7)  # E2BIG
    assert over["verifier"]["processed_insns"] == LIMIT + 1
    assert f"BPF program is too large. Processed {LIMIT + 1} insn" in over["verifier"]["log_excerpt"]
    log = (done.directory / over["verifier"]["log"]).read_text()
    assert f"BPF program is too large. Processed {LIMIT + 1} insn" in log
    assert len(log) <= 2 << 20
    assert done.mib < MOST_MIB


def test_a_thousand_programs_in_one_object(tmp_path: Path) -> None:
    done = a_thousand_programs(tmp_path)
    (cell,) = done.cells
    assert [prog["name"] for prog in cell["progs"]] == [f"p{number:04}" for number in range(1000)]
    assert {prog["verdict"] for prog in cell["progs"]} == {"loaded"}
    assert done.mib < MOST_MIB


def test_five_hundred_objects_in_one_run(tmp_path: Path) -> None:
    done = five_hundred_objects(tmp_path)
    assert [cell["object"]["name"] for cell in done.cells] == [f"o{number:03}" for number in range(500)]
    assert {cell["status"] for cell in done.cells} == {"passed"}
    assert len(list((done.directory / "cells").rglob("*.json"))) == 500
    assert done.mib < MOST_MIB


def test_objects_of_twenty_megabytes(tmp_path: Path) -> None:
    done = objects_of_twenty_megabytes(tmp_path)
    assert [cell["status"] for cell in done.cells] == ["passed"] * 4
    assert len({cell["object"]["sha256"] for cell in done.cells}) == 4
    assert done.mib < MOST_MIB


FIGURES: Mapping[str, Callable[[Path], Done]] = {
    "at the limit": lambda place: at_the_limit(place, KERNEL),
    "a thousand programs": a_thousand_programs,
    "objects of 20 MB": objects_of_twenty_megabytes,
    "five hundred objects": five_hundred_objects,
}


def main(words: list[str]) -> None:
    for name in words or FIGURES:
        with tempfile.TemporaryDirectory() as directory:
            sys.stdout.write(f"{name}: {FIGURES[name](Path(directory))}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    main(sys.argv[1:])
