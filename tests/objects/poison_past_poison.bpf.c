// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Analysis past the first poison. `straight`: two poisoned reads one after the other, both reached on one path: the first is live, the second unreached
 * (behind it). `two_paths`: one on each side of an unknown branch: both are live. `then_dead`: live poison, and later guarded poison that is
 * dead on every path: eliminated. `then_other`: live poison on one path, on the other an error of another kind (a scalar as pointer).
 */
#include "missing.h"

SEC("raw_tp/sched_process_exec")
int straight(void *ctx)
{
	struct task_struct___missing *other = (void *)bpf_get_current_task();
	__u64 value = BPF_CORE_READ(other, corematrix_missing);

	return (value + BPF_CORE_READ(other, corematrix_missing_too)) & 1;
}

SEC("raw_tp/sched_process_exec")
int two_paths(void *ctx)
{
	struct task_struct___missing *other = (void *)bpf_get_current_task();
	__u64 value;

	if (bpf_get_prandom_u32() & 1)
		value = BPF_CORE_READ(other, corematrix_missing);
	else
		value = BPF_CORE_READ(other, corematrix_missing_too);
	return value & 1;
}

SEC("raw_tp/sched_process_exec")
int then_dead(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct___missing *other = (void *)task;
	__u64 value = 0;

	if (bpf_get_prandom_u32() & 1)
		value = BPF_CORE_READ(other, corematrix_missing);
	if (bpf_core_field_exists(other->corematrix_missing_too))
		value += BPF_CORE_READ(other, corematrix_missing_too);
	return (value + BPF_CORE_READ(task, pid)) & 1;
}

SEC("raw_tp/sched_process_exec")
int then_other(void *ctx)
{
	struct task_struct___missing *other = (void *)bpf_get_current_task();
	__u64 value;

	if (bpf_get_prandom_u32() & 1)
		value = BPF_CORE_READ(other, corematrix_missing);
	else
		value = *(volatile __u64 *)bpf_get_current_task();
	return value & 1;
}

char LICENSE[] SEC("license") = "GPL";
