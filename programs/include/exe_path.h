/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * The way from a task to the name of its executable: task_struct.mm -> exe_file -> f_path.dentry -> d_name.name, with the members on
 * that way and no others. d_name.name points to the name; it is no array.
 */
#ifndef COREMATRIX_EXE_PATH_H
#define COREMATRIX_EXE_PATH_H

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

#endif
