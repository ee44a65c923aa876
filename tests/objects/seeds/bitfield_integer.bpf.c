// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Reference guide, bitfields: "they can read not just bitfields, but any integer field as well", sign-extended to 8 bytes. True: exit_signal
 * of a thread is -1. And the post's other form of a direct read, __builtin_preserve_access_index() around a statement expression, relocates.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

/* Without the attribute: in `statement` the built-in alone makes the relocation. */
struct task_struct {
	int pid;
	int exit_signal;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __s64);
} values SEC(".maps");

SEC("raw_tp/sched_process_exec")
int integers(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__s64 exit_signal = BPF_CORE_READ_BITFIELD_PROBED(task, exit_signal);
	__s64 pid = BPF_CORE_READ_BITFIELD_PROBED(task, pid);
	__u32 key = 0;

	bpf_map_update_elem(&values, &key, &exit_signal, 0);
	key = 1;
	bpf_map_update_elem(&values, &key, &pid, 0);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int statement(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	pid_t pid = __builtin_preserve_access_index(({ task->pid; }));

	bpf_printk("%d", pid);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
