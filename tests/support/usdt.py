"""A program with USDT probes, and an object whose programs attach to them."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from tests.support.objects import clang

# Notes as <sys/sdt.h> writes them (https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation), by hand:
# three places of two probes, one with a semaphore. The program ends with what the semaphore counts.
_TOOL = r"""
unsigned short counter __attribute__((section(".probes"))) = 0;
#define PROBE(NAME, COUNTER) __asm__ volatile( \
	"990: nop\n" \
	".pushsection .note.stapsdt,\"\",\"note\"\n.balign 4\n.4byte 992f-991f, 994f-993f, 3\n" \
	"991: .asciz \"stapsdt\"\n992: .balign 4\n993: .8byte 990b\n.8byte _.stapsdt.base\n.8byte " COUNTER "\n" \
	".asciz \"tool\"\n.asciz \"" NAME "\"\n.asciz \"\"\n994: .balign 4\n.popsection\n" \
	".ifndef _.stapsdt.base\n" \
	".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n.weak _.stapsdt.base\n" \
	".hidden _.stapsdt.base\n_.stapsdt.base: .space 1\n.size _.stapsdt.base, 1\n.popsection\n.endif\n")
__attribute__((noinline)) static void start(void) { PROBE("started", "0"); }
int main(void) { start(); PROBE("started", "0"); PROBE("counted", "counter"); return counter; }
"""
_PROGRAMS = r"""
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>
char _license[] SEC("license") = "GPL";
SEC("usdt/TOOL:tool:started") int there(struct pt_regs *ctx) { return bpf_usdt_arg_cnt(ctx) > 12; }
SEC("usdt/TOOL:tool:counted") int counted(struct pt_regs *ctx) { return bpf_usdt_arg_cnt(ctx) > 12; }
SEC("usdt/TOOL:tool:stopped") int gone(struct pt_regs *ctx) { return bpf_usdt_arg_cnt(ctx) > 12; }
"""


def build_tool(place: Path, *flags: str) -> Path:
    """The program, in `place`."""
    source, built = place / "tool.c", place / "tool"
    source.write_text(_TOOL)
    subprocess.run([clang(), "-O1", *flags, "-o", built, source], check=True)
    return built


def build_object(place: Path, tool: str) -> Path:
    """`there`, `counted` and `gone`, with the tool under this path; skipped by name without libbpf's headers."""
    if platform.machine() != "x86_64" or not Path("/usr/include/bpf/usdt.bpf.h").exists():
        pytest.skip("needs x86_64 and <bpf/usdt.bpf.h> (apt-get install libbpf-dev)")
    source, built = place / "usdt.bpf.c", place / "usdt.bpf.o"
    source.write_text(_PROGRAMS.replace("TOOL", tool))
    flags = ["--target=bpf", "-g", "-O2", "-D__TARGET_ARCH_x86", "-I/usr/include/x86_64-linux-gnu"]
    subprocess.run([clang(), *flags, "-c", source, "-o", built], check=True)
    return built
