// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * A field that kept its name and changed its unit: task_struct.utime counted cputime_t (usually jiffies) up to 4.10 and counts
 * nanoseconds since 4.11 (commit 5613fda9a503 "sched/cputime: Convert task/group cputime to nsecs").
 *
 *   cpu_time_by_version  the CO-RE post's way: LINUX_KERNEL_VERSION decides, CONFIG_HZ converts. No relocation fails on either
 *                        side; only the dead side's is eliminated. A version number knows nothing of backports, nor of kernels before 4.11
 *                        with CONFIG_VIRT_CPU_ACCOUNTING_GEN, whose cputime_t was nanoseconds already.
 *   cpu_time_by_type     asks for what changed: `typedef cputime_t` went away on x86 and arm64 with the conversion (4.11, commit
 *                        b672592f0221). Where it is gone, utime is in nanoseconds.
 *
 * The dead branch holds no poison, so both programs load whatever the guard says: only liveness tells which side runs.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include "last_value.h"
#include "read.h"
#include "task_argument.h"

#define NSEC_PER_SEC 1000000000ULL

extern int LINUX_KERNEL_VERSION __kconfig;
extern int CONFIG_HZ __kconfig;

typedef unsigned long cputime_t;

struct task_struct {
	__u64 utime;
} __core;

LAST_VALUE(last_utime, __u64);

SEC("kprobe/wake_up_new_task")
int cpu_time_by_version(void *ctx)
{
	struct task_struct *task = FIRST_ARGUMENT(ctx);
	__u64 utime_ns;

	if (LINUX_KERNEL_VERSION >= KERNEL_VERSION(4, 11, 0))
		utime_ns = READ_MEMBER(task, utime);
	else
		/* First multiply: NSEC_PER_SEC / 300 is not whole. */
		utime_ns = READ_MEMBER(task, utime) * NSEC_PER_SEC / (__u32)CONFIG_HZ;
	return remember(&last_utime, &utime_ns);
}

SEC("kprobe/wake_up_new_task")
int cpu_time_by_type(void *ctx)
{
	struct task_struct *task = FIRST_ARGUMENT(ctx);
	__u64 utime_ns = READ_MEMBER(task, utime);

	if (bpf_core_type_exists(cputime_t))
		utime_ns = utime_ns * NSEC_PER_SEC / (__u32)CONFIG_HZ;
	return remember(&last_utime, &utime_ns);
}

char LICENSE[] SEC("license") = "GPL";
