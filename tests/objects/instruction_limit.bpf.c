// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A loop of two instructions that the verifier walks through round by round, four instructions around it. At 1,000,000 processed instructions it gives up
 * (BPF_COMPLEXITY_LIMIT_INSNS, kernel 5.2): 499,998 rounds are just accepted, one more is refused.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>

const volatile __u64 rounds = 1;

SEC("raw_tp/sched_process_exec")
int instruction_limit(void *ctx)
{
	__u64 left = rounds;

	asm volatile("again_%=: %[left] += -1; if %[left] != 0 goto again_%=;" : [left] "+r"(left));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
