// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * bpf_core_type_matches(): does the kernel's type have everything that our declaration says, with the same member types? Stricter than
 * type_exists, which asks for the name and kind only. Relocation since libbpf 1.0; needs clang 15 or newer, older ones drop
 * the record without a word.
 *
 *   sched_switch_state   The tracepoint got a fourth argument, `unsigned int prev_state`, in 5.18 (commit fa2c3254d7cf; moved to the end by
 *                        9c2136be0878). Its prototype is in BTF as typedef btf_trace_sched_switch. Where that matches, ctx[3] may be
 *                        read; elsewhere the verifier refuses that load ("func 'sched_switch' doesn't have 4-th argument"), so it
 *                        must be dead code.
 *   renamed_member       task_struct with `__state`, with `state`, and with a `pid` of the wrong sign. Only the first ever matches, and this
 *                        is a trap: 5.10 has `volatile long state`, yet a match compares the NAMES of integers, and clang calls
 *                        `long` "long" while gcc, which built the kernel, calls it "long int". With `unsigned int` both agree.
 *                        So no declaration with a long (or long long) member matches any kernel built with gcc: ask field_exists.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "last_value.h"

struct task_struct {
	int pid;
	unsigned int __state;
} __core;

struct task_struct___before_5_14 {
	int pid;
	volatile long state;
} __core;

/* No kernel declares its pid so. */
struct task_struct___unsigned_pid {
	unsigned int pid;
} __core;

typedef void (*btf_trace_sched_switch)(void *, bool, struct task_struct *, struct task_struct *, unsigned int);

LAST_VALUE(answers, __u64);

SEC("tp_btf/sched_switch")
int sched_switch_state(__u64 *ctx)
{
	__u64 answer = ~0ULL;

	if (bpf_core_type_matches(btf_trace_sched_switch))
		answer = (__u32)ctx[3];
	return remember(&answers, &answer);
}

SEC("raw_tp/sched_process_exec")
int renamed_member(void *ctx)
{
	__u64 answer = 0;
	/* Here and not in remember(): a function's first instruction has the function's line, and is to be no relocation. */
	__u32 key = 0;

	if (bpf_core_type_matches(struct task_struct))
		answer |= 1;
	if (bpf_core_type_matches(struct task_struct___before_5_14))
		answer |= 2;
	if (bpf_core_type_matches(struct task_struct___unsigned_pid))
		answer |= 4;
	bpf_map_update_elem(&answers, &key, &answer, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
