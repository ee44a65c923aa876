// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * BTF type ids as numbers in the program: of the local type (this object's own BTF, as the compiler numbered it) and of the kernel's.
 *
 *   local_type_id   never fails and asks no kernel: libbpf writes the id the record carries.
 *   target_type_id  differs on every build of the kernel. Where the type is missing it is 0: resolved, not poisoned.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "last_value.h"

struct task_struct {
	pid_t pid;
} __core;

enum bpf_func_id {
	BPF_FUNC_map_lookup_elem = 1,
};

struct corematrix_no_such_type {
	int field;
} __core;

struct ids {
	__u64 task_local, task_kernel, func_id_local, func_id_kernel, missing_local, missing_kernel;
};

LAST_VALUE(last_ids, struct ids);

SEC("raw_tp/sched_process_exec")
int type_ids(void *ctx)
{
	struct ids ids = {};

	ids.task_local = bpf_core_type_id_local(struct task_struct);
	ids.task_kernel = bpf_core_type_id_kernel(struct task_struct);
	ids.func_id_local = bpf_core_type_id_local(enum bpf_func_id);
	ids.func_id_kernel = bpf_core_type_id_kernel(enum bpf_func_id);
	ids.missing_local = bpf_core_type_id_local(struct corematrix_no_such_type);
	ids.missing_kernel = bpf_core_type_id_kernel(struct corematrix_no_such_type);
	return remember(&last_ids, &ids);
}

char LICENSE[] SEC("license") = "GPL";
