// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * When a task started, in nanoseconds since boot: task_struct.real_start_time up to 5.4, start_boottime since 5.5 (commit
 * cf25e24db61c "time: Rename tsk->real_start_time to ->start_boottime").
 *
 * real_start_time is a plain u64 (seen in 4.19; the struct timespec is of 3.x times); the guide that reads `real_start_time.tv_sec` declares a struct
 * timespec there, and a struct never matches an integer: its existence check is 0 on every kernel in use, and the time silently stays 0
 * (docs/seeds.md). Portable form: one guard for each access; -mcpu=v1.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include "last_value.h"
#include "read.h"
#include "task_argument.h"

struct task_struct {
	__u64 start_boottime;
} __core;

struct task_struct___before_5_5 {
	__u64 real_start_time;
} __core;

LAST_VALUE(last_start, __u64);

SEC("kprobe/wake_up_new_task")
int start_time(void *ctx)
{
	struct task_struct *task = FIRST_ARGUMENT(ctx);
	struct task_struct___before_5_5 *older = (void *)task;
	__u64 start = 0;

	if (bpf_core_field_exists(task->start_boottime))
		start = READ_MEMBER(task, start_boottime);
	if (bpf_core_field_exists(older->real_start_time))
		start = READ_MEMBER(older, real_start_time);
	return remember(&last_start, &start);
}

char LICENSE[] SEC("license") = "GPL";
