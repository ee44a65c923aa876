// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Slides of 2019, "Uncommon/experimental fields", as declared there: `struct task_struct *task, *exp_task`, so the cast to the custom struct is
 * lost in the assignment, and the member is looked for in task_struct. (Flavors themselves: flavor_two_underscores.)
 */
#include "types.h"
#include <bpf/bpf_helpers.h>

struct task_struct {
	int pid;
} __core;

struct task_struct__custom {
	__u64 experimental;
} __core;

SEC("raw_tp/sched_process_exec")
int flavor_assigned_back(void *ctx)
{
	struct task_struct *task, *exp_task;
	__u64 value = 0;

	task = (void *)bpf_get_current_task();
	exp_task = (struct task_struct__custom *)task;
	bpf_probe_read(&value, sizeof(__u64), &exp_task->experimental);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
