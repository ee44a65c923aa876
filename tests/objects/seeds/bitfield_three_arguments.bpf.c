// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CO-RE post: BPF_CORE_READ_BITFIELD_PROBED() with a third argument for the result. The macro has two and returns the value.
 * DOES NOT COMPILE.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct tcp_sock {
	unsigned char is_cwnd_limited : 1;
} __core;

SEC("raw_tp/tcp_retransmit_skb")
int bitfield_three_arguments(__u64 *ctx)
{
	struct tcp_sock *tp = (void *)ctx[0];
	__u64 is_cwnd_limited;

	BPF_CORE_READ_BITFIELD_PROBED(tp, is_cwnd_limited, &is_cwnd_limited);
	return is_cwnd_limited;
}

char LICENSE[] SEC("license") = "GPL";
