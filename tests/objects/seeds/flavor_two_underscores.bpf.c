// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Slides of 2019, "Uncommon/experimental fields": struct task_struct__custom, with two underscores. A flavor takes three: this is a type of another name, which no kernel
 * has, so even `pid` is poison in it. With three it resolves.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct__custom {
	int pid;
} __core;

struct task_struct___custom {
	int pid;
} __core;

SEC("raw_tp/sched_process_exec")
int two_underscores(void *ctx)
{
	struct task_struct__custom *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, pid) & 1;
}

SEC("raw_tp/sched_process_exec")
int three_underscores(void *ctx)
{
	struct task_struct___custom *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, pid) & 1;
}

char LICENSE[] SEC("license") = "GPL";
