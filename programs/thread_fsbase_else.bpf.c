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
#include "fsbase.h"
#include "last_value.h"
#include "read.h"

LAST_VALUE(last_fsbase, __u64);

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
	return remember(&last_fsbase, &fsbase);
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
	return remember(&last_fsbase, &fsbase);
}

char LICENSE[] SEC("license") = "GPL";
