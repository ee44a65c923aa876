// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A GLOBAL subprogram with guarded poison, called only from dead code. Kernels verify globals on their own: 5.10 and 6.1 do it
 * always, newer ones (6.18, 7.2) only when a live call reaches them. Inside, its own guard holds, so it loads everywhere.
 */
#include "missing.h"

__noinline int global_guarded(__u64 address)
{
	struct task_struct___missing *other = (void *)address;
	int value = 7;

	if (bpf_core_field_exists(other->corematrix_missing))
		value = BPF_CORE_READ(other, corematrix_missing);
	return value;
}

SEC("raw_tp/sched_process_exec")
int entry(void *ctx)
{
	__u64 task = bpf_get_current_task();
	struct task_struct___missing *other = (void *)task;

	if (bpf_core_field_exists(other->corematrix_missing_too))
		return global_guarded(task) & 1;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
