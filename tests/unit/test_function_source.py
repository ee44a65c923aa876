"""Where a function's file hangs in kbuild's lists."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.kernels.function_source import conditions

FILES = {
    "Kbuild": "obj-y += kernel/\nobj-$(CONFIG_NET) += net/\n",
    "net/Makefile": "# obj-$(CONFIG_COMMENT) += ipv4/\nobj-y := core/\nobj-$(CONFIG_INET) += ipv4/\n",
    "net/ipv4/Makefile": "obj-y := route.o \\\n\ttcp.o\nobj-$(CONFIG_TUNNEL) += tunnel.o\n"
    "tunnel-$(CONFIG_SIX) := six.o\ntunnel-y += four.o\n",
    "net/ipv4/tcp.c": "int tcp_used(int x);\n\nstatic inline struct sock *\ntcp_two_lines(void)\n{\n}\n"
    "void tcp_first(struct sock *sk,\n\t       int x)\n{\n\ttcp_six(sk);\n}\n",
    "net/ipv4/six.c": "void tcp_six(struct sock *sk)\n{\n}\n",
    "net/ipv4/four.c": "int tunnel_four(void)\n{\n}\n",
    "kernel/Makefile": "obj-y += fork.o\n",
    "kernel/fork.c": "long do_fork(void)\n{\n\treturn 0;\n}\n",
}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("tcp_first", ["CONFIG_INET net/Makefile:3", "CONFIG_NET Kbuild:2"]),
        ("tcp_two_lines", ["CONFIG_INET net/Makefile:3", "CONFIG_NET Kbuild:2"]),
        ("tcp_six", ["CONFIG_SIX net/ipv4/Makefile:4", "CONFIG_TUNNEL net/ipv4/Makefile:3",
                     "CONFIG_INET net/Makefile:3", "CONFIG_NET Kbuild:2"]),
        ("tunnel_four", ["CONFIG_TUNNEL net/ipv4/Makefile:3", "CONFIG_INET net/Makefile:3", "CONFIG_NET Kbuild:2"]),
        ("do_fork", []),
        ("tcp_used", []),  # declared, never defined
    ],
)  # fmt: skip
def test_the_switches_of_a_function(tmp_path: Path, function: str, expected: list[str]) -> None:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert [f"{item.option} {item.file}:{item.line}" for item in conditions(tmp_path, function)] == expected
