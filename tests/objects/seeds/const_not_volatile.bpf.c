// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CO-RE post, "Altering behavior": const without volatile. The compiler takes 0 for the value and drops the branch: no read of .rodata, no call of the
 * helper is left in the object, and the loader's switch does nothing.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

const bool use_fancy_helper;
const volatile bool use_fancy_helper_volatile;

SEC("raw_tp/sched_process_exec")
int const_only(void *ctx)
{
	if (use_fancy_helper)
		return bpf_ktime_get_tai_ns() & 1;
	return bpf_ktime_get_ns() & 1;
}

SEC("raw_tp/sched_process_exec")
int const_volatile(void *ctx)
{
	if (use_fancy_helper_volatile)
		return bpf_ktime_get_tai_ns() & 1;
	return bpf_ktime_get_ns() & 1;
}

char LICENSE[] SEC("license") = "GPL";
