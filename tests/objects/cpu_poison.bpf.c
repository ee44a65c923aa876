// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Live poison under bpf_get_smp_processor_id(): no guard at all, but a machine with one CPU may prove it dead. Since 7.x the verifier bounds the
 * helper's result by the number of CPUs, so a one-CPU guest accepts what every real machine refuses; with two CPUs it is refused everywhere.
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

SEC("raw_tp/sched_process_exec")
int cpu_poison(void *ctx)
{
	struct task_struct___missing *other = (void *)bpf_get_current_task();
	__u64 value = 0;

	if (bpf_get_smp_processor_id())
		value = BPF_CORE_READ(other, corematrix_missing);
	return value & 1;
}

char LICENSE[] SEC("license") = "GPL";
