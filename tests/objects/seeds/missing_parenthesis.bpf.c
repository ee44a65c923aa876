// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Reference guide, bpf_core_field_exists(): the null-pointer form of the bpf_cookie check lacks a closing parenthesis.
 * DOES NOT COMPILE. programs/bpf_cookie.bpf.c has it.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

union bpf_attr {
	struct {
		struct {
			__u64 bpf_cookie;
		} perf_event;
	} link_create;
} __core;

SEC("raw_tp/sched_process_exec")
int missing_parenthesis(void *ctx)
{
	if (bpf_core_field_exists(
		    ((union bpf_attr *)0)->link_create.perf_event.bpf_cookie) {
		return 1;
	}
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
