"""Backends that ask a machine: this one as a plain command, and through a real sshd. The same facts as in-process."""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import backends, payload
from harness.backends import execution
from harness.backends.local import LocalCommand
from harness.backends.served import ServedSession
from harness.boot import GuestPackages
from harness.errors import CorematrixError, InfrastructureError
from harness.kernels import provide
from harness.model.kernel import Kernel, KernelSpec
from harness.model.machines import LocalSource, SshSource, SshTarget, local_architecture
from harness.session import JudgeRequest, SessionOptions
from harness.ssh import SshError
from harness.store import Store
from tests.support import sshd, this_kernel
from tests.support.objects import PROGRAMS, compile_object

OBJECTS = ("task_state", "kconfig", "fancy_helper")
TIMES = {"seconds", "verification_usec"}


def timeless(value: Any) -> Any:
    """Facts without measurements of time, and without the Python that made them."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in {*TIMES, "python"}}
    if isinstance(value, str):
        return re.sub(r"^verification time \d+ usec$", "", value, flags=re.MULTILINE)
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("objects")
    return {n: compile_object(PROGRAMS / f"{n}.bpf.c", directory / f"{n}.o").read_bytes() for n in OBJECTS}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as found:
        yield found


@pytest.fixture
def server(tmp_path: Path) -> Iterator[sshd.Server]:
    this_kernel.machine()
    with sshd.server(tmp_path) as found:
        yield found


def options(store: Store) -> SessionOptions:
    return SessionOptions(store=store, packages=GuestPackages(paths=(), provenance=()))


def kernel(store: Store, source: LocalSource | SshSource) -> Kernel:
    arch = local_architecture()
    assert arch is not None
    spec = KernelSpec(id="box", arch=arch, variant="machine", source=source, backend=source.kind)
    return provide(spec, store, None, lambda _line: None)


def open_ssh(store: Store, target: SshTarget, **changes: Any) -> backends.Backend:
    return backends.open_session(kernel(store, SshSource(target=target, **changes)), options(store))


def unnumbered(facts: dict[str, Any]) -> dict[str, Any]:
    """Final instructions without the descriptors of maps, which are a process's own."""
    for prog in facts["progs"]:
        code = bytearray(base64.b64decode(prog["insns"]))
        for ref in prog["refs"]:
            if ref["kind"] in {"map_fd", "map_value"}:
                code[8 * ref["insn"] + 4 : 8 * ref["insn"] + 8] = bytes(4)
        prog["insns"] = code.hex()
    return facts


def judged(session: backends.Backend, objects: dict[str, bytes]) -> dict[str, Any]:
    answers = {n: session.judge(JudgeRequest(name=n), data, lambda _m: None) for n, data in objects.items()}
    return {n: timeless(unnumbered(facts)) for n, facts in answers.items()}


def in_process(objects: dict[str, bytes]) -> dict[str, Any]:
    return {n: timeless(unnumbered(this_kernel.facts_of(data, name=n))) for n, data in objects.items()}


def test_this_machine_as_a_command_gives_the_same_facts(store: Store, objects: dict[str, bytes]) -> None:
    expected = in_process(objects)
    session = backends.open_session(kernel(store, LocalSource()), options(store))
    try:
        assert judged(session, objects) == expected
        assert session.kernel.release == os.uname().release
        assert session.kernel.source["unprivileged_bpf_disabled"] == this_kernel.machine().facts()[
            "unprivileged_bpf_disabled"
        ]  # fmt: skip
    finally:
        session.close()


def as_nobody(store: Store, *capabilities: str) -> ServedSession:
    """A session whose command is uid 65534 with these capabilities only."""
    this_kernel.machine()
    if shutil.which("setpriv") is None or not Path("/usr/bin/python3").exists():
        pytest.skip("needs util-linux's setpriv and a /usr/bin/python3")
    names = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    wrapper = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", f"--inh-caps={names}"]
    wrapper += [f"--ambient-caps={names}", f"--bounding-set={names}", "--"]
    # This Python may lie in root's home, where uid 65534 cannot go.
    wrapper += ["sh", "-c", 'shift; exec /usr/bin/python3 "$@"', "sh"]
    given = kernel(store, LocalSource())
    return ServedSession(given, options(store), lambda: LocalCommand(payload.sources(), None, wrapper))


