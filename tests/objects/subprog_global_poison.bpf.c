// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A GLOBAL subprogram with unguarded poison, called only from dead code: refused where globals are always verified (5.10, 6.1: "invalid func
 * unknown#195896080"), accepted where they are verified on the first live call (6.18, 7.2). The static twin is subprog_static's `dead`.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int pid;
	int tgid;
} __core;

/* No kernel has this member: its reads are poison, its check is 0. */
struct task_struct___missing {
	int corematrix_missing;
	int corematrix_missing_too;
} __core;

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
