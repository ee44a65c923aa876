// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Feature detection by a field nested in anonymous members: union bpf_attr.link_create.perf_event.bpf_cookie came with 5.15 (commit
 * 82e6b1eee6a8), together with bpf_get_attach_cookie() (commit 7adfc6c9b315).
 *
 * `link_create` is a named member of an unnamed struct type, `perf_event` one of an unnamed union inside: the names are looked up, the
 * nesting of unnamed things is not. No variable of the type is needed. On 5.10 the check is 0 and the call of helper 174, which that
 * kernel does not know, is dead code; it is not a relocation that is guarded here but a helper.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "last_value.h"

union bpf_attr {
	struct {
		union {
			struct {
				__u64 bpf_cookie;
			} perf_event;
		};
	} link_create;
} __core;

LAST_VALUE(last_cookie, __u64);

SEC("tracepoint/sched/sched_process_exec")
int bpf_cookie(void *ctx)
{
	__u64 cookie = 0;

	if (bpf_core_field_exists(((union bpf_attr *)0)->link_create.perf_event.bpf_cookie))
		cookie = bpf_get_attach_cookie(ctx);
	return remember(&last_cookie, &cookie);
}

char LICENSE[] SEC("license") = "GPL";
