// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The application decides: a switch in read-only data, set before the load, known to the verifier as a constant.
 *
 * The fancy helper is bpf_ktime_get_tai_ns() (6.1, commit c8996c98f703). With use_fancy_helper=0 its call is dead code and the program
 * loads everywhere; with 1 it loads from 6.1 on and is refused before ("invalid func unknown#208"). The settings are an axis of the matrix
 * (fancy_helper.yaml).
 *
 * `const volatile`: with a plain `const` (as in the CO-RE post) the compiler takes the initialiser for the value, folds the branch
 * away, and no loader can switch anything (docs/seeds.md). The read in each branch (pid, tgid) is a relocation that
 * lives in one setting and is eliminated in the other.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "last_value.h"

const volatile bool use_fancy_helper = false;
const volatile __u32 fallback_value = 3;

struct task_struct {
	pid_t pid;
	pid_t tgid;
} __core;

LAST_VALUE(last_value, __u64);

SEC("raw_tp/sched_process_exec")
int fancy_helper(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 value;

	if (use_fancy_helper)
		value = bpf_ktime_get_tai_ns() + BPF_CORE_READ(task, pid);
	else
		value = bpf_ktime_get_ns() * fallback_value + BPF_CORE_READ(task, tgid);
	return remember(&last_value, &value);
}

char LICENSE[] SEC("license") = "GPL";
