// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Kernel types in user memory: the _USER family relocates like its kernel twin and reads with bpf_probe_read_user() (5.5, commit 6ae08ae3dea2).
 *
 * What a system call was handed lies in user memory, laid out by types that are UAPI (their offsets do not move; the relocation then
 * simply writes the number that was there). The context is relocated too: struct trace_event_raw_sys_enter is a kernel type, and
 * ctx->args[1] a load whose offset comes from it.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define AF_UNIX 1

struct trace_event_raw_sys_enter {
	unsigned long args[6];
} __core;

struct sockaddr {
	unsigned short sa_family;
} __core;

struct sockaddr_un {
	char sun_path[108];
} __core;

struct in_addr {
	__be32 s_addr;
} __core;

struct sockaddr_in {
	__be16 sin_port;
	struct in_addr sin_addr;
} __core;

struct iovec {
	void *iov_base;
	__u64 iov_len;
} __core;

struct user_msghdr {
	struct iovec *msg_iov;
} __core;

struct event {
	__u64 iov_len;
	__u32 address;
	__be16 port;
	__u16 family;
	char text[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} events SEC(".maps");

SEC("tracepoint/syscalls/sys_enter_connect")
int user_connect(struct trace_event_raw_sys_enter *ctx)
{
	struct sockaddr *address = (void *)ctx->args[1];
	struct event event = {};

	bpf_core_read_user(&event.family, sizeof(event.family), &address->sa_family);
	if (event.family == AF_UNIX) {
		struct sockaddr_un *un = (void *)address;

		BPF_CORE_READ_USER_STR_INTO(&event.text, un, sun_path);
	} else {
		struct sockaddr_in *in = (void *)address;

		event.port = BPF_CORE_READ_USER(in, sin_port);
		BPF_CORE_READ_USER_INTO(&event.address, in, sin_addr.s_addr);
	}
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_sendmsg")
int user_sendmsg(struct trace_event_raw_sys_enter *ctx)
{
	struct user_msghdr *message = (void *)ctx->args[1];
	struct event event = {};
	struct sockaddr_un *un;

	/* A chain through two user pointers, then the bytes they lead to. */
	event.iov_len = BPF_CORE_READ_USER(message, msg_iov, iov_len);
	un = BPF_CORE_READ_USER(message, msg_iov, iov_base);
	bpf_core_read_user_str(event.text, sizeof(event.text), &un->sun_path);
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
