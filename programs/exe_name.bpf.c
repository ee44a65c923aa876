// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The file name of the running executable, through a chain of pointers: BPF_CORE_READ() makes one relocation and one
 * bpf_probe_read_kernel() of each `->`.
 *
 * `f_path` is the field's name; the reference guide writes `fpath`, which no kernel has (docs/seeds.md). What the chain meets:
 * file.f_path and dentry.d_name are plain members in 6.12 and members of anonymous unions in 6.18: anonymous members cost no accessor,
 * so the same four relocations resolve on all of them.
 *
 * The name is a pointer (`const unsigned char *`), not an array inside dentry: it is read as a pointer by the chain, and then
 * followed by a plain bpf_probe_read_kernel_str(). BPF_CORE_READ_STR_INTO(.., dentry, d_name.name) would copy the pointer's own bytes.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "exe_path.h"
#include "last_value.h"

struct exe {
	__u64 inode;
	char name[64];
};

LAST_VALUE(last_exe, struct exe);

SEC("raw_tp/sched_process_exec")
int exe_name(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	const unsigned char *name;
	struct exe exe = {};

	name = BPF_CORE_READ(task, mm, exe_file, f_path.dentry, d_name.name);
	bpf_probe_read_kernel_str(exe.name, sizeof(exe.name), name);
	/* The same walk into a variable of ours: the result of the last read is the macro's value. */
	if (BPF_CORE_READ_INTO(&exe.inode, task, mm, exe_file, f_inode, i_ino))
		return 0;
	return remember(&last_exe, &exe);
}

char LICENSE[] SEC("license") = "GPL";
