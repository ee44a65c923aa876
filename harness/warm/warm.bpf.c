// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * What a guest judges before it is saved, so that what every object needs is hot in the saved memory: the loader's code specialised
 * by its interpreter, the kernel's BTF parsed by the kernel, Kconfig and symbols read. What comes out is thrown away.
 *
 *   accepted   relocations of the usual kinds behind existence checks, a subprogram, maps, .rodata, an extern: evidence and flips
 *   refused    a field no kernel has, unguarded: the log of a refusal, and analysis
 *   attached   a BTF attach target
 *
 * The object lies beside this file, for nobody needs a compiler to run a guest. In programs/:
 *     clang-19 --target=bpf -g -O2 -mcpu=v1 -Wall -Werror -Iinclude -fdebug-compilation-dir=. -c ../harness/warm/warm.bpf.c -o warm.bpf.o
 *     llvm-strip-19 -g warm.bpf.o
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include "read.h"

struct mm_struct {
	void *exe_file;
} __core;

struct task_struct {
	int pid;
	char comm[16];
	struct task_struct *real_parent;
	struct mm_struct *mm;
	unsigned int __state;
} __core;

struct task_struct___older {
	long state;
} __core;

struct task_struct___none {
	int corematrix_none;
} __core;

enum bpf_map_type___any {
	BPF_MAP_TYPE_ARRAY___any = 1,
};

extern int LINUX_KERNEL_VERSION __kconfig;
extern int CONFIG_HZ __kconfig __weak;

const volatile int chosen = 1;
__u64 counter;

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} last SEC(".maps");

static __attribute__((noinline)) __u64 state_of(struct task_struct *task)
{
	struct task_struct___older *older = (void *)task;
	__u64 state = 0;

	if (bpf_core_field_exists(task->__state))
		state = READ_MEMBER(task, __state);
	if (bpf_core_field_exists(older->state))
		state = READ_MEMBER(older, state);
	return state;
}

SEC("kprobe/do_exit")
int accepted(void *ctx)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	struct task_struct___none *none = (void *)task;
	__u64 found = bpf_core_type_size(struct mm_struct) + bpf_core_field_size(task->comm) + CONFIG_HZ;
	struct mm_struct *memory = READ_MEMBER(task, mm);
	struct task_struct *parent = READ_MEMBER(task, real_parent);
	__u32 key = 0;

	if (chosen && LINUX_KERNEL_VERSION)
		found += READ_MEMBER(task, pid);
	if (bpf_core_field_exists(none->corematrix_none))
		found += READ_MEMBER(none, corematrix_none);
	if (bpf_core_enum_value_exists(enum bpf_map_type___any, BPF_MAP_TYPE_ARRAY___any))
		found += bpf_core_enum_value(enum bpf_map_type___any, BPF_MAP_TYPE_ARRAY___any);
	if (bpf_core_type_exists(struct mm_struct) && bpf_core_type_matches(struct mm_struct))
		found += (__u64)READ_MEMBER(memory, exe_file);
	found += state_of(parent);
	bpf_map_update_elem(&last, &key, &found, 0);
	counter += found;
	return 0;
}

SEC("kprobe/do_exit")
int refused(void *ctx)
{
	struct task_struct___none *none = (void *)bpf_get_current_task();

	counter += READ_MEMBER(none, corematrix_none);
	return 0;
}

SEC("fentry/do_exit")
int attached(void *ctx)
{
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
