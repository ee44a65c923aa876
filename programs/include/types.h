/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The scalar types and the few UAPI constants that our programs and libbpf's bpf_helpers.h need, so that neither a vmlinux.h
 * nor <linux/bpf.h> (and with it the build machine's <asm/types.h>) takes part in a build.
 *
 * Kernel structs are declared by each program, with only the members it reads: CO-RE looks members up by name in the
 * running kernel's BTF, so order, size and everything left out are of no account.
 */
#ifndef COREMATRIX_TYPES_H
#define COREMATRIX_TYPES_H

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;
typedef int pid_t;

#define true 1
#define false 0
#define NULL ((void *)0)

/* Every access to a member of a type so marked becomes a CO-RE relocation. */
#define __core __attribute__((preserve_access_index))

/*
 * Map types (enum bpf_map_type of the UAPI: fixed for ever). Macros, because an enum in the object's BTF would be one more type
 * that looks as if it were meant for relocation.
 */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_MAP_TYPE_PERF_EVENT_ARRAY 4
#define BPF_MAP_TYPE_PERCPU_ARRAY 6
#define BPF_MAP_TYPE_RINGBUF 27
#define BPF_F_CURRENT_CPU 0xffffffffULL

#define TASK_COMM_LEN 16

#endif
