/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * struct pt_regs for objects that are compiled once per architecture (-D__TARGET_ARCH_x86, -D__TARGET_ARCH_arm64), under the names
 * that <bpf/bpf_tracing.h> expects of user-space headers. The layout is ABI (ptrace, signal frames), so it is not relocated: these are
 * plain loads from the program's context, which kernels without any BTF accept too.
 */
#ifndef COREMATRIX_PT_REGS_H
#define COREMATRIX_PT_REGS_H

#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, rbp, rbx;
	unsigned long r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi;
	unsigned long orig_rax, rip, cs, eflags, rsp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp, pc, pstate;
};
struct pt_regs {
	struct user_pt_regs user_regs;
};
#else
#error "compile with -D__TARGET_ARCH_x86 or -D__TARGET_ARCH_arm64: this program reads registers"
#endif

#endif
