/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * BPF_CORE_READ() of one member, for objects meant for 4.x: libbpf's macro leaves its result variable uninitialised, which kernels
 * before about 4.8 refuse ("invalid indirect read from stack"); here it is zero before the helper is called. Like BPF_CORE_READ(),
 * gives 0 when the address cannot be read.
 */
#ifndef COREMATRIX_READ_H
#define COREMATRIX_READ_H

#include <bpf/bpf_core_read.h>

#define READ_MEMBER(pointer, member)                                                                                            \
	({                                                                                                                      \
		typeof((pointer)->member) value_ = 0;                                                                           \
		bpf_core_read((void *)&value_, sizeof(value_), &(pointer)->member);                                                     \
		value_;                                                                                                         \
	})

#endif
