// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Slides of 2019, "Unrelocatable sizeof()": `__builtin_bpf_read_field(&task, ioac)`, an idea that no compiler has. What came instead is
 * bpf_core_field_size() and bpf_core_type_size() (programs/sizes).
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_io_accounting {
	__u64 read_bytes;
} __core;

struct task_struct {
	struct task_io_accounting ioac;
} __core;

SEC("raw_tp/sched_process_exec")
int read_field_builtin(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_io_accounting io_acc;

	io_acc = __builtin_bpf_read_field(&task, ioac);
	return io_acc.read_bytes != 0;
}

char LICENSE[] SEC("license") = "GPL";
