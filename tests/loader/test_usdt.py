"""A USDT probe of a binary made here: libbpf finds it by the binary's notes and attaches to it on this kernel; our own
loader says that this is libbpf's to do.
"""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from tests.support.objects import clang
from tests.support.this_kernel import facts_of, machine, prog_of

# The note of <sys/sdt.h> (https://sourceware.org/systemtap/wiki/UserSpaceProbeImplementation), by hand.
TOOL = r"""
int main(void)
{
	__asm__ volatile(
		"990: nop\n"
		".pushsection .note.stapsdt,\"\",\"note\"\n.balign 4\n.4byte 992f-991f, 994f-993f, 3\n"
		"991: .asciz \"stapsdt\"\n992: .balign 4\n993: .8byte 990b\n.8byte _.stapsdt.base\n.8byte 0\n"
		".asciz \"tool\"\n.asciz \"started\"\n.asciz \"\"\n994: .balign 4\n.popsection\n"
		".pushsection .stapsdt.base,\"aG\",\"progbits\",.stapsdt.base,comdat\n.weak _.stapsdt.base\n"
		".hidden _.stapsdt.base\n_.stapsdt.base: .space 1\n.size _.stapsdt.base, 1\n.popsection\n");
	return 0;
}
"""
PROGRAMS = r"""
#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <stdbool.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/usdt.bpf.h>
char _license[] SEC("license") = "GPL";
SEC("usdt/TOOL:tool:started") int there(struct pt_regs *ctx) { return bpf_usdt_arg_cnt(ctx) > 12; }
SEC("usdt/TOOL:tool:stopped") int gone(struct pt_regs *ctx) { return bpf_usdt_arg_cnt(ctx) > 12; }
"""


def test_usdt(tmp_path: Path) -> None:
    machine()
    if platform.machine() != "x86_64" or not Path("/usr/include/bpf/usdt.bpf.h").exists():
        pytest.skip("needs x86_64 and <bpf/usdt.bpf.h> (apt-get install libbpf-dev)")
    tool, source, built = tmp_path / "tool", tmp_path / "usdt.bpf.c", tmp_path / "usdt.bpf.o"
    (tmp_path / "tool.c").write_text(TOOL)
    source.write_text(PROGRAMS.replace("TOOL", str(tool)))
    subprocess.run([clang(), "-o", tool, tmp_path / "tool.c"], check=True)
    include = "-I/usr/include/x86_64-linux-gnu"
    flags = ["--target=bpf", "-g", "-O2", "-D__TARGET_ARCH_x86", include]
    subprocess.run([clang(), *flags, "-c", source, "-o", built], check=True)
    by_libbpf = facts_of(built.read_bytes(), attach=True, evidence=False, loader="libbpf")
    there, gone = (prog_of(by_libbpf, name)["attach"] for name in ("there", "gone"))
    assert (there["status"], there["how"].startswith("bpf_program__attach()")) == ("attached", True)
    assert (gone["status"], gone["errno"]) == ("refused", 2)
    assert "stopped" in gone["error"]  # libbpf's own words
    ours = prog_of(facts_of(built.read_bytes(), attach=True, evidence=False), "there")["attach"]
    assert ours["status"] == "not_attempted"
    assert "--loader libbpf" in ours["error"]
