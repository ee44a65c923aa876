/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The first argument of a probed kernel function, for ONE object that serves x86_64 and arm64.
 *
 * bpf_tracing.h picks the register when compiling, which makes an object per architecture. Here the target's BTF picks it: x86 has
 * `di` in struct pt_regs, arm64 has struct user_pt_regs (pt_regs' first member). The other architecture's access is poisoned, and
 * guarded. One `if` for each access, none of them with `else`: see docs/seeds.md, "Portable guards".
 *
 * A kprobe's argument is the only way to a task_struct before 4.8 (bpf_get_current_task() is commit 606274c5abd8), and kprobes
 * are the only tracing programs before 4.7.
 */
#ifndef COREMATRIX_TASK_ARGUMENT_H
#define COREMATRIX_TASK_ARGUMENT_H

#include <bpf/bpf_core_read.h>

struct pt_regs___x86 {
	unsigned long di;
} __core;

struct user_pt_regs {
	__u64 regs[1];
} __core;

#define FIRST_ARGUMENT(ctx)                                                                                                     \
	({                                                                                                                      \
		void *argument = NULL;                                                                                    \
		if (bpf_core_field_exists(struct pt_regs___x86, di))                                                            \
			argument = (void *)((struct pt_regs___x86 *)(ctx))->di;                                           \
		if (bpf_core_field_exists(struct user_pt_regs, regs))                                                           \
			argument = (void *)((struct user_pt_regs *)(ctx))->regs[0];                                       \
		argument;                                                                                                       \
	})

#endif
