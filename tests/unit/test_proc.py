"""The subprocess door: time limits, what is left behind, and what the errors say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import proc


def _gone(pid: int, within: float = 5.0) -> bool:
    """Whether a process ends (or is a zombie of a foreign parent) in time."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_output_and_input() -> None:
    result = proc.run(["cat"], stdin=b"x" * 300_000)
    assert result.stdout == b"x" * 300_000
    assert result.returncode == 0


def test_a_missing_command_names_the_remedy() -> None:
    with pytest.raises(proc.ToolMissingError, match="no-such-command-here: command not found") as caught:
        proc.run(["no-such-command-here"], remedy="apt-get install it")
    assert "apt-get install it" in str(caught.value)


def test_a_failure_says_status_and_last_words() -> None:
    with pytest.raises(proc.CommandError, match="exit status 3: that is wrong") as caught:
        proc.run(["sh", "-c", "echo that is wrong >&2; exit 3"])
    assert caught.value.result is not None
    assert caught.value.result.stderr == b"that is wrong\n"


def test_unchecked_failures_are_returned() -> None:
    assert proc.run(["sh", "-c", "kill -9 $$"], check=False).returncode == -signal.SIGKILL


def test_a_timeout_ends_the_whole_group(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    started = time.monotonic()
    with pytest.raises(proc.CommandError, match=r"did not end within 0\.5 s"):
        proc.run(["sh", "-c", f"sleep 60 & echo $! > {note}; wait"], timeout=0.5)
    assert time.monotonic() - started < 40  # of the 60 it sleeps
    assert _gone(int(note.read_text()))


def test_no_child_of_a_child_outlives_a_command_that_ended_well(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    proc.run(["sh", "-c", f"sleep 60 >/dev/null 2>&1 & echo $! > {note}"])
    assert _gone(int(note.read_text()))


def test_children_speak_c() -> None:
    assert proc.run(["sh", "-c", "echo $LC_ALL $EXTRA"], env={"EXTRA": "more"}).text == "C more\n"


def test_a_missing_directory_is_not_a_missing_command(tmp_path: Path) -> None:
    with pytest.raises(proc.CommandError, match="no directory") as caught:
        proc.run(["true"], cwd=tmp_path / "none")
    assert not isinstance(caught.value, proc.ToolMissingError)


def test_spawned_ends_with_its_context() -> None:
    with proc.spawn(["sleep", "60"]) as process:
        assert process.poll() is None
    assert process.poll() == -signal.SIGTERM
    assert _gone(process.pid)


def test_spawned_that_ignores_sigterm_is_killed() -> None:
    with proc.spawn(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done"], stdout=proc.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert process.kill(grace=0.2) == -signal.SIGKILL


def test_wait_gives_none_while_it_runs() -> None:
    with proc.spawn(["sleep", "60"]) as process:
        assert process.wait(0.05) is None
    with proc.spawn(["true"]) as process:
        assert process.wait(10) == 0


@pytest.mark.skipif(proc.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_a_sigkill_of_ours_leaves_no_child(tmp_path: Path) -> None:
    """The one end that no `finally` sees."""
    note = tmp_path / "pid"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom harness import proc\n"
        "child = proc.spawn(['sleep', '60'])\n"
        "while child.args[0] not in Path(f'/proc/{child.pid}/cmdline').read_text(): time.sleep(0.01)\n"
        "while 'setpriv' in Path(f'/proc/{child.pid}/cmdline').read_text(): time.sleep(0.01)\n"
        f"Path({str(note)!r}).write_text(str(child.pid)); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(Path.cwd())})
    try:
        deadline = time.monotonic() + 20
        while (not note.exists() or not note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        child = int(note.read_text())
    finally:
        parent.kill()
        parent.wait()
    assert _gone(child)
