"""Commands in real guests; the same object on the virtme-ng backend."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness import backends
from harness.backends import execution, virtme_ng
from harness.errors import UsageError
from harness.session import JudgeRequest
from tests.support import guests
from tests.support.objects import PROGRAMS, compile_object

pytestmark = pytest.mark.vm

KERNEL = "debian-6.1-cloud-amd64"


def test_output_status_signal_files_and_libraries(tmp_path: Path) -> None:
    kernel = guests.kernel(KERNEL)
    session = backends.open_session(kernel, guests.options(kernel))

    def run(*argv: str, files: tuple[str, ...] = (), stdin: bytes = b"") -> tuple[execution.Exit, bytes, bytes]:
        said = {"stdout": b"", "stderr": b""}

        def take(stream: str, data: bytes) -> None:
            said[stream] += data

        reading, writing = os.pipe()
        os.write(writing, stdin)
        os.close(writing)
        command = execution.Command(argv=argv, files=execution.gather(files))
        command = execution.with_libraries(command, files, "x86_64")
        try:
            done = execution.run(session, command, seconds=60, on_output=take, stdin=reading)
        finally:
            os.close(reading)
        return done, said["stdout"], said["stderr"]

    def python(script: str, **more: object) -> tuple[execution.Exit, bytes, bytes]:
        return run("python3", "-c", script, **more)  # type: ignore[arg-type]

    try:
        script = "import os, sys; sys.stderr.write('e'); print(os.uname().release, sys.stdin.read()); sys.exit(7)"
        done, out, err = python(script, stdin=b"typed")
        assert (done, out, err) == (execution.Exit(status=7, signal=None), f"{kernel.release} typed\n".encode(), b"e")
        done, _, _ = python("import os; os.kill(os.getpid(), 9)")
        assert (done.signal, done.code) == (9, 137)
        done, _, err = run("no-such-command")
        assert done.code == 127
        assert b"no-such-command: No such file" in err
        # 1 MB through the port in both directions, byte for byte: more than any pipe or queue on the way holds.
        (tmp_path / "data").write_bytes(os.urandom(1 << 20))
        copy = "import sys; sys.stdout.buffer.write(open('sub/copy', 'rb').read())"
        _, out, _ = python(copy, files=(f"{tmp_path}/data:sub/copy",))
        assert out == (tmp_path / "data").read_bytes()
        grep = shutil.which("grep") or "/bin/grep"
        done, out, _ = run("grep", "-c", "x", files=(grep,), stdin=b"x\ny\nx\n")  # dynamic: libc and PCRE come along
        assert (done.code, out) == (0, b"2\n")
    finally:
        session.close()


@pytest.mark.parametrize("end", [b"\x04", b"exit()\r"])
def test_a_shell_is_on_a_terminal(end: bytes) -> None:
    """Python's prompt, typed at through a terminal of our own; it ends with Ctrl-D or exit()."""
    guests.packages(guests.kernel(KERNEL).spec.arch)
    command = [sys.executable, "-m", "harness.cli", "shell", KERNEL]
    master, slave = pty.openpty()
    with subprocess.Popen(command, stdin=slave, stdout=slave, stderr=subprocess.PIPE) as process:
        os.close(slave)
        said = b""
        typed = [b"import sys; print(sys.stdin.isatty(), machine.features['prog_name'])\r", end]
        while True:
            try:
                data = os.read(master, 4096)
            except OSError:  # EIO: the other end is closed
                break
            said += data
            if said.endswith(b">>> ") and typed:
                os.write(master, typed.pop(0))
        os.close(master)
        assert process.wait(timeout=60) == 0
    assert b"True True" in said and b"Error" not in said


def test_a_machine_of_somebodys_wants_a_yes() -> None:
    command = [sys.executable, "-m", "harness.cli", "exec", "local", "--", "true"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == UsageError.exit_status
    assert "--yes-on-this-machine" in done.stderr


@pytest.mark.ondemand
@pytest.mark.network
@pytest.mark.parametrize("identity", ["debian-6.1-generic-amd64", "debian-6.1-cloud-amd64"])
def test_virtme_ng_gives_the_same_verdicts(identity: str, tmp_path: Path) -> None:
    """25 to 90 seconds under emulation. Verdicts, final relocation values and evidence, kernel by kernel the same; the
    generic kernel by 9p, the cloud one, which has none, by virtiofs.
    """
    missing = [name for name in ("depmod", "busybox") if shutil.which(name) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"needs root and {missing or 'kmod, busybox-static'}")
    if "cloud" in identity and not virtme_ng._has_daemon():
        pytest.skip("needs virtiofsd (Debian 13)")
    kernel = guests.kernel(identity)
    objects = {
        name: compile_object(PROGRAMS / f"{name}.bpf.c", tmp_path / f"{name}.o", "-D__TARGET_ARCH_x86").read_bytes()
        for name in ("task_state", "thread_fsbase", "kconfig", "io_accounting")
    }
    found = []
    for backend in ("qemu", "virtme-ng"):
        given = replace(kernel, spec=replace(kernel.spec, backend=backend))
        session = backends.open_session(given, guests.options(kernel))
        try:
            facts = {n: session.judge(JudgeRequest(name=n), data, lambda _m: None) for n, data in objects.items()}
        finally:
            session.close()
        found.append({n: [_verdict(prog) for prog in f["progs"]] + f["core_relos"] for n, f in facts.items()})
    assert found[0] == found[1]
    assert all(found[0].values())


def _verdict(prog: dict[str, object]) -> tuple[object, ...]:
    evidence = prog["evidence"]
    assert isinstance(evidence, dict)
    return prog["name"], prog["loaded"], prog["errno"], prog["relos"], evidence["line_info"]
