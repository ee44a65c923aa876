/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * x86's thread_struct.fs became thread_struct.fsbase in 4.7: commit 296f781a4b78 "x86/asm/64: Rename thread_struct's fs and gs to
 * fsbase and gsbase". The outer struct needs a flavor too, since a member's type cannot be flavored where it is used.
 */
#ifndef COREMATRIX_FSBASE_H
#define COREMATRIX_FSBASE_H

struct thread_struct {
	unsigned long fsbase;
} __core;

struct thread_struct___before_4_7 {
	unsigned long fs;
} __core;

struct task_struct {
	struct thread_struct thread;
} __core;

struct task_struct___before_4_7 {
	struct thread_struct___before_4_7 thread;
} __core;

#endif
