// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Extern Kconfig variables: every type libbpf fills in, strong and weak, set and missing, and the virtual ones.
 *
 * All externs become one read-only array map, `.kconfig`, filled by the loader and frozen before the programs are loaded: the
 * verifier knows the values as constants. What each type takes (libbpf, set_kcfg_value_tri/_num/_str):
 *
 *   bool                  y, n                      char                  the letter y, n or m
 *   enum libbpf_tristate  y, n, m                   char[N]               "text", cut to fit
 *   int of 1, 2, 4, 8 bytes, signed or not: a number that fits; one that does not is an error, not a truncation
 *
 * A missing strong extern fails the whole object (-ESRCH); a missing weak one is 0. "# CONFIG_X is not set" is missing. The loader reads
 * /boot/config-$(uname -r), else /proc/config.gz, and fails without either as soon as one CONFIG_ extern is left, weak or not.
 * The strong ones here are set in each Debian kernel of both architectures.
 */
#include "types.h"
#include <bpf/bpf_helpers.h>
#include "last_value.h"

/* Virtual: made by libbpf, not found in any configuration file. The LINUX_HAS_ ones since libbpf 1.0. */
extern int LINUX_KERNEL_VERSION __kconfig;
extern bool LINUX_HAS_BPF_COOKIE __kconfig;
extern bool LINUX_HAS_SYSCALL_WRAPPER __kconfig;
extern int LINUX_NOT_KNOWN_TO_LIBBPF __kconfig __weak;

/* Strong and set. */
extern bool CONFIG_BPF_SYSCALL __kconfig;
extern char CONFIG_DEBUG_INFO_BTF __kconfig;
extern enum libbpf_tristate CONFIG_IPV6 __kconfig;
extern enum libbpf_tristate CONFIG_VIRTIO_NET __kconfig;
extern unsigned char CONFIG_LOG_BUF_SHIFT __kconfig;
extern unsigned short CONFIG_NR_CPUS __kconfig;
extern int CONFIG_HZ __kconfig;
extern long long CONFIG_DEFAULT_MMAP_MIN_ADDR __kconfig;
extern unsigned long CONFIG_ILLEGAL_POINTER_VALUE __kconfig;
extern const char CONFIG_DEFAULT_HOSTNAME[8] __kconfig;

/* Weak, of the reference guide: set on some kernels. CONFIG_MODPROBE_PATH came with 5.13 (commit 17652f4240f7). */
extern enum libbpf_tristate CONFIG_BPF_PRELOAD __kconfig __weak;
extern bool CONFIG_BPF_JIT_ALWAYS_ON __kconfig __weak;
extern char CONFIG_BPF_JIT_DEFAULT_ON __kconfig __weak;
extern const char CONFIG_MODPROBE_PATH[256] __kconfig __weak;

/* Weak and set nowhere, one of each type: all read as 0. */
extern bool CONFIG_COREMATRIX_NO_BOOL __kconfig __weak;
extern char CONFIG_COREMATRIX_NO_CHAR __kconfig __weak;
extern enum libbpf_tristate CONFIG_COREMATRIX_NO_TRISTATE __kconfig __weak;
extern signed char CONFIG_COREMATRIX_NO_S8 __kconfig __weak;
extern short CONFIG_COREMATRIX_NO_S16 __kconfig __weak;
extern unsigned int CONFIG_COREMATRIX_NO_U32 __kconfig __weak;
extern unsigned long long CONFIG_COREMATRIX_NO_U64 __kconfig __weak;
extern const char CONFIG_COREMATRIX_NO_TEXT[16] __kconfig __weak;

struct config {
	__u64 version, hz, cpus, log_buf_shift, mmap_min_addr, illegal_pointer, flags;
	char hostname[8];
	char modprobe_path;
};

LAST_VALUE(last_config, struct config);

SEC("raw_tp/sched_process_exec")
int kconfig_values(void *ctx)
{
	struct config config = {};

	config.version = LINUX_KERNEL_VERSION;
	config.hz = CONFIG_HZ;
	config.cpus = CONFIG_NR_CPUS;
	config.log_buf_shift = CONFIG_LOG_BUF_SHIFT;
	config.mmap_min_addr = CONFIG_DEFAULT_MMAP_MIN_ADDR;
	config.illegal_pointer = CONFIG_ILLEGAL_POINTER_VALUE;
	config.flags = LINUX_HAS_BPF_COOKIE | LINUX_HAS_SYSCALL_WRAPPER << 1 | CONFIG_BPF_JIT_ALWAYS_ON << 2 |
		       (CONFIG_BPF_JIT_DEFAULT_ON == 'y') << 3 | (CONFIG_BPF_PRELOAD != TRI_NO) << 4;
	for (int i = 0; i < sizeof(config.hostname); i++)
		config.hostname[i] = CONFIG_DEFAULT_HOSTNAME[i];
	config.modprobe_path = CONFIG_MODPROBE_PATH[0];
	return remember(&last_config, &config);
}

/* Known to no kernel: `call 9999` may stand only where the verifier proves that nobody comes. */
static long (*no_such_helper)(void) = (void *)9999;

/*
 * Loads only if every value is what the types above promise and the verifier knows it as a constant: one wrong or unknown value makes
 * the call of a helper that does not exist reachable. A test that the kernel itself judges.
 */
SEC("raw_tp/sched_process_exec")
int kconfig_constants(void *ctx)
{
	if (LINUX_KERNEL_VERSION < KERNEL_VERSION(5, 2, 0) || LINUX_NOT_KNOWN_TO_LIBBPF)
		no_such_helper();
	if (!CONFIG_BPF_SYSCALL || CONFIG_DEBUG_INFO_BTF != 'y')
		no_such_helper();
	if (CONFIG_IPV6 != TRI_YES && CONFIG_IPV6 != TRI_MODULE)
		no_such_helper();
	if (CONFIG_VIRTIO_NET == TRI_NO)
		no_such_helper();
	if (CONFIG_HZ < 100 || CONFIG_HZ > 1000)
		no_such_helper();
	if (CONFIG_ILLEGAL_POINTER_VALUE != 0xdead000000000000UL)
		no_such_helper();
	if (CONFIG_DEFAULT_HOSTNAME[0] != '(' || CONFIG_DEFAULT_HOSTNAME[6])
		no_such_helper();
	if (CONFIG_COREMATRIX_NO_BOOL || CONFIG_COREMATRIX_NO_CHAR || CONFIG_COREMATRIX_NO_TRISTATE != TRI_NO)
		no_such_helper();
	if (CONFIG_COREMATRIX_NO_S8 || CONFIG_COREMATRIX_NO_S16 || CONFIG_COREMATRIX_NO_U32 || CONFIG_COREMATRIX_NO_U64)
		no_such_helper();
	if (CONFIG_COREMATRIX_NO_TEXT[0])
		no_such_helper();
	return 0;
}

char LICENSE[] SEC("license") = "GPL";
