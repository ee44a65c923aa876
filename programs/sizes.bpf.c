// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Sizes that only the running kernel knows: of a type, of a field, of things that are missing.
 *
 *   sizeof() is a constant of the compiler and never relocated: of a cut-down declaration it is plain wrong.
 *   bpf_core_type_size(T)   0 where T is missing: resolved, not poisoned. Needs no guard.
 *   bpf_core_field_size(f)  poison where f is missing: needs one. The two are not alike.
 *
 * The size also serves as the length of a read: task_struct.comm is read with the kernel's size, bounded by ours.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "last_value.h"

struct task_struct {
	char comm[TASK_COMM_LEN];
	unsigned int __state;
} __core;

struct task_struct___before_5_14 {
	long state;
} __core;

/* There since 5.8, and never there. */
struct bpf_ringbuf {
};

struct corematrix_no_such_type {
	int field;
} __core;

struct sizes {
	__u64 task_struct, ringbuf, missing, comm, state;
	char comm_text[TASK_COMM_LEN];
};

LAST_VALUE(last_sizes, struct sizes);

SEC("raw_tp/sched_process_exec")
int sizes(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct___before_5_14 *older = (void *)task;
	struct sizes sizes = {};

	sizes.task_struct = bpf_core_type_size(struct task_struct);
	sizes.ringbuf = bpf_core_type_size(struct bpf_ringbuf);
	sizes.missing = bpf_core_type_size(struct corematrix_no_such_type);
	sizes.comm = bpf_core_field_size(task->comm);
	if (bpf_core_field_exists(task->__state))
		sizes.state = bpf_core_field_size(task->__state);
	if (bpf_core_field_exists(older->state))
		sizes.state = bpf_core_field_size(older->state);
	if (sizes.comm <= sizeof(sizes.comm_text))
		bpf_core_read(sizes.comm_text, sizes.comm, &task->comm);
	return remember(&last_sizes, &sizes);
}

char LICENSE[] SEC("license") = "GPL";
