// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A strong Kconfig extern that no kernel sets: libbpf refuses the object while it resolves externs, before any relocation
 * ("extern (kcfg) 'CONFIG_IO_TASK_ACCOUNTING': not found", -ESRCH). The name is the one on the slides that introduced externs.
 */
#include "missing.h"

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
