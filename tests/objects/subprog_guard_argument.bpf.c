// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The guard is made in the caller and handed over as an argument. A static function is verified with the caller's constant: the poison is dead.
 * A global one is verified with an unknown argument: the poison is alive, and the program refused, on every kernel.
 */
#include "missing.h"

static __noinline __u64 static_side(void *task, __u32 exists)
{
	struct task_struct___missing *other = task;
	__u64 value = 7;

	if (exists)
		value = BPF_CORE_READ(other, corematrix_missing);
	return value;
}

__noinline int global_side(__u64 address, __u32 exists)
{
	struct task_struct___missing *other = (void *)address;
	int value = 7;

	if (exists)
		value = BPF_CORE_READ(other, corematrix_missing);
	return value;
}

SEC("raw_tp/sched_process_exec")
int through_static(void *ctx)
{
	struct task_struct___missing *other = (void *)bpf_get_current_task();

	return static_side(other, bpf_core_field_exists(other->corematrix_missing_too)) & 1;
}

SEC("raw_tp/sched_process_exec")
int through_global(void *ctx)
{
	struct task_struct___missing *other = (void *)bpf_get_current_task();

	return global_side((__u64)other, bpf_core_field_exists(other->corematrix_missing_too)) & 1;
}

char LICENSE[] SEC("license") = "GPL";
