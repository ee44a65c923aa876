"""Attaching on real kernels: what each has by its own history, what is gone, and that nothing is left attached."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from harness import backends
from harness.backends import execution
from harness.session import JudgeRequest
from tests.support import guests
from tests.support.objects import compile_object

pytestmark = pytest.mark.vm

SOURCE = Path(__file__).parents[1] / "objects" / "attach.bpf.c"
# Links for kprobe.multi came with 5.18 (0dcac2725406), for tcx with 6.6 (e420bed02507).
LATER = {"multi_there", "tcx_since_6_6"}
GONE = {
    "kprobe_gone": "symbol gone", "multi_gone": "symbol gone",
    "tp_gone": "tracepoint gone", "raw_gone": "tracepoint gone",
    "tp_too_far": "argument list changed", "raw_too_many": "argument list changed",
}  # fmt: skip
UNTRIED = {"tc_by_netlink", "uprobe_untried"}

# What the kernel itself lists of links and of programs on cgroups, kprobes and lo.
LEFT = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
attr = ctypes.create_string_buffer(struct.pack("=III", 0, 0, 0))
links = libc.syscall(321, 31, attr, 12) == 0
print(links, open("/sys/kernel/tracing/kprobe_events").read(), open("/sys/kernel/tracing/enabled_functions").read())
"""


@pytest.mark.parametrize(
    ("identity", "refused"), [("debian-5.10-cloud-amd64", LATER), ("debian-6.12-cloud-amd64", set())]
)
def test_attachable_or_why_not(identity: str, refused: set[str], tmp_path: Path) -> None:
    kernel = guests.kernel(identity)
    data = compile_object(SOURCE, tmp_path / "attach.o").read_bytes()
    session = backends.open_session(kernel, guests.options(kernel))
    left = b""

    def take(_stream: str, data: bytes) -> None:
        nonlocal left
        left += data

    try:
        request = JudgeRequest(name="attach", attach=True, evidence=False)
        facts = session.judge(request, data, lambda _message: None)
        command = execution.Command(argv=("python3", "-c", LEFT))
        execution.run(session, command, seconds=60, on_output=take)
    finally:
        session.close()
    assert [prog["name"] for prog in facts["progs"] if not prog["loaded"]] == []
    found: dict[str, dict[str, Any]] = {prog["name"]: prog["attach"] for prog in facts["progs"]}
    for name, attach in found.items():
        wanted = "refused" if name in refused | set(GONE) else "not_attempted" if name in UNTRIED else "attached"
        assert (name, attach["status"]) == (name, wanted), attach
    for name, words in GONE.items():
        assert words in found[name]["error"]
    for name in refused:
        assert "has no" in found[name]["error"]
    assert left.split() == [b"False"], base64.b64encode(left)


def test_a_verdict_does_not_depend_on_attaching(tmp_path: Path) -> None:
    """Without `attach` in the request nothing is attached, and the facts are otherwise the same."""
    kernel = guests.kernel("debian-6.12-cloud-amd64")
    data = compile_object(SOURCE, tmp_path / "attach.o").read_bytes()
    session = backends.open_session(kernel, guests.options(kernel))
    try:
        plain, attached = (
            session.judge(JudgeRequest(name="attach", attach=attach, evidence=False), data, lambda _message: None)
            for attach in (False, True)
        )
    finally:
        session.close()
    assert [prog["attach"] for prog in plain["progs"]] == [None] * len(plain["progs"])
    verdicts = [[(prog["name"], prog["loaded"], prog["errno"]) for prog in f["progs"]] for f in (plain, attached)]
    assert verdicts[0] == verdicts[1]
