// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Reference guide, BPF_CORE_READ(): `fpath`, and one example above it `path` (the field is f_path), and in BPF_CORE_READ_INTO() a walk
 * mm->binfmt->executable (linux_binfmt has no such member). Declared here as the guide uses them: all are poison on every kernel.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct dentry {
	struct {
		const unsigned char *name;
	} d_name;
} __core;

struct path {
	struct dentry *dentry;
} __core;

struct file {
	struct path fpath;
	struct path path;
} __core;

struct linux_binfmt {
	struct file *executable;
} __core;

struct mm_struct {
	struct file *exe_file;
	struct linux_binfmt *binfmt;
} __core;

struct task_struct {
	struct mm_struct *mm;
} __core;

SEC("raw_tp/sched_process_exec")
int fpath(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, mm, exe_file, fpath.dentry) != NULL;
}

SEC("raw_tp/sched_process_exec")
int file_path(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, mm, exe_file, path.dentry) != NULL;
}

SEC("raw_tp/sched_process_exec")
int binfmt_executable(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();

	return BPF_CORE_READ(task, mm, binfmt, executable) != NULL;
}

char LICENSE[] SEC("license") = "GPL";
