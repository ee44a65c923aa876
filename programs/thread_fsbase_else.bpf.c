// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The same rename as thread_fsbase (4.7), guarded the way the textbooks write it: if/else.
 *
 * Good on every kernel of today. Verifiers before about 4.16 (4.4, 4.9, 4.14, 4.15.0) prune a comparison of two constants only
 * when these are equal. An existence check that is 1 compiles to `r = 1; if r == 0 goto else`: not equal, both sides are walked, and
 * the poison in `else` is met: "invalid func 195896080". So each of those kernels refuses one of the two programs: below 4.7
 * fs_first, from 4.7 on fsbase_first. The portable form is thread_fsbase's.
 */
#include "types.h"
#include "pt_regs.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "read.h"

struct thread_struct {
	unsigned long fsbase;
} __core;

struct thread_struct___before_4_7 {
	unsigned long fs;
} __core;

struct task_struct {
	struct thread_struct thread;
} __core;

struct task_struct___before_4_7 {
	struct thread_struct___before_4_7 thread;
} __core;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} last_fsbase SEC(".maps");

static __always_inline int remember(__u64 fsbase)
{
	__u32 key = 0;

	bpf_map_update_elem(&last_fsbase, &key, &fsbase, 0);
	return 0;
}

SEC("kprobe/wake_up_new_task")
int fsbase_first(struct pt_regs *ctx)
{
	struct task_struct *task = (void *)PT_REGS_PARM1(ctx);
	struct task_struct___before_4_7 *older = (void *)task;
	__u64 fsbase;

	if (bpf_core_field_exists(task->thread.fsbase))
		fsbase = READ_MEMBER(task, thread.fsbase);
	else
		fsbase = READ_MEMBER(older, thread.fs);
	return remember(fsbase);
}

SEC("kprobe/wake_up_new_task")
int fs_first(struct pt_regs *ctx)
{
	struct task_struct *task = (void *)PT_REGS_PARM1(ctx);
	struct task_struct___before_4_7 *older = (void *)task;
	__u64 fsbase;

	if (bpf_core_field_exists(older->thread.fs))
		fsbase = READ_MEMBER(older, thread.fs);
	else
		fsbase = READ_MEMBER(task, thread.fsbase);
	return remember(fsbase);
}

char LICENSE[] SEC("license") = "GPL";
