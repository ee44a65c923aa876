"""How long until a verdict: the floor, a cold cell, a restored cell, virtme-ng; side by side in one run, ratios
first. `bench_runs.py` measures whole runs.

    python -m tests.bench.bench_boot [--kernel ID] [--object FILE] [--rounds N] [--virtme]

Rounds are interleaved, so that a busy machine is busy for all; the least of each is compared. `cpu` is what QEMU used
of the host's processors (user + system), which a busy machine bends less than the clock; virtme-ng's QEMU is no child
of ours and is not counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from harness import boot
from harness.backends import virtme_ng
from harness.image import cpio
from harness.model.kernel import Kernel
from harness.session import JudgeRequest, Session
from harness.vm import devices, qemu
from tests.support import guests

_INIT = b"#!/bin/busybox sh\n/bin/busybox uname -a\n/bin/busybox poweroff -f\n"


def main(words: list[str], out: TextIO) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", default="debian-6.1-cloud-amd64")
    parser.add_argument("--object", type=Path, default=Path("programs/build/task_state.bpf.o"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--virtme", action="store_true", help="also the same cell under virtme-ng (a kernel with 9p)")
    chosen = parser.parse_args(words)
    kernel = guests.kernel(chosen.kernel)
    data = chosen.object.read_bytes()
    runs: dict[str, Callable[[], None]] = {
        "(a) floor: QEMU's defaults, busybox": lambda: plain_floor(kernel),
        "(a') floor: our machine, busybox": lambda: our_floor(kernel),
        "(b) cold cell": lambda: cell(kernel, data, cold=True),
        "(c) restored cell": lambda: cell(kernel, data, cold=False),
    }
    if chosen.virtme:
        runs["(d) the same cell, virtme-ng --disable-kvm"] = lambda: virtme(kernel, data)
    cell(kernel, data, cold=False)  # boots and saves, if nobody has
    report(measured(runs, chosen.rounds), out)
    return 0


def measured(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, cpu) seconds of each round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            cpu, wall = _children_cpu(), time.monotonic()
            run()
            times[name].append((time.monotonic() - wall, _children_cpu() - cpu))
    return times


def report(times: dict[str, list[tuple[float, float]]], out: TextIO) -> None:
    floor_wall, floor_cpu = (min(column) for column in zip(*next(iter(times.values())), strict=True))
    heads = ("x (a) wall", "x (a) cpu", "wall s", "cpu s")
    out.write(f"{'':38}{''.join(f'{head:>11}' for head in heads)}   load {os.getloadavg()[0]:.1f}\n")
    for name, rows in times.items():
        wall, cpu = (min(column) for column in zip(*rows, strict=True))
        out.write(f"{name:38}{wall / floor_wall:11.2f}{cpu / floor_cpu:11.2f}{wall:11.2f}{cpu:11.2f}\n")


def busybox_initramfs() -> bytes:
    binary = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
    return cpio.archive({
        "bin/busybox": cpio.file(binary, executable=True),
        "init": cpio.file(_INIT, executable=True),
        "dev/console": cpio.character_device(5, 1),
    })  # fmt: skip


def plain_floor(kernel: Kernel) -> None:
    """The command a careful person would type."""
    arch = kernel.spec.arch
    machine = {"x86_64": ["-M", "q35", "-cpu", "max"]}.get(arch.name, ["-M", "virt", "-cpu", "cortex-a57"])
    with tempfile.NamedTemporaryFile() as image:
        image.write(busybox_initramfs())
        image.flush()
        command = [
            qemu.binary(arch), *machine, "-accel", "tcg", "-smp", "2", "-m", "256", "-nodefaults", "-no-reboot",
            "-display", "none", "-serial", "stdio", "-kernel", str(kernel.vmlinuz), "-initrd", image.name,
            "-append", f"console={arch.console} panic=-1 quiet",
        ]  # fmt: skip
        _run_floor(command)


def our_floor(kernel: Kernel) -> None:
    """Our own machine and kernel arguments, without Python, ports and BTF."""
    recipe = _recipe(kernel)
    arch = kernel.spec.arch
    with ExitStack() as stack:
        path, descriptor = boot._kernel_file(recipe, stack)
        image = stack.enter_context(boot._memory_file("initramfs", busybox_initramfs()))
        firmware = qemu.firmware(arch.firmware) if arch.firmware else None
        parts: list[devices.Device] = [
            *([devices.Firmware(path=firmware)] if firmware else []),
            devices.Machine(arch=arch, cpu=recipe.cpu, cpus=boot.CPUS, accelerator="tcg"),
            devices.Memory(megabytes=kernel.spec.memory_mb),
            devices.DirectBoot(kernel=path, kernel_descriptor=descriptor, initramfs=image),
            devices.KernelArgs(words=(f"console={arch.console}", "quiet", *boot._kernel_args(recipe))),
        ]
        inherited = [number for part in parts for number in part.descriptors()]
        _run_floor([*qemu.command(recipe.qemu, parts), "-serial", "stdio"], inherited)


def _run_floor(command: list[str], inherited: list[int] | None = None) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=300, pass_fds=inherited or []
    )
    assert b"Linux" in done.stdout, done.stdout[-2000:]


def cell(kernel: Kernel, data: bytes, *, cold: bool) -> None:
    with Session(kernel, guests.options(kernel, cold=cold)) as session:
        facts = session.judge(JudgeRequest(name="bench"), data, lambda _message: None)
        assert session.provenance.start == ("cold" if cold else "restored")
    assert facts["progs"], facts


def virtme(kernel: Kernel, data: bytes) -> None:
    """Our own backend: vng boots, our loader answers, the same facts."""
    with virtme_ng.open_session(kernel, guests.options(kernel)) as session:
        facts = session.judge(JudgeRequest(name="bench"), data, lambda _message: None)
    assert facts["progs"], facts


def _recipe(kernel: Kernel) -> boot.Recipe:
    options = guests.options(kernel)
    return boot.Recipe(kernel=kernel, packages=options.packages, store=options.store, accelerator="tcg")


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout))
