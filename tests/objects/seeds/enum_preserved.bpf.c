// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CO-RE guide, same section: a constant "preserved" with the wrong built-in. __builtin_preserve_enum_value() takes two arguments, the second
 * says value or existence, and its result is not a compile-time constant. And TASK_RUNNING is a #define of the kernel: no BTF knows it.
 * DOES NOT COMPILE.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

static const int TASK_RUNNING = __builtin_preserve_enum_value(*(typeof(TASK_RUNNING) *)TASK_RUNNING);

SEC("raw_tp/sched_switch")
int enum_preserved(void *ctx)
{
	return TASK_RUNNING;
}

char LICENSE[] SEC("license") = "GPL";
