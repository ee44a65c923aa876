// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A fatal ambiguity. No kernel promises a pair of same-named types that disagree, so the target is made too: compiled with -DTARGET, this file's
 * .BTF is the target. It has struct corematrix_pair and struct corematrix_pair___other (one name, but for the suffix) with
 * `field` at different offsets: libbpf gives up on the whole object ("field offset ambiguity", -EINVAL). `bystander` is sound and gets a verdict
 * of its own (`alone`).
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#ifdef TARGET
struct corematrix_pair {
	int field;
};

struct corematrix_pair___other {
	long padding;
	int field;
};

struct task_struct {
	long padding;
	int pid;
	int tgid;
};

struct corematrix_pair pair;
struct corematrix_pair___other other;
struct task_struct task;
#else
struct corematrix_pair {
	int field;
} __core;

struct task_struct {
	int pid;
} __core;

SEC("raw_tp/sched_process_exec")
int bystander(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, pid) & 1;
}

SEC("raw_tp/sched_process_exec")
int ambiguous(void *ctx)
{
	struct corematrix_pair *pair = (void *)bpf_get_current_task();

	return BPF_CORE_READ(pair, field) & 1;
}
#endif

char LICENSE[] SEC("license") = "GPL";
