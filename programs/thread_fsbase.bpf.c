// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A field renamed long ago, in the form that loads on anything since 4.4.
 *
 * x86's thread_struct.fs became thread_struct.fsbase in 4.7 (fsbase.h). BPF_CORE_READ of either name on the wrong kernel is poison.
 *
 * What makes it portable down to 4.4: a kprobe (tracepoint programs came with 4.7), whose argument is the task
 * (bpf_get_current_task() came with 4.8); one `if (exists(f))` for each access and never `else` (thread_fsbase_else shows why);
 * -mcpu=v1; no global data (5.2); no strings, no ring buffer; a zeroed buffer under every bpf_probe_read().
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
int thread_fsbase(struct pt_regs *ctx)
{
	struct task_struct *task = (void *)PT_REGS_PARM1(ctx);
	struct task_struct___before_4_7 *older = (void *)task;
	__u64 fsbase = 0;

	if (bpf_core_field_exists(task->thread.fsbase))
		fsbase = READ_MEMBER(task, thread.fsbase);
	if (bpf_core_field_exists(older->thread.fs))
		fsbase = READ_MEMBER(older, thread.fs);
	return remember(&last_fsbase, &fsbase);
}

char LICENSE[] SEC("license") = "GPL";
