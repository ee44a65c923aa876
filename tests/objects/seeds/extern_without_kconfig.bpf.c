// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Slides of 2019, "Extern relocation": an extern without __kconfig, which is how libbpf tells Kconfig values from the rest. libbpf refuses the object when
 * it opens it.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

extern bool CONFIG_TASK_IO_ACCOUNTING;

SEC("raw_tp/sched_process_exec")
int extern_without_kconfig(void *ctx)
{
	return CONFIG_TASK_IO_ACCOUNTING;
}

char LICENSE[] SEC("license") = "GPL";
