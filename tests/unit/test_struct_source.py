"""The switches a declaration stands under: on text written for it, and (where linux-source-6.1 lies about) on the
members that Debian's own kernels differ in.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.kernels.struct_source import Condition, StructSource

HEADER = """\
/* struct task { int not_here; }; */
#ifndef _TASK_H
#define _TASK_H
struct task;
struct task *find_task(int pid);
struct task {
	int pid; // plain
#ifdef CONFIG_NUMA
	int numa_scan,
		numa_period;
	struct list numa[2];
# if IS_ENABLED(CONFIG_DEBUG) && !defined(CONFIG_SMALL)
	unsigned debug : 1;
# endif
#elif defined(CONFIG_SMP)
	int cpu;
#else
	int only;
#endif
#ifdef CONFIG_ONE
	int either;
#else
	long either;
#endif
	union {
		int plain;
#ifdef CONFIG_TWO
		int both;
#endif
		int both;
	};
} __attribute__((aligned(8)));

#ifdef CONFIG_IO
struct io
{
	u64 bytes;
};
#endif

enum color {
	RED,
#ifdef CONFIG_GREEN
	GREEN = 7,
#endif
};
#endif
"""


@pytest.fixture
def source(tmp_path: Path) -> StructSource:
    (tmp_path / "include" / "linux").mkdir(parents=True)
    (tmp_path / "include" / "linux" / "task.h").write_text(HEADER)
    return StructSource(tree=tmp_path, arch="x86")


@pytest.mark.parametrize(
    ("member", "switches"),
    [("pid", None), ("numa_scan", ["NUMA"]), ("numa_period", ["NUMA"]), ("numa", ["NUMA"]),
     ("debug", ["DEBUG", "SMALL", "NUMA"]), ("cpu", ["NUMA", "SMP"]), ("only", ["NUMA", "SMP"]), ("either", ["ONE"]),
     ("plain", None), ("both", None), ("not_here", None), ("", None)],
)  # fmt: skip
def test_members(source: StructSource, member: str, switches: list[str] | None) -> None:
    found = source.conditions([("task", member)])
    told = list(dict.fromkeys(item.option for item in found.get(("task", member), ())))
    assert told == [f"CONFIG_{switch}" for switch in switches or ()]


def test_types_enumerators_and_places(source: StructSource) -> None:
    wanted = [("io", ""), ("io", "bytes"), ("color", "GREEN"), ("color", "RED"), ("nothing", "")]
    found = source.conditions(wanted)
    assert set(found) == {("io", ""), ("io", "bytes"), ("color", "GREEN")}
    line = HEADER.split("\n").index("\tu64 bytes;") + 1
    assert found["io", "bytes"] == (Condition(option="CONFIG_IO", file="include/linux/task.h", line=line),)
