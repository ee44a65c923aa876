/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* A struct that every kernel has, and a flavor of it with members that none has: their reads are poison, their checks are 0. */
#ifndef COREMATRIX_MISSING_H
#define COREMATRIX_MISSING_H

#include "types.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

struct task_struct {
	int pid;
	int tgid;
} __core;

struct task_struct___missing {
	int corematrix_missing;
	int corematrix_missing_too;
} __core;

#endif
