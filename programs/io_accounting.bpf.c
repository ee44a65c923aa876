// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A field that the kernel's configuration compiles out: task_struct.ioac.read_bytes exists with CONFIG_TASK_IO_ACCOUNTING only. (The slides that
 * introduced this call the switch CONFIG_IO_TASK_ACCOUNTING in the code: no kernel has it, and a strong extern of that name
 * fails the whole object. docs/seeds.md.)
 *
 *   read_bytes_by_config  the configuration decides. Weak, because "is not set" is missing, and missing and strong is an error.
 *   read_bytes_by_field   the field decides: the same, without needing the configuration file. To be preferred.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "last_value.h"

extern bool CONFIG_TASK_IO_ACCOUNTING __kconfig __weak;

struct task_io_accounting {
	__u64 read_bytes;
} __core;

struct task_struct {
	struct task_io_accounting ioac;
} __core;

LAST_VALUE(last_read_bytes, __u64);

SEC("raw_tp/sched_process_exec")
int read_bytes_by_config(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 read_bytes = 0;

	if (CONFIG_TASK_IO_ACCOUNTING)
		read_bytes = BPF_CORE_READ(task, ioac.read_bytes);
	return remember(&last_read_bytes, &read_bytes);
}

SEC("raw_tp/sched_process_exec")
int read_bytes_by_field(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 read_bytes = 0;

	if (bpf_core_field_exists(task->ioac.read_bytes))
		read_bytes = BPF_CORE_READ(task, ioac.read_bytes);
	return remember(&last_read_bytes, &read_bytes);
}

char LICENSE[] SEC("license") = "GPL";
