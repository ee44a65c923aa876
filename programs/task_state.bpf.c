// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A renamed field, and the ways to write its guard.
 *
 * task_struct.state (volatile long) became task_struct.__state (unsigned int) in 5.14: commit 2f064a59a11f "sched: Change
 * task_struct::state". On each kernel exactly one of the two accesses is poisoned, and exactly that one must be dead code.
 *
 *   state_each              one `if (exists(f))` for each access: the form to copy, it loads on every kernel that has kprobe
 *                           programs and dead-code sanitising.
 *   state_else              the textbook's if/else, newer name first. Equal on kernels of today. Verifiers before about 4.16 prune a
 *                           comparison of constants only when they are equal, so a check that is 1 leads them into `else` too; this
 *                           order escapes that, because below 5.14 the check is 0.
 *   state_else_older_first  the same with the older name first: refused before about 4.16, where the check is 1.
 *
 * Compiled for -mcpu=v1, no global data, buffers zeroed, task taken from the probed function's argument: nothing here is newer
 * than Linux 4.1.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include "last_value.h"
#include "read.h"
#include "task_argument.h"

struct task_struct {
	unsigned int __state;
} __core;

struct task_struct___before_5_14 {
	long state;
} __core;

LAST_VALUE(last_state, __u64);

SEC("kprobe/wake_up_new_task")
int state_each(void *ctx)
{
	struct task_struct *task = FIRST_ARGUMENT(ctx);
	struct task_struct___before_5_14 *older = (void *)task;
	__u64 state = 0;

	if (bpf_core_field_exists(task->__state))
		state = READ_MEMBER(task, __state);
	if (bpf_core_field_exists(older->state))
		state = READ_MEMBER(older, state);
	return remember(&last_state, &state);
}

SEC("kprobe/wake_up_new_task")
int state_else(void *ctx)
{
	struct task_struct *task = FIRST_ARGUMENT(ctx);
	struct task_struct___before_5_14 *older = (void *)task;
	__u64 state;

	if (bpf_core_field_exists(task->__state))
		state = READ_MEMBER(task, __state);
	else
		state = READ_MEMBER(older, state);
	return remember(&last_state, &state);
}

SEC("kprobe/wake_up_new_task")
int state_else_older_first(void *ctx)
{
	struct task_struct *task = FIRST_ARGUMENT(ctx);
	struct task_struct___before_5_14 *older = (void *)task;
	__u64 state;

	if (bpf_core_field_exists(older->state))
		state = READ_MEMBER(older, state);
	else
		state = READ_MEMBER(task, __state);
	return remember(&last_state, &state);
}

char LICENSE[] SEC("license") = "GPL";
