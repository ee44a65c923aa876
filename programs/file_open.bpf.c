// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Which file was opened: kprobe on vfs_open(const struct path *path, struct file *file), the path's dentry, its inode and name.
 *
 * Compiled once for each architecture, since PT_REGS_PARM1() picks the register when compiling. The name hangs on a pointer inside dentry:
 * read the pointer (relocated), then the text it points to (not relocated). The CO-RE guide uses BPF_CORE_READ_STR_INTO(.., d_name.name),
 * which copies the bytes of the pointer itself (docs/seeds.md).
 * inode.i_ino is unsigned long in 6.18 and u64 in 7.2: the same size on 64-bit kernels, so the read needs no care.
 */
#include "types.h"
#include "pt_regs.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>

struct qstr {
	const unsigned char *name;
} __core;

struct inode {
	unsigned long i_ino;
} __core;

struct dentry {
	struct qstr d_name;
	struct inode *d_inode;
} __core;

struct path {
	struct dentry *dentry;
} __core;

struct file_event {
	__u64 inode;
	__u32 pid;
	char filename[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} events SEC(".maps");

SEC("kprobe/vfs_open")
int file_open(struct pt_regs *ctx)
{
	struct path *path = (void *)PT_REGS_PARM1(ctx);
	struct dentry *dentry = BPF_CORE_READ(path, dentry);
	const unsigned char *name = BPF_CORE_READ(dentry, d_name.name);
	struct file_event event = {};

	event.pid = bpf_get_current_pid_tgid() >> 32;
	event.inode = BPF_CORE_READ(dentry, d_inode, i_ino);
	bpf_probe_read_kernel_str(event.filename, sizeof(event.filename), name);
	bpf_ringbuf_output(&events, &event, sizeof(event), 0);
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
