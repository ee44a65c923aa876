"""Attaching on real kernels: what each has by its own history, what is gone, and that nothing is left attached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness import backends, cli
from harness.backends import execution, spare_modules
from harness.session import JudgeRequest
from tests.support import guests, usdt
from tests.support.objects import compile_object

pytestmark = pytest.mark.vm

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).parents[1] / "objects" / "attach.bpf.c"
# Links for kprobe.multi came with 5.18 (0dcac2725406), for tcx and uprobe.multi with 6.6 (e420bed02507, 89ae89f53d20).
LATER = {"multi_there", "tcx_since_6_6", "user_multi_since_6_6"}
GONE = {
    "kprobe_gone": "symbol gone", "multi_gone": "symbol gone",
    "tp_gone": "tracepoint gone", "raw_gone": "tracepoint gone",
    "tp_too_far": "argument list changed", "raw_too_many": "argument list changed",
}  # fmt: skip
GONE |= {
    "uprobe_gone": "symbol gone", "half_ssthresh": "the kernel refuses this struct",
    "usdt_without_maps": "no maps for USDT",  # libbpf: "did you forget to include bpf/usdt.bpf.h?"
}  # fmt: skip

# What the kernel itself lists of links, of kprobes and uprobes, of modules, and of what is attached to lo.
LEFT = """
import _socket, ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
attr = ctypes.create_string_buffer(struct.pack("=III", 0, 0, 0))
links = libc.syscall(321, 31, attr, 12) == 0
netlink = _socket.socket(16, _socket.SOCK_RAW, 0)
netlink.send(struct.pack("=IHHII", 36, 38, 0x301, 1, 0) + struct.pack("=BxxxiIII", 0, 1, 0, 0, 0))  # RTM_GETQDISC, dump
qdiscs = b"clsact" in netlink.recv(1 << 16)
tracing = "/sys/kernel/tracing/"
kept = [open(tracing + name).read() for name in ("kprobe_events", "uprobe_events", "enabled_functions")]
modules = [line.split()[0] for line in open("/proc/modules") if line.startswith(("sch_ingress", "cls_bpf", "act_bpf"))]
ca = open("/proc/sys/net/ipv4/tcp_available_congestion_control").read()
print(links, qdiscs, *kept, *modules, "corematrix" in ca)
"""


@pytest.mark.parametrize(
    ("identity", "refused"), [("debian-5.10-cloud-amd64", LATER), ("debian-6.12-cloud-amd64", set())]
)
def test_attachable_or_why_not(identity: str, refused: set[str], tmp_path: Path) -> None:
    facts, left = attached(identity, compile_object(SOURCE, tmp_path / "attach.o").read_bytes())
    found = answers(facts)
    assert_as_it_should_be(found, refused)
    for name in refused:
        assert "has no" in found[name]["error"]
    assert found["uprobe_elsewhere"]["stand_in"].startswith("/opt/tool/bin/tool is not here: tried on getpid()")
    assert found["uprobe_there"]["stand_in"] is None
    assert left.decode().split() == ["False", "False", "False"]


@pytest.mark.parametrize("identity", ["debian-5.10-cloud-amd64", "debian-6.12-cloud-amd64"])
def test_libbpf_attaches_what_it_attaches(identity: str, tmp_path: Path) -> None:
    """bpf_program__attach() where libbpf has one, our own way for the rest, the same answers."""
    data = compile_object(SOURCE, tmp_path / "attach.o", "-DLIBBPF_1_1").read_bytes()
    facts, left = attached(identity, data, loader="libbpf")
    found = answers(facts)
    by_libbpf = {name for name, attach in found.items() if "of libbpf 1." in attach["how"]}
    assert by_libbpf >= {
        "kprobe_there", "kprobe_gone", "tp_there", "tp_gone", "raw_there", "raw_gone", "btf_there", "fentry_there",
        "iter_there", "uprobe_there", "ops_ssthresh",
    }  # fmt: skip
    assert not by_libbpf & {"tc_there", "msg_there", "socket_there", "cgroup_there", "lookup_there"}
    assert_as_it_should_be(found, LATER & set(found) if "5.10" in identity else set())
    assert left.decode().split() == ["False", "False", "False"]


@pytest.mark.parametrize("identity", ["debian-5.10-cloud-amd64", "debian-6.12-cloud-amd64"])
@pytest.mark.parametrize("loader", ["python", "libbpf"])
def test_probes_of_a_binary_that_is_brought_along(
    identity: str, loader: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A static program in the guest, by `run --attach --file`: uprobes where its notes say, semaphore and all."""
    tool = usdt.build_tool(tmp_path, "-static")
    built = usdt.build_object(tmp_path, "/opt/tool/bin/tool")
    words = ["run", built, "-k", identity, "--loader", loader, "--attach", "--json", tmp_path / "run.json", "--quiet"]
    words += ["--output", tmp_path / "runs", "--matrix", ROOT / "kernels.yaml", "--file", f"{tool}:/opt/tool/bin/tool"]
    assert cli.main([str(word) for word in words]) == 0
    text = capsys.readouterr().out
    (cell,) = json.loads((tmp_path / "run.json").read_text())["cells"]
    found = {prog["name"]: prog["attach"] for prog in cell["progs"]}
    assert {name: attach["status"] for name, attach in found.items()} == {
        "there": "attached", "counted": "attached", "gone": "refused",
    }  # fmt: skip
    assert all(attach["stand_in"] is None for attach in found.values())
    assert "tool:stopped" in found["gone"]["error"]
    said = " ".join(text.split())
    assert "usdt/gone ok NO" in said and "usdt/there ok yes" in said and "NO cannot be attached" in said


def attached(identity: str, data: bytes, *, loader: str = "python") -> tuple[dict[str, Any], bytes]:
    """Facts, and what the guest says is left afterwards."""
    kernel = guests.kernel(identity)
    session = backends.open_session(kernel, guests.options(kernel))
    left = b""

    def take(_stream: str, data: bytes) -> None:
        nonlocal left
        left += data

    try:
        spare_modules.hand_over(session, data, guests.store(), lambda _line: None)
        request = JudgeRequest(name="attach", attach=True, evidence=False, loader=loader)
        facts = session.judge(request, data, lambda _message: None)
        command = execution.Command(argv=("python3", "-c", LEFT))
        execution.run(session, command, seconds=60, on_output=take)
    finally:
        session.close()
    return facts, left


def answers(facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert [prog["name"] for prog in facts["progs"] if not prog["loaded"]] == []
    return {prog["name"]: prog["attach"] for prog in facts["progs"]}


def assert_as_it_should_be(found: dict[str, dict[str, Any]], refused: set[str]) -> None:
    for name, attach in found.items():
        wanted = "refused" if name in refused | set(GONE) else "attached"
        assert (name, attach["status"]) == (name, wanted), attach
    for name, words in GONE.items():
        assert words in found[name]["error"]


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
