// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The values of an enum that the kernel's configuration writes: enum cgroup_subsys_id holds one enumerator for each controller built in
 * (include/linux/cgroup_subsys.h), so both presence and number differ from kernel to kernel.
 *
 * Each value is one 16-byte `ldimm64`; where the enumerator is missing BOTH its halves are poisoned, and the existence check
 * before it must make it dead code. misc_cgrp_id came with 5.13 (commit a72232eabdfc); dmem_cgrp_id with 6.14 (commit b168ed458dde), but
 * Debian leaves CONFIG_CGROUP_DMEM off; debug_cgrp_id is a kernel developer's: for these two the fallback lives on every kernel here.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "last_value.h"

/* The numbers are arbitrary: only names count. */
enum cgroup_subsys_id {
	cpu_cgrp_id = 1,
	pids_cgrp_id = 2,
	misc_cgrp_id = 3,
	dmem_cgrp_id = 4,
	debug_cgrp_id = 5,
};

struct ids {
	__s64 cpu, pids, misc, dmem, debug;
};

LAST_VALUE(subsys_ids, struct ids);

#define VALUE_OR(fallback, enumerator)                                                                                          \
	(bpf_core_enum_value_exists(enum cgroup_subsys_id, enumerator) ?                                                        \
		 (__s64)bpf_core_enum_value(enum cgroup_subsys_id, enumerator) : (fallback))

SEC("raw_tp/sched_process_exec")
int cgroup_subsys(void *ctx)
{
	struct ids ids = {};

	ids.cpu = VALUE_OR(-1, cpu_cgrp_id);
	ids.pids = VALUE_OR(-1, pids_cgrp_id);
	ids.misc = VALUE_OR(-1, misc_cgrp_id);
	ids.dmem = VALUE_OR(-1, dmem_cgrp_id);
	ids.debug = VALUE_OR(-1, debug_cgrp_id);
	return remember(&subsys_ids, &ids);
}

char LICENSE[] SEC("license") = "GPL";
