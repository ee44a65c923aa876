// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A GLOBAL subprogram with unguarded poison, called only from dead code: refused where globals are always verified (5.10, 6.1: "invalid func
 * unknown#195896080"), accepted where they are verified on the first live call (6.18, 7.2). The static twin is subprog_static's `dead`.
 */
#include "missing.h"

__noinline int global_poison(__u64 address)
{
	struct task_struct___missing *other = (void *)address;

	return BPF_CORE_READ(other, corematrix_missing);
}

SEC("raw_tp/sched_process_exec")
int entry(void *ctx)
{
	__u64 task = bpf_get_current_task();
	struct task_struct___missing *other = (void *)task;

	if (bpf_core_field_exists(other->corematrix_missing_too))
		return global_poison(task) & 1;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