def test_without_privileges_nothing_is_judged(store: Store) -> None:
    with pytest.raises(InfrastructureError, match=r"EPERM to uid 65534.*\n.*CAP_BPF and CAP_PERFMON"):
        as_nobody(store)


def test_bpf_and_perfmon_are_enough_and_what_they_hide_is_said(store: Store, objects: dict[str, bytes]) -> None:
    with as_nobody(store, "bpf", "perfmon") as session:
        notes = " ".join(session.provenance.notes)
        assert "BTF of kernel modules" in notes
        assert "/proc/kallsyms" in notes
        facts = session.judge(JudgeRequest(name="x"), objects["task_state"], lambda _m: None)
    verdicts = {prog["name"]: prog["loaded"] for prog in facts["progs"]}
    root = this_kernel.facts_of(objects["task_state"])
    assert verdicts == {prog["name"]: prog["loaded"] for prog in root["progs"]}


def test_over_ssh_the_same_facts_and_nothing_left(
    store: Store, objects: dict[str, bytes], server: sshd.Server
) -> None:
    session = open_ssh(store, server.target())
    try:
        (private,) = server.temporary.iterdir()
        assert private.stat().st_mode & 0o777 == 0o700
        assert [path.name for path in private.iterdir()] == [f"{payload.build(payload.sources()).sha256}.zip"]
        assert judged(session, objects) == in_process(objects)
    finally:
        session.close()
    assert not list(server.temporary.iterdir())


def test_through_a_jump_host(store: Store, objects: dict[str, bytes], server: sshd.Server) -> None:
    session = open_ssh(store, server.target(jump=server.target(key=None, known_hosts=None)))
    try:
        facts = session.judge(JudgeRequest(name="x"), objects["task_state"], lambda _m: None)
    finally:
        session.close()
    assert facts["progs"][0]["loaded"]
    accepted = (server.directory / "sshd.log").read_text().count("Accepted publickey for root")
    assert accepted in {0, 2}  # 0: this sshd's LogLevel says nothing of logins


