// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A strong Kconfig extern that no kernel sets: libbpf refuses the object while it resolves externs, before any relocation
 * ("extern (kcfg) 'CONFIG_IO_TASK_ACCOUNTING': not found", -ESRCH). The name is the one on the slides that introduced externs.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int pid;
	int tgid;
} __core;

/* No kernel has this member: its reads are poison, its check is 0. */
struct task_struct___missing {
	int corematrix_missing;
	int corematrix_missing_too;
} __core;

extern bool CONFIG_IO_TASK_ACCOUNTING __kconfig;

SEC("raw_tp/sched_process_exec")
int kconfig_missing(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	if (CONFIG_IO_TASK_ACCOUNTING)
		return BPF_CORE_READ(task, pid) & 1;
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
