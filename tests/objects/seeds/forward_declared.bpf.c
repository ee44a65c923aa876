// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Reference guide, bpf_core_type_exists(): its warning is right. A forward declaration only finds forward declarations, so the check is 0
 * where the kernel has the struct; defined, even if empty, it is 1.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct bpf_ringbuf;
struct bpf_ringbuf___defined {
};

SEC("raw_tp/sched_process_exec")
int forward_declared(void *ctx)
{
	return bpf_core_type_exists(struct bpf_ringbuf);
}

SEC("raw_tp/sched_process_exec")
int defined(void *ctx)
{
	return bpf_core_type_exists(struct bpf_ringbuf___defined);
}

char LICENSE[] SEC("license") = "GPL";
