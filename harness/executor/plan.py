"""What to run: cells grouped by kernel, and the limits of this host. Pure but for `host_*`, which ask the machine
once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from harness.model.cell import Cell
from harness.model.kernel import KernelSpec

# What QEMU itself and its translation buffer cost beside the guest's memory: 90-140 MB resident measured for a 256 MB
# TCG guest.
QEMU_OVERHEAD_MB = 160


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`jobs` guests at a time and `memory_mb` for all of them together, QEMU included."""

    jobs: int
    memory_mb: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cells in report order, and how to go about them.

    `retries` is how often a cell whose guest was lost is tried again; `isolate` gives every cell a guest of its own.
    """

    cells: tuple[Cell, ...]
    limits: Limits
    retries: int = 1
    isolate: bool = False


def by_kernel(cells: Iterable[Cell]) -> list[tuple[KernelSpec, list[Cell]]]:
    """Cells grouped by kernel, both in the order of first appearance."""
    groups: dict[str, tuple[KernelSpec, list[Cell]]] = {}
    for cell in cells:
        groups.setdefault(cell.kernel.id, (cell.kernel, []))[1].append(cell)
    return list(groups.values())


def guest_cost_mb(kernel: KernelSpec) -> int:
    """Host memory to set aside for one guest of this kernel."""
    return kernel.memory_mb + QEMU_OVERHEAD_MB


def host_limits(jobs: int | None = None) -> Limits:
    """As many guests as this process may use cores, in at most three quarters of the memory that is available now."""
    return Limits(jobs=jobs or max(1, len(os.sched_getaffinity(0))), memory_mb=max(1, available_memory_mb() * 3 // 4))


_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")


def available_memory_mb(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """MemAvailable of proc(5), or the cgroup's memory.max when that is less; 1024 where neither can be read."""
    return _memory_mb("MemAvailable", meminfo, cgroup)


def total_memory_mb(meminfo: Path = _MEMINFO, cgroup: Path = _CGROUP) -> int:
    """Likewise, of MemTotal: what there is when nobody else wants it."""
    return _memory_mb("MemTotal", meminfo, cgroup)


def _memory_mb(name: str, meminfo: Path, cgroup: Path) -> int:
    readings: list[int] = []
    with suppress(OSError, KeyError, ValueError, IndexError):
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        readings.append(int(lines[name].split()[0]) // 1024)
    with suppress(OSError, ValueError):  # no cgroup v2 here, or "max"
        readings.append(int(cgroup.read_text()) // 2**20)
    return min(readings, default=1024)
