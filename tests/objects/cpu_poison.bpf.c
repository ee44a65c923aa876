// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Live poison under bpf_get_smp_processor_id(): no guard at all, but a machine with one CPU may prove it dead. Since 7.x the verifier bounds the
 * helper's result by the number of CPUs, so a one-CPU guest accepts what every real machine refuses; with two CPUs it is refused everywhere.
 */
#include "missing.h"

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
