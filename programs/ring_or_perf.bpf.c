// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Feature detection by type and by enumerator: the BPF ring buffer (5.8, commit 457f44363a88), else the perf buffer (4.3/4.4).
 *
 *   ring_by_type     bpf_core_type_exists(struct bpf_ringbuf). The struct must be DEFINED here, even if empty: a forward declaration
 *                    only ever finds forward declarations, and the check would be 0 on every kernel (docs/seeds.md).
 *   ring_by_helper   bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ringbuf_reserve): the helper itself is what we ask for.
 *
 * Both guard a call of a helper, not a relocation: what must be dead code on a kernel without it is `call 131`, an unknown function there.
 * Every kernel of the default matrix has the ring buffer, so there the perf side is the dead one. Below 5.8 the ring-buffer MAP
 * cannot be created either: the loading application turns it off (bpf_map__set_autocreate(), libbpf 1.0), and libbpf poisons its use.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct bpf_ringbuf {
};

enum bpf_func_id {
	BPF_FUNC_ringbuf_reserve = 131,
};

struct task_struct {
	pid_t pid;
} __core;

struct event {
	pid_t pid;
	char comm[TASK_COMM_LEN];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
} perf SEC(".maps");

static __always_inline void fill(struct event *event)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	event->pid = BPF_CORE_READ(task, pid);
	bpf_get_current_comm(event->comm, sizeof(event->comm));
}

static __always_inline int through_ring(void)
{
	struct event *event = bpf_ringbuf_reserve(&ring, sizeof(*event), 0);

	if (!event)
		return 0;
	fill(event);
	bpf_ringbuf_submit(event, 0);
	return 0;
}

static __always_inline int through_perf(void *ctx)
{
	struct event event = {};

	fill(&event);
	bpf_perf_event_output(ctx, &perf, BPF_F_CURRENT_CPU, &event, sizeof(event));
	return 0;
}

SEC("raw_tp/sched_process_exec")
int ring_by_type(void *ctx)
{
	if (bpf_core_type_exists(struct bpf_ringbuf))
		return through_ring();
	return through_perf(ctx);
}

SEC("raw_tp/sched_process_exec")
int ring_by_helper(void *ctx)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_ringbuf_reserve))
		return through_ring();
	return through_perf(ctx);
}

char LICENSE[] SEC("license") = "GPL";
