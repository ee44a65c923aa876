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

struct qstr {
	const unsigned char *name;
} __core;

struct dentry {
	struct qstr d_name;
} __core;

struct path {
	struct dentry *dentry;
} __core;

struct inode {
	unsigned long i_ino;
} __core;

struct file {
	struct path f_path;
	struct inode *f_inode;
} __core;

struct mm_struct {
	struct file *exe_file;
} __core;

struct task_struct {
	struct mm_struct *mm;
} __core;

struct exe {
	__u64 inode;
	char name[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct exe);
} last_exe SEC(".maps");

SEC("raw_tp/sched_process_exec")
int exe_name(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	const unsigned char *name;
	struct exe exe = {};
	__u32 key = 0;

	name = BPF_CORE_READ(task, mm, exe_file, f_path.dentry, d_name.name);
	bpf_probe_read_kernel_str(exe.name, sizeof(exe.name), name);
	/* The same walk into a variable of ours: the result of the last read is the macro's value. */
	if (BPF_CORE_READ_INTO(&exe.inode, task, mm, exe_file, f_inode, i_ino))
		return 0;
	bpf_map_update_elem(&last_exe, &key, &exe, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
