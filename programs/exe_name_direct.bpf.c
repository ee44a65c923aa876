// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The same chain as exe_name without a helper: programs whose arguments the verifier knows by their BTF type (tp_btf, fentry) may
 * follow pointers as C does (5.5: commits 9e15db66136a for tp_btf, fec56f5890d9 for fentry). Every `->` is a load instruction whose
 * offset is relocated; the verifier turns it into a load that reads 0 from an address that faults.
 *
 * The arguments are PTR_TO_BTF_ID in the context: ctx[0] is the task. BPF_PROG() only casts them.
 * On arm64 fentry programs load before 6.0, but cannot be attached: BPF trampolines came with commit efc9909fdce0 (6.0).
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include "exe_path.h"
#include "last_value.h"

struct exe {
	char name[64];
};

LAST_VALUE(last_exe, struct exe);

static __always_inline int remember_name(const struct task_struct *task)
{
	struct exe exe = {};

	bpf_probe_read_kernel_str(exe.name, sizeof(exe.name), task->mm->exe_file->f_path.dentry->d_name.name);
	return remember(&last_exe, &exe);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(exe_name_tp_btf, struct task_struct *task)
{
	return remember_name(task);
}

SEC("fentry/wake_up_new_task")
int BPF_PROG(exe_name_fentry, struct task_struct *task)
{
	return remember_name(task);
}

char LICENSE[] SEC("license") = "GPL";
