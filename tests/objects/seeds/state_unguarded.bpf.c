// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CO-RE guide, "Enum Value Preservation": BPF_CORE_READ(task, __state), with the older name in a comment only. Refused on every kernel
 * before 5.14 (poison, live), loads from there on.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	unsigned int __state;
} __core;

SEC("raw_tp/sched_switch")
int state_unguarded(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, __state) & 1;
}

char LICENSE[] SEC("license") = "GPL";
