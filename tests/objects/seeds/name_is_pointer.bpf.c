// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * CO-RE guide, "Type Preservation": BPF_CORE_READ_STR_INTO(&filename, dentry, d_name.name). The last member is a pointer to the name, not an array that
 * holds it: what is copied are the bytes of the pointer. Loads, and reads nonsense. `followed` reads the pointer first. Both keep what
 * they read of the running executable's dentry, so that they can be run and compared.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include "exe_path.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, char[64]);
} names SEC(".maps");

SEC("raw_tp/sched_process_exec")
int as_published(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct dentry *dentry = BPF_CORE_READ(task, mm, exe_file, f_path.dentry);
	char filename[64] = {};
	__u32 key = 0;

	BPF_CORE_READ_STR_INTO(&filename, dentry, d_name.name);
	bpf_map_update_elem(&names, &key, &filename, 0);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int followed(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct dentry *dentry = BPF_CORE_READ(task, mm, exe_file, f_path.dentry);
	char filename[64] = {};
	__u32 key = 1;

	bpf_probe_read_kernel_str(&filename, sizeof(filename), BPF_CORE_READ(dentry, d_name.name));
	bpf_map_update_elem(&names, &key, &filename, 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
