// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The fs/fsbase example of "BPF CO-RE (Compile Once - Run Everywhere)" with its guard as published: the wrong way round.
 *
 * `LINUX_KERNEL_VERSION > 4.6` selects the OLD name. From 4.7 on (commit 296f781a4b78) `fs` does not exist, its access is poisoned, and the
 * guard keeps just that branch alive: every kernel with `fsbase` refuses the program ("invalid func unknown#195896080"). Below 4.7 the
 * branches are as wrong, with the names exchanged. A harness that is worth its name says so, and names the line of the read of `fs`.
 *
 * Only the declarations around the example are ours: it gives no context, so `thr` is the current task's. And APART: without it the compiler
 * merges what the branches have in common and leaves the rest, the relocated instructions, with the line of the `if`.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "last_value.h"

/* up-to-date thread_struct definition matching newer kernels */
struct thread_struct {
	__u64 fsbase;
} __core;

/* legacy thread_struct definition for <= 4.6 kernels */
struct thread_struct___v46 {
	__u64 fs;
} __core;

struct task_struct {
	struct thread_struct thread;
} __core;

extern int LINUX_KERNEL_VERSION __kconfig;

LAST_VALUE(last_fsbase, __u64);

/* No instruction, but a different one in each branch as far as the compiler can see. */
#define APART(branch) asm volatile("// " branch)

SEC("raw_tp/sched_process_exec")
int fsbase_as_published(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct thread_struct *thr = &task->thread;
	__u64 fsbase;

	if (LINUX_KERNEL_VERSION > KERNEL_VERSION(4, 6, 0)) {
		fsbase = BPF_CORE_READ((struct thread_struct___v46 *)thr, fs);
		APART("older");
	} else {
		fsbase = BPF_CORE_READ(thr, fsbase);
		APART("newer");
	}
	return remember(&last_fsbase, &fsbase);
}

char LICENSE[] SEC("license") = "GPL";