def test_by_vsock(
    store: Store, objects: dict[str, bytes], server: sshd.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket alone is not what it says: a machine that has vsock with itself is rare, and this server is on TCP."""
    asked: list[tuple[int, int]] = []

    class Vsock(socket.socket):
        def __init__(self, family: int = socket.AF_INET, *rest: Any, **named: Any) -> None:
            super().__init__(socket.AF_INET if family == socket.AF_VSOCK else family, *rest, **named)
            self.wanted = family

        def connect(self, address: Any) -> None:
            if self.wanted == socket.AF_VSOCK:
                asked.append(address)
                address = ("127.0.0.1", server.port)
            super().connect(address)

    monkeypatch.setattr("harness.ssh.socket.socket", Vsock)
    text = (server.directory / "known_hosts").read_text()
    (server.directory / "known_hosts").write_text(text.replace("[127.0.0.1]", "[vsock/4711]"))
    session = open_ssh(store, server.target(host="vsock/4711"))
    try:
        assert session.judge(JudgeRequest(name="x"), objects["task_state"], lambda _m: None)["progs"][0]["loaded"]
    finally:
        session.close()
    assert asked == [(4711, server.port)]


def test_files_of_a_command_go_with_it(store: Store, server: sshd.Server, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("x")
    said = b""

    def take(_stream: str, data: bytes) -> None:
        nonlocal said
        said += data

    script = "import os; os.mkdir('d'); os.symlink('/', 'd/r'); open('d/left', 'w'); print(os.getcwd(), os.listdir())"
    session = open_ssh(store, server.target())
    try:
        files = execution.gather([f"{tmp_path}/given"])
        command = execution.Command(argv=("python3", "-c", script), files=files)
        assert execution.run(session, command, seconds=60, on_output=take).code == 0
        (private,) = server.temporary.iterdir()
        assert [path.suffix for path in private.iterdir()] == [".zip"]
    finally:
        session.close()
    where, _, names = said.decode().partition(" ")
    assert Path(where).parent == private
    assert names.strip() in {"['d', 'given']", "['given', 'd']"}
    assert not list(server.temporary.iterdir())


def test_through_sudo(store: Store, objects: dict[str, bytes], server: sshd.Server) -> None:
    if shutil.which("sudo") is None:
        pytest.skip("needs sudo")
    session = open_ssh(store, server.target(), sudo=True)
    try:
        assert session.judge(JudgeRequest(name="x"), objects["task_state"], lambda _m: None)["progs"][0]["loaded"]
    finally:
        session.close()
    assert not list(server.temporary.iterdir())


def test_a_host_key_nobody_vouched_for_is_refused(store: Store, server: sshd.Server) -> None:
    with pytest.raises(SshError, match=r"its host key is not known; it is never added"):
        open_ssh(store, server.target(known_hosts=None))
    (server.directory / "known_hosts").write_text("")
    with pytest.raises(SshError, match="its host key is not known"):
        open_ssh(store, server.target())
    assert (server.directory / "known_hosts").read_text() == ""


def test_another_host_key_is_refused(store: Store, server: sshd.Server) -> None:
    server.vouch(sshd.make_key(server.directory / "other").with_suffix(".pub"))
    with pytest.raises(SshError, match="another machine, or one set up anew"):
        open_ssh(store, server.target())


def test_a_key_that_is_not_authorized_is_refused(store: Store, server: sshd.Server) -> None:
    with pytest.raises(SshError, match="not let in as root"):
        open_ssh(store, server.target(key=sshd.make_key(server.directory / "stranger")))


def test_the_key_of_an_agent(
    store: Store, objects: dict[str, bytes], server: sshd.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("ssh-agent") is None:
        pytest.skip("needs ssh-agent")
    place = server.directory / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(place)], stdout=subprocess.DEVNULL) as agent:
        try:
            monkeypatch.setenv("SSH_AUTH_SOCK", str(place))
            limit = time.monotonic() + 10
            while not place.exists() and time.monotonic() < limit:
                time.sleep(0.02)  # it says nothing when it is ready
            subprocess.run(["ssh-add", "-q", str(server.directory / "user")], check=True, stderr=subprocess.DEVNULL)
            session = open_ssh(store, server.target(key=None))
            try:
                assert session.judge(JudgeRequest(name="x"), objects["task_state"], lambda _m: None)["progs"]
            finally:
                session.close()
        finally:
            agent.terminate()


def test_nobody_there(store: Store, server: sshd.Server) -> None:
    with pytest.raises(SshError, match="cannot be reached"):
        open_ssh(store, server.target(port=1))


@pytest.mark.parametrize(
    ("version", "text"), [("3.8.20", "is Python 3.8.20; 3.9 or newer is needed"), (None, "there is no ")]
)
def test_a_python_too_old_or_missing_is_named(
    version: str | None, text: str, store: Store, server: sshd.Server
) -> None:
    python = server.directory / "python"
    if version is not None:
        python.write_text(f"#!/bin/sh\necho {version}\n")
        python.chmod(0o755)
    with pytest.raises(CorematrixError, match=text):
        open_ssh(store, server.target(), python=str(python))
    assert not list(server.temporary.iterdir())


def test_the_bundle_itself_refuses_an_old_python_by_name(tmp_path: Path) -> None:
    old = [path for path in Path("/root/.pyenv/versions").glob("*/bin/python[23]") if _older(path)]
    if not old:
        pytest.skip("no Python older than 3.9 here")
    (tmp_path / "bundle.zip").write_bytes(payload.build().data)
    for python in old:
        done = subprocess.run([python, tmp_path / "bundle.zip", "serve"], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "Python 3.9 or newer is needed, this is " in done.stderr


def _older(python: Path) -> bool:
    script = "import sys; sys.exit(sys.version_info < (3, 9))"
    return subprocess.run([python, "-c", script], check=False).returncode == 1


def test_killed_while_it_judges_it_leaves_nothing_there(server: sshd.Server, tmp_path: Path) -> None:
    """Our side dies without a word: the other machine cleans up by itself."""
    script = tmp_path / "hold.py"
    target = server.target()
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        "from tests.backends.test_machines import open_ssh\nfrom harness.model.machines import SshTarget\n"
        "from harness.store import Store\n"
        f"target = SshTarget(host='127.0.0.1', port={target.port}, user='root', key=Path({str(target.key)!r}),"
        f" known_hosts=Path({str(target.known_hosts)!r}))\n"
        f"session = open_ssh(Store(Path({str(tmp_path / 'cache2')!r})), target)\n"
        "print('up', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, str(script)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert list(server.temporary.iterdir())
        process.send_signal(signal.SIGKILL)
    limit = time.monotonic() + 20
    while list(server.temporary.iterdir()) and time.monotonic() < limit:
        time.sleep(0.05)  # no event to wait for: the one who cleans up has nobody left to tell
    assert not list(server.temporary.iterdir())
