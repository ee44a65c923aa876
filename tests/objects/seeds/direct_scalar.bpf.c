// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CO-RE guide, "Traditional eBPF Challenges": task->pid on the result of bpf_get_current_task() "might access the wrong memory location". It accesses
 * none: to the verifier that result is a number, and reading through it is refused. (With preserve_access_index it is relocated well and refused all the
 * same.) bpf_get_current_task_btf() (5.11) gives a pointer the verifier knows.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int pid;
} __core;

SEC("raw_tp/sched_process_exec")
int direct_scalar(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return task->pid & 1;
}

SEC("raw_tp/sched_process_exec")
int direct_btf(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();

	return task->pid & 1;
}

char LICENSE[] SEC("license") = "GPL";
