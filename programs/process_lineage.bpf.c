// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A whole small tool, after the "process lineage tracker" of the CO-RE guide (docs/seeds.md): who executed, under which parent and user,
 * how deep in the tree, since when. Over a dozen relocations, a bounded loop (5.3) up `real_parent`, a flavor for the start time.
 *
 * Against the guide: real_start_time is read as the u64 it is (see start_time), the depth counts one for each ancestor, and the walk ends
 * at 16 ancestors with the count so far.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define MAX_DEPTH 16

typedef struct {
	__u32 val;
} kuid_t;

typedef struct {
	__u32 val;
} kgid_t;

struct cred {
	kuid_t uid;
	kgid_t gid;
} __core;

struct task_struct {
	pid_t pid;
	pid_t tgid;
	char comm[TASK_COMM_LEN];
	struct task_struct *real_parent;
	const struct cred *cred;
	__u64 start_boottime;
} __core;

struct task_struct___before_5_5 {
	__u64 real_start_time;
} __core;

struct process_lineage {
	__u64 start_time;
	__u32 pid, tgid, ppid, uid, gid, depth;
	char comm[TASK_COMM_LEN];
	char parent_comm[TASK_COMM_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} events SEC(".maps");

static __always_inline __u64 start_time(struct task_struct *task)
{
	struct task_struct___before_5_5 *older = (void *)task;

	if (bpf_core_field_exists(task->start_boottime))
		return BPF_CORE_READ(task, start_boottime);
	if (bpf_core_field_exists(older->real_start_time))
		return BPF_CORE_READ(older, real_start_time);
	return 0;
}

static __always_inline __u32 depth(struct task_struct *task)
{
	for (__u32 ancestors = 0; ancestors < MAX_DEPTH; ancestors++) {
		struct task_struct *parent = BPF_CORE_READ(task, real_parent);

		/* init_task is its own parent. */
		if (!parent || parent == task)
			return ancestors;
		task = parent;
	}
	return MAX_DEPTH;
}

SEC("tracepoint/sched/sched_process_exec")
int process_lineage(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);
	struct process_lineage *event;

	event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
	if (!event)
		return 0;
	event->start_time = start_time(task);
	event->pid = BPF_CORE_READ(task, pid);
	event->tgid = BPF_CORE_READ(task, tgid);
	event->ppid = BPF_CORE_READ(parent, tgid);
	event->uid = BPF_CORE_READ(task, cred, uid.val);
	event->gid = BPF_CORE_READ(task, cred, gid.val);
	event->depth = depth(task);
	BPF_CORE_READ_STR_INTO(&event->comm, task, comm);
	BPF_CORE_READ_STR_INTO(&event->parent_comm, parent, comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
