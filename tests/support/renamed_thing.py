"""A program for a member that got another name: `thing.old_name`, and where it exists `thing.new_name`."""

from __future__ import annotations

_TEXT = """
struct thing { int old_name; } PAI;
struct thing___new { int new_name; } PAI;
static long (*const probe_read)(void *dst, u32 size, const void *src) = (void *)4;

SEC("%s")
int guarded(void *ctx)
{
    int value = 0;
    if (field_info(((struct thing___new *)0)->new_name, EXISTS))
        probe_read(&value, sizeof(value), (char *)ctx + field_info(((struct thing___new *)0)->new_name, BYTE_OFF));
    else
        probe_read(&value, sizeof(value), (char *)ctx + field_info(((struct thing *)0)->old_name, BYTE_OFF));
    return value;
}
"""


def guarded(section: str) -> str:
    """C for tests.support.clang.compile_bpf: the types, and `guarded` in that section."""
    return _TEXT % section
