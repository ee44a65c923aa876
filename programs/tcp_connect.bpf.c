// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Who connects where: kprobe on tcp_connect(struct sock *sk), where addresses and ports are known (at the entry of tcp_v4_connect(), which
 * guides like to probe, they are not set yet).
 *
 * All of it lies in sock.__sk_common, most of it in unnamed unions there. The names inet_daddr, inet_dport, inet_num of the kernel's
 * sources are macros for these members, so BTF does not know them: BPF_CORE_READ(inet, inet_daddr) is poison on every kernel
 * (docs/seeds.md). inet_saddr and inet_sport are members, and differ in meaning from skc_rcv_saddr.
 * Addresses are arrays or need no conversion: _INTO copies them in network order. skc_v6_daddr exists only with CONFIG_IPV6, hence the guard.
 */
#include "types.h"
#include "pt_regs.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

#define AF_INET 2
#define AF_INET6 10

struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
} __core;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	struct in6_addr skc_v6_daddr;
} __core;

struct sock {
	struct sock_common __sk_common;
} __core;

struct inet_sock {
	__be16 inet_sport;
} __core;

struct connect_event {
	__u32 pid;
	__u16 family;
	__be16 sport, dport;
	__u8 saddr[4];
	__u8 daddr[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} events SEC(".maps");

SEC("kprobe/tcp_connect")
int tcp_connect(struct pt_regs *ctx)
{
	struct sock *sk = (void *)PT_REGS_PARM1(ctx);
	/* A TCP socket begins with its inet_sock, and that with its sock. */
	struct inet_sock *inet = (void *)sk;
	struct connect_event event = {};

	event.pid = bpf_get_current_pid_tgid() >> 32;
	event.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	event.sport = BPF_CORE_READ(inet, inet_sport);
	event.dport = BPF_CORE_READ(sk, __sk_common.skc_dport);
	if (event.family == AF_INET) {
		bpf_core_read(&event.saddr, sizeof(event.saddr), &sk->__sk_common.skc_rcv_saddr);
		bpf_core_read(&event.daddr, sizeof(__be32), &sk->__sk_common.skc_daddr);
	} else if (event.family == AF_INET6 && bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		BPF_CORE_READ_INTO(&event.daddr, sk, __sk_common.skc_v6_daddr.in6_u.u6_addr8);
	}
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
