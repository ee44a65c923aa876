/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What a program saw last, kept where `bpftool map dump` and tests can read it: an array of one element. Loads on anything since
 * arrays came (3.19); without such a use the compiler would drop the reads that a program is about.
 */
#ifndef COREMATRIX_LAST_VALUE_H
#define COREMATRIX_LAST_VALUE_H

#include <bpf/bpf_helpers.h>

#define LAST_VALUE(name, value_type)                                                                                            \
	struct {                                                                                                                \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                                               \
		__uint(max_entries, 1);                                                                                         \
		__type(key, __u32);                                                                                             \
		__type(value, value_type);                                                                                      \
	} name SEC(".maps")

/* Puts `value`, which must be of the map's type, into `last`; gives a program's return value. */
static __always_inline int remember(void *last, const void *value)
{
	__u32 key = 0;

	bpf_map_update_elem(last, &key, value, 0);
	return 0;
}

#endif
