// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CO-RE guide, twice: real_start_time.tv_sec as the fallback of start_boottime. real_start_time is a u64 (seen in 4.19's BTF), so a struct
 * never matches it: on kernels before 5.5, which do have real_start_time, both checks are 0 and the time stays 0. Loads everywhere, and is
 * wrong exactly where the fallback was meant to help.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct timespec {
	long tv_sec;
} __core;

struct task_struct {
	__u64 start_boottime;
	struct timespec real_start_time;
} __core;

SEC("raw_tp/sched_process_exec")
int start_time_tv_sec(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 start_time = 0;

	if (bpf_core_field_exists(task->start_boottime))
		start_time = BPF_CORE_READ(task, start_boottime);
	else if (bpf_core_field_exists(task->real_start_time))
		start_time = BPF_CORE_READ(task, real_start_time.tv_sec);
	return start_time & 1;
}

char LICENSE[] SEC("license") = "GPL";
