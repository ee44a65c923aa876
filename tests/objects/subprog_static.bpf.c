// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Static subprograms (.text, verified with each caller's state): `read_pid` is called twice; `guarded` holds poison
 * behind its own check; `dead` is called only from dead code and holds unguarded poison. Loads on every kernel since 4.16.
 * `second` calls only `guarded`, so the same relocation belongs to both entry programs and read_pid's only to the first.
 */
#include "missing.h"

static __noinline __u64 read_pid(struct task_struct *task)
{
	return BPF_CORE_READ(task, pid);
}

static __noinline __u64 guarded(void *task)
{
	struct task_struct___missing *other = task;
	__u64 value = 7;

	if (bpf_core_field_exists(other->corematrix_missing))
		value = BPF_CORE_READ(other, corematrix_missing);
	return value;
}

static __noinline __u64 dead(void *task)
{
	struct task_struct___missing *other = task;

	return BPF_CORE_READ(other, corematrix_missing_too);
}

SEC("raw_tp/sched_process_exec")
int first(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct___missing *other = (void *)task;
	__u64 sum;

	sum = read_pid(task);
	sum += read_pid(BPF_CORE_READ((struct task_struct *)task, pid) ? task : NULL);
	sum += guarded(task);
	if (bpf_core_field_exists(other->corematrix_missing_too))
		sum += dead(task);
	return sum & 1;
}

SEC("raw_tp/sched_process_exec")
int second(void *ctx)
{
	return guarded((void *)bpf_get_current_task()) & 1;
}

char LICENSE[] SEC("license") = "GPL";
