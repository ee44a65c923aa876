// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CO-RE guide, "Relocations and Field Sizes": inet_daddr and inet_dport of struct inet_sock. In the kernel's sources these are macros for members
 * of sock.__sk_common; BTF has no such members, and both are poison everywhere. inet_saddr and inet_sport are members.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct inet_sock {
	__be32 inet_saddr;
	__be32 inet_daddr;
	__be16 inet_sport;
	__be16 inet_dport;
} __core;

SEC("raw_tp/tcp_retransmit_skb")
int daddr(__u64 *ctx)
{
	struct inet_sock *inet = (void *)ctx[0];

	return BPF_CORE_READ(inet, inet_daddr) & 1;
}

SEC("raw_tp/tcp_retransmit_skb")
int dport(__u64 *ctx)
{
	struct inet_sock *inet = (void *)ctx[0];

	return BPF_CORE_READ(inet, inet_dport) & 1;
}

SEC("raw_tp/tcp_retransmit_skb")
int source(__u64 *ctx)
{
	struct inet_sock *inet = (void *)ctx[0];

	return (BPF_CORE_READ(inet, inet_saddr) ^ BPF_CORE_READ(inet, inet_sport)) & 1;
}

char LICENSE[] SEC("license") = "GPL";
