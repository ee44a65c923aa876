"""`corematrix diff --kernels`: the code it suggests for what has another name, compiled and loaded by both kernels.

Between 5.10 and 7.2: enumerator LOCKDOWN_BPF_READ became LOCKDOWN_BPF_READ_KERNEL (5.14, commit 51e1bb9eeaf7), enum
req_opf became enum req_op (6.0, commit ff07a02e9e8e), struct rmap_item became struct ksm_rmap_item (6.1, commit
21fbd59136e0), and task_struct.state became __state (5.14, commit 2f064a59a11f).
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.objects import compile_object

pytestmark = [pytest.mark.vm, pytest.mark.network]

ROOT = Path(__file__).resolve().parents[2]
OLD, NEW = "debian-5.10-cloud-amd64", "debian-7.2-cloud-amd64"
HEAD = """
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
"""
TAIL = 'char LICENSE[] SEC("license") = "GPL";\n'
ASKS = HEAD + """
enum lockdown_reason { LOCKDOWN_BPF_READ = 1 };
enum req_opf { REQ_OP_READ };
struct rmap_item { unsigned long address; } __core;
struct task_struct { long state; } __core;

SEC("raw_tp/sched_process_exec")
int asks(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	long found = 0;

	if (bpf_core_enum_value_exists(enum lockdown_reason, LOCKDOWN_BPF_READ))
		found = bpf_core_enum_value(enum lockdown_reason, LOCKDOWN_BPF_READ);
	if (bpf_core_type_exists(enum req_opf))
		found += 1;
	if (bpf_core_field_exists(((struct rmap_item *)0)->address))
		found += 2;
	if (bpf_core_field_exists(task->state))
		found += BPF_CORE_READ(task, state);
	bpf_printk("%ld", found);
	return 0;
}
""" + TAIL
USES = {
    "lockdown_reason::LOCKDOWN_BPF_READ": "value_of_LOCKDOWN_BPF_READ()",
    "req_opf": "which_req_opf()",
    "rmap_item.address": "rmap_item_address((void *)bpf_get_current_task())",
    "task_struct.state": "task_struct_state((void *)bpf_get_current_task())",
}
# field of a check -> its value on the old and on the new kernel
CHECKS = {
    "lockdown_reason___with_LOCKDOWN_BPF_READ::LOCKDOWN_BPF_READ___one": (1, 0),
    "lockdown_reason___with_LOCKDOWN_BPF_READ_KERNEL::LOCKDOWN_BPF_READ_KERNEL___other": (0, 1),
    "req_opf___one": (1, 0),
    "req_op___other": (0, 1),
    "rmap_item___with_address.address": (1, 0),
    "ksm_rmap_item___with_address.address": (0, 1),
    "task_struct___with_state.state": (1, 0),
    "task_struct___with_state_renamed.__state": (0, 1),
}


def corematrix(*words: str) -> str:
    command = [sys.executable, "-m", "harness.cli", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(directory: Path, source: str) -> Path:
    """The run of a program's text on both kernels."""
    path = directory / f"p{len(source)}.bpf.c"
    path.write_text(source)
    built = compile_object(path, path.with_suffix(".o"))
    stored = directory / f"{path.stem}.json"
    corematrix("run", str(built), "-k", OLD, "-k", NEW, "--output", str(directory), "--json", str(stored))
    return stored


def test_the_suggested_code_loads_on_both_kernels(tmp_path: Path) -> None:
    asked = run(tmp_path, ASKS)
    found = json.loads(corematrix("diff", "--kernels", OLD, NEW, str(asked), "--format", "json"))
    leads: dict[str, dict[str, Any]] = {lead["field"]: lead for lead in found["kernels"][0]["leads"]}
    assert set(leads) == set(USES)
    programs = "".join(
        f'{lead["code"]}\nSEC("raw_tp/sched_process_exec") int p{number}(void *ctx)\n'
        f'{{\n\tbpf_printk("%lld", (long long){USES[name]});\n\treturn 0;\n}}\n'
        for number, (name, lead) in enumerate(leads.items())
    )
    result = json.loads(run(tmp_path, HEAD + programs + TAIL).read_text())
    cells = {cell["kernel"]["id"]: cell for cell in result["cells"]}
    for side, kernel in enumerate((OLD, NEW)):
        progs = cells[kernel]["progs"]
        assert [prog["verdict"] for prog in progs] == ["loaded"] * len(USES)
        relos = [relo for prog in progs for relo in prog["core_relos"]]
        checks = {relo["local_spec"].split(" ")[3]: relo["new_value"] for relo in relos if "exists" in relo["kind"]}
        assert checks == {name: values[side] for name, values in CHECKS.items()}
        others = {(relo["outcome"], relo["liveness"]) for relo in relos if "exists" not in relo["kind"]}
        assert others == {("resolved", "live"), ("poisoned", "eliminated")}
