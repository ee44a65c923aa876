// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Reference guide, "existence checks never fail". They do where two same-named types of the target disagree about the offset: libbpf compares offsets for every
 * kind of relocation and gives up on the object. (Compiled with -DTARGET, this file's .BTF is such a target.)
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

struct corematrix_pair pair;
struct corematrix_pair___other other;
#else
struct corematrix_pair {
	int field;
} __core;

SEC("raw_tp/sched_process_exec")
int exists_ambiguous(void *ctx)
{
	return bpf_core_field_exists(struct corematrix_pair, field);
}
#endif

char LICENSE[] SEC("license") = "GPL";
