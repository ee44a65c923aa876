// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Reference guide, "ignored suffix rule": "the same applies for field names". It does not: libbpf compares the names of members as they are. Types and
 * enumerators have flavors, members have none.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int pid;
	int pid___custom;
} __core;

enum bpf_func_id {
	BPF_FUNC_map_lookup_elem___custom = 1,
};

SEC("raw_tp/sched_process_exec")
int flavor_of_member(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, pid___custom) & 1;
}

SEC("raw_tp/sched_process_exec")
int flavor_of_enumerator(void *ctx)
{
	return bpf_core_enum_value(enum bpf_func_id, BPF_FUNC_map_lookup_elem___custom) == 1;
}

char LICENSE[] SEC("license") = "GPL";
