"""The exit door: statuses, messages, and nothing run when the input is wrong. Real guests are in tests/vm."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from harness import cli
from harness.commands import run as run_command
from harness.errors import CacheError, Ended, Interrupted, UsageError
from harness.model.result import CellResult, KernelResult, ObjectResult
from harness.model.verdict import CellStatus
from tests.support import cells as make

ROOT = Path(__file__).resolve().parents[2]
# A BPF object's ELF header (EM_BPF, ET_REL, little endian) that ends where the section headers should begin.
ELF_HEADER = bytes.fromhex(
    "7f454c4602010100 0000000000000000 0100f70001000000 0000000000000000"
    "0000000000000000 4000000000000000 0000000040000000 0000400005000100".replace(" ", "")
)


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "cache"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    """Run a command that must be refused before anything runs; returns the message."""
    assert cli.main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert not Path("corematrix-runs").exists()
    assert "Traceback" not in captured.err
    assert captured.err.startswith("corematrix: ")
    return captured.err.removeprefix("corematrix: ")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an ELF file"),
        (b"#!/bin/sh\n" * 20, "not an ELF file"),
        (ELF_HEADER[:30], "truncated"),
        (ELF_HEADER, "truncated"),
        (ELF_HEADER[:5] + b"\x02" + ELF_HEADER[6:16] + b"\x00\x01\x00\xf7" + bytes(100), "x.bpf.o"),
    ],
)
def test_files_that_are_no_objects_are_refused_in_one_line(
    content: bytes, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("x.bpf.o").write_bytes(content)
    message = refused(capsys, "run", "x.bpf.o")
    assert complaint in message
    assert "x.bpf.o" in message.splitlines()[0]
    assert len(message.splitlines()) <= 2


def test_an_elf_of_another_machine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "BPF" in refused(capsys, "run", sys.executable).splitlines()[0]


def test_a_missing_object_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "run", "nowhere.bpf.o").startswith("nowhere.bpf.o: cannot read this object: No such file")


def test_without_an_object_those_of_programs_are_meant(capsys: pytest.CaptureFixture[str]) -> None:
    assert "there is no programs/build here" in refused(capsys, "run")
    Path("programs/build").mkdir(parents=True)
    Path("programs/build/x.bpf.o").write_bytes(b"no object")
    assert refused(capsys, "run").startswith("programs/build/x.bpf.o: not an ELF file")


def test_an_empty_directory_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("build").mkdir()
    assert "no .bpf.o file" in refused(capsys, "run", "build")


def test_a_broken_kernels_yaml_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("kernels.yaml").write_text("kernel: []\n")
    assert refused(capsys, "run", "x.bpf.o").startswith("kernels.yaml: kernel: unknown key")


def test_a_selection_of_nothing_has_a_status_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'debian-3.*'" in refused(capsys, "run", "x.bpf.o", "-k", "debian-3.*", status=3)


@pytest.mark.parametrize("arguments", [["--jobs", "0"], ["--timeout", "x"], ["--loader", "cilium"], ["--frobnicate"]])
def test_bad_options_are_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "x.bpf.o", *arguments])
    assert caught.value.code == 2
    assert "usage: corematrix" in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], *([name] for name in cli.VERBS)])
def test_help_lists_the_exit_statuses(verb: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*verb, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for status in (0, 1, 2, 3, 4, 5, 6, 7, cli.INTERNAL_ERROR, 130):
        assert f"\n  {status} " in text


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (CacheError("disk full", remedy="prune"), 6, "corematrix: disk full\n  remedy: prune\n"),
        (Interrupted("stopped"), 130, "corematrix: interrupted\n"),
        (Ended("SIGTERM"), 130, "corematrix: interrupted\n"),
        (KeyboardInterrupt(), 130, "corematrix: interrupted\n"),
    ],
)
def test_errors_become_statuses(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("harness.commands.report.run", _raising(error))
    assert cli.main(["report", "x"]) == status
    assert capsys.readouterr().err == message


def test_a_bug_of_ours_names_a_log_and_shows_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("harness.commands.report.run", _raising(KeyError("inner")))
    assert cli.main(["report", "x"]) == cli.INTERNAL_ERROR
    message = capsys.readouterr().err
    assert message.startswith("corematrix: internal error: KeyError: 'inner'")
    assert "Traceback" not in message
    log = Path(message.partition("details: ")[2].strip())
    assert "Traceback" in log.read_text()
    assert "'report', 'x'" in log.read_text()


def _raising(error: BaseException) -> object:
    def run(*_arguments: object) -> int:
        raise error

    return run


KERNELS_LIST = ["kernels", "list", "--matrix", str(ROOT / "kernels.yaml")]


def _said_to(stdout: int, words: list[str], unbuffered: str) -> tuple[int, str]:
    """Exit status and stderr of a command whose output goes to `stdout`."""
    command = [sys.executable, "-m", "harness.cli", *words]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(
        command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])  # the end of a short output is written when Python shuts down
@pytest.mark.parametrize("words", [["--help"], KERNELS_LIST], ids=["help", "list"])
def test_a_reader_that_goes_away_is_no_error_of_ours(words: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    status, complaint = _said_to(writer, words, unbuffered)
    os.close(writer)
    assert complaint == ""
    assert status in ({0, cli.BROKEN_PIPE} if words == ["--help"] else {cli.BROKEN_PIPE})


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_output_is_said(unbuffered: str) -> None:
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        assert _said_to(full.fileno(), KERNELS_LIST, unbuffered) == (
            4, "corematrix: cannot write: No space left on device\n",
        )  # fmt: skip


def test_sigterm_ends_with_the_status_of_an_interruption(tmp_path: Path) -> None:
    fifo = tmp_path / "run.json"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "harness.cli", "report", str(fifo)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        writer = fifo.open("w")  # returns when the command has opened it: now it waits for us
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        writer.close()
    assert process.returncode == Interrupted.exit_status
    assert said == "corematrix: interrupted\n"


def test_sigterm_is_no_fault_of_the_line_it_comes_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run on a cluster once went on to its end: the signal came within an `except Exception`."""

    def run(*_arguments: object) -> int:
        with suppress(Exception):
            signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr("harness.commands.report.run", run)
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert cli.main(["report", "x"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "corematrix: interrupted\n"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"schema": 2}', '{"schema": 1}', "[" * 100000])
def test_what_is_no_stored_run_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("run.json").write_text(text)
    refused(capsys, "report", "run.json")


# --- the status of a finished run: docs/contract.md


def result(status: CellStatus) -> CellResult:
    cell = make.cell()
    begun = CellResult.begin(
        cell.id, KernelResult(id="k", arch="x86_64"), ObjectResult(name="o", path="o.bpf.o", sha256="0" * 64)
    )
    assert begun.status is CellStatus.CRASHED
    return CellResult(id=begun.id, kernel=begun.kernel, object=begun.object, status=status)


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        ("passed", 0),
        ("passed not_applicable skipped", 0),
        ("failed", 1),
        ("failed error crashed timeout passed", 1),
        ("", 3),
        ("not_applicable skipped", 3),
        ("passed error", 4),
        ("error crashed", 4),
        ("passed crashed", 7),
        ("timeout not_applicable", 7),
    ],
)
def test_exit_status_of_a_run(statuses: str, expected: int) -> None:
    assert run_command.exit_status([result(CellStatus(word)) for word in statuses.split()]) == expected


