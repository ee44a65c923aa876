// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * ldimm64, sixteen bytes with one relocation: poisoned in both halves behind a check that is itself an ldimm64 (`guarded`), alive and poisoned
 * (`unguarded`, refused), and between two relocated accesses, so that indexes past it must be counted in halves (`between`).
 */
#include "missing.h"

enum bpf_func_id {
	BPF_FUNC_map_lookup_elem = 1,
	BPF_FUNC_corematrix_missing = 2,
};

SEC("raw_tp/sched_process_exec")
int guarded(void *ctx)
{
	__u64 value = 1;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_corematrix_missing))
		value = bpf_core_enum_value(enum bpf_func_id, BPF_FUNC_corematrix_missing);
	return value & 1;
}

SEC("raw_tp/sched_process_exec")
int unguarded(void *ctx)
{
	return bpf_core_enum_value(enum bpf_func_id, BPF_FUNC_corematrix_missing) & 1;
}

SEC("raw_tp/sched_process_exec")
int between(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 sum = BPF_CORE_READ(task, pid);

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_corematrix_missing))
		sum += bpf_core_enum_value(enum bpf_func_id, BPF_FUNC_corematrix_missing);
	sum += bpf_core_enum_value(enum bpf_func_id, BPF_FUNC_map_lookup_elem);
	return (sum + BPF_CORE_READ(task, tgid)) & 1;
}

char LICENSE[] SEC("license") = "GPL";
