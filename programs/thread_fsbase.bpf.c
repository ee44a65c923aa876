// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A field renamed long ago, in the form that loads on anything since 4.4.
 *
 * x86's thread_struct.fs became thread_struct.fsbase in 4.7: commit 296f781a4b78 "x86/asm/64: Rename thread_struct's fs and gs to
 * fsbase and gsbase". (BPF_CORE_READ of either name on the wrong kernel is poison.)
 *
 * What makes it portable down to 4.4: a kprobe (tracepoint programs came with 4.7), whose argument is the task
 * (bpf_get_current_task() came with 4.8); one `if (exists(f))` for each access and never `else` (thread_fsbase_else shows why);
 * -mcpu=v1; no global data (5.2); no strings, no ring buffer; a zeroed buffer under every bpf_probe_read().
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

SEC("kprobe/wake_up_new_task")
int thread_fsbase(struct pt_regs *ctx)
{
	struct task_struct *task = (void *)PT_REGS_PARM1(ctx);
	struct task_struct___before_4_7 *older = (void *)task;
	__u64 fsbase = 0;
	__u32 key = 0;

	if (bpf_core_field_exists(task->thread.fsbase))
		fsbase = READ_MEMBER(task, thread.fsbase);
	if (bpf_core_field_exists(older->thread.fs))
		fsbase = READ_MEMBER(older, thread.fs);
	bpf_map_update_elem(&last_fsbase, &key, &fsbase, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