# --- settings and rerun


def options(*arguments: str) -> object:
    import argparse

    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_the_rerun_command_names_the_cell_and_all_that_made_it() -> None:
    cell = make.cell(settings=(("on", "1"),), loader="libbpf")
    command = run_command._rerun(options("/nowhere", "--set", "on=1", "--matrix", "k.yaml"))(cell)  # type: ignore[arg-type]
    assert command == (
        "corematrix run /nowhere/task_state.bpf.o --matrix k.yaml --set on=1 --loader libbpf "
        "--only 'debian-6.1-cloud-amd64/task_state[on=1]@libbpf'"
    )


def test_an_object_below_a_directory_is_rerun_from_there() -> None:
    cell = make.cell(object_name="net/tcp")
    command = run_command._rerun(options("/nowhere"))(cell)  # type: ignore[arg-type]
    assert command == "corematrix run /nowhere --only debian-6.1-cloud-amd64/net/tcp@python"


@pytest.mark.parametrize("assignment", [["x"], ["=1"], ["x=1", "x=2"]])
def test_set_takes_each_variable_once(assignment: list[str]) -> None:
    with pytest.raises(UsageError, match="VAR=VALUE"):
        run_command._settings(assignment)


def test_json_of_a_run_that_judged_nothing_is_still_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """An x86_64-only object on arm64 kernels: nothing boots, status 3, and the JSON says why for every cell."""
    source = ROOT / "programs" / "build" / "thread_fsbase.x86_64.bpf.o"
    if not source.is_file():
        pytest.skip("programs/ is not built (make -C programs)")
    assert cli.main(["run", str(source), "-k", "*-arm64", "--quiet", "--json", "-"]) == 3
    run = json.loads(capsys.readouterr().out)
    assert {cell["status"] for cell in run["cells"]} == {"not_applicable"}
    assert all(cell["reason"] for cell in run["cells"])
