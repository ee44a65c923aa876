/* SPDX-License-Identifier: Apache-2.0 */
/*
 * LD_PRELOAD: the time of day of a process jumps by $CLOCK_JUMP seconds as soon as the file $CLOCK_JUMP_WHEN exists. The other clocks go on as they are, as
 * when somebody sets the date. Python and QEMU ask for the time through clock_gettime(2), gettimeofday(2) or time(2).
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long jump(void)
{
	static const char *when, *by;

	if (!when) {
		when = getenv("CLOCK_JUMP_WHEN");
		by = getenv("CLOCK_JUMP");
	}
	return when && by && access(when, F_OK) == 0 ? atol(by) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now)
{
	int result = syscall(SYS_clock_gettime, id, now);

	if (!result && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE))
		now->tv_sec += jump();
	return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	int result = syscall(SYS_gettimeofday, now, zone);

	if (!result)
		now->tv_sec += jump();
	return result;
}

time_t time(time_t *out)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	if (out)
		*out = now.tv_sec;
	return now.tv_sec;
}
