// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Bitfields of struct tcp_sock, wherever a kernel keeps them.
 *
 * Each use makes six relocations: byte_off and byte_sz say what to load, lshift_u64 and rshift_u64 cut the field out of the
 * 64-bit value, signed chooses one of two right shifts (two relocations, one dead). Of the direct form's `switch (byte_sz)` one arm lives and three are dead code.
 * What moves: bits of tcp_sock are added nearly every release (6.8, commit d5fed5addb2b, reordered the struct), so the byte and the shift
 * differ from kernel to kernel while the source stays.
 *
 *   bitfields_probed   BPF_CORE_READ_BITFIELD_PROBED(), which has two arguments and returns the value (the CO-RE post shows three:
 *                      docs/seeds.md); any program type, here a raw tracepoint whose first argument is the socket.
 *   bitfields_direct   BPF_CORE_READ_BITFIELD(): plain loads, for pointers the verifier knows by type. tcp_init_cwnd() is among the few
 *                      global functions that take a struct tcp_sock, so no cast from struct sock hides the type.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "last_value.h"

struct tcp_sock {
	__u8 is_cwnd_limited : 1;
	__u8 syn_data : 1;
} __core;

struct flags {
	__u64 is_cwnd_limited;
	__u64 syn_data;
};

LAST_VALUE(last_flags, struct flags);

struct bpf_raw_tracepoint_args {
	__u64 args[1];
};

SEC("raw_tp/tcp_retransmit_skb")
int bitfields_probed(struct bpf_raw_tracepoint_args *ctx)
{
	const struct tcp_sock *tp = (const void *)ctx->args[0];
	struct flags flags = {};

	flags.is_cwnd_limited = BPF_CORE_READ_BITFIELD_PROBED(tp, is_cwnd_limited);
	flags.syn_data = BPF_CORE_READ_BITFIELD_PROBED(tp, syn_data);
	return remember(&last_flags, &flags);
}

SEC("fentry/tcp_init_cwnd")
int BPF_PROG(bitfields_direct, const struct tcp_sock *tp)
{
	struct flags flags = {};

	flags.is_cwnd_limited = BPF_CORE_READ_BITFIELD(tp, is_cwnd_limited);
	flags.syn_data = BPF_CORE_READ_BITFIELD(tp, syn_data);
	return remember(&last_flags, &flags);
}

char LICENSE[] SEC("license") = "GPL";
