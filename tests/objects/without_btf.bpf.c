// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Compiled without -g (the Makefile's and the tests' doing: the name says so): no BTF, no .BTF.ext, no relocation. libbpf loads it, and so must we; the
 * report says that there was nothing to relocate.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>

SEC("socket")
int without_btf(void *ctx)
{
	return bpf_get_prandom_u32() & 1;
}

char LICENSE[] SEC("license") = "GPL";
