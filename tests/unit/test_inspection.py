"""`inspect`: the form of what it writes, its exit status, and its clear refusals. What it says is held against libbpf
elsewhere.
"""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.errors import UsageError
from harness.inspection import inspect_object, open_btf
from harness.inspection.command import add_arguments, run
from harness.inspection.text import render_text
from tests.support.clang import CLANG, compile_bpf, compile_target, needs_clang

LOCAL = """
struct task { int pid; int state; void *next; } PAI;
extern int CONFIG_HZ __attribute__((section(".kconfig")));
extern int LINUX_KERNEL_VERSION __attribute__((section(".kconfig")));
const volatile int limit = 3;
SEC("raw_tp/x") u64 prog(struct task *t) {
    u64 r = t->pid + limit;
    if (field_info(t->state, EXISTS)) r += t->state;
    return r + CONFIG_HZ + LINUX_KERNEL_VERSION;
}
SEC("?raw_tp/y") u64 optional(struct task *t) { return t->pid; }
"""
OLD = "struct task { long pad; int pid; int state; };"
NEW = "struct task { int pid; unsigned __state; };"
NAMES = ("x.bpf.o", "missing.o", "old.btf", "missing.btf", "config", "missing")
# docs/contract.md, `inspect --format jsonl`
KEYS = {
    "type", "prog", "section", "insn", "kind", "local_spec", "target_spec", "outcome", "orig_value",
    "new_value", "before", "after",
    "reason", "local", "target", "candidates", "source",
}  # fmt: skip


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    contents = {
        "x.bpf.o": compile_bpf(LOCAL),
        "old.btf": compile_target(OLD, "struct task"),
        "new.btf": compile_target(NEW, "struct task"),
        "two.btf": compile_target(
            OLD + NEW.replace("struct task", "struct task___x"), "struct task", "struct task___x"
        ),
        "config": b"CONFIG_HZ=250\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    return {name: tmp_path / name for name in contents}


def _inspect(*arguments: object) -> tuple[int, str]:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = io.StringIO()
    return run(parser.parse_args([str(argument) for argument in arguments]), out, io.StringIO()), out.getvalue()


def _lines(*arguments: object) -> tuple[int, list[dict[str, Any]]]:
    status, text = _inspect(*arguments, "--format", "jsonl")
    return status, [json.loads(line) for line in text.splitlines()]


def test_lines_are_those_of_the_contract(files: dict[str, Path]) -> None:
    status, lines = _lines(files["x.bpf.o"], "--btf", files["new.btf"])
    assert status == 0
    *relos, result = lines
    assert all(set(relo) == KEYS for relo in relos)
    assert [(relo["kind"], relo["outcome"]) for relo in relos] == [
        ("byte_off", "resolved"), ("field_exists", "resolved"), ("byte_off", "poisoned"),
    ]  # fmt: skip
    exists, poisoned = relos[1], relos[2]
    assert (exists["new_value"], exists["target_spec"]) == (0, None)
    assert (poisoned["new_value"], poisoned["after"]) == (None, "850000001023ad0b")
    assert "__state" in poisoned["reason"]
    assert poisoned["candidates"][0]["why_not"]
    assert relos[0]["source"]["text"] == "u64 r = t->pid + limit;"
    assert (result["ok"], result["error"], result["core_relos"], result["skipped"]) == (True, None, 3, 1)


def test_a_fatal_relocation_is_the_last_line(files: dict[str, Path]) -> None:
    status, lines = _lines(files["x.bpf.o"], "--btf", files["two.btf"])
    assert status == 1
    assert lines[-2]["outcome"] == "error"
    assert lines[-2]["reason"].startswith("ambiguous")
    assert lines[-1]["ok"] is False
    assert "ambiguous" in lines[-1]["error"]


def test_text_names_line_field_and_reason(files: dict[str, Path]) -> None:
    status, text = _inspect(files["x.bpf.o"], "--btf", files["new.btf"])
    assert status == 0
    for expected in (
        "u64 r = t->pid + limit;",
        "struct task.pid",
        "POISONED",
        "has no member 'state'",
        "1 poisoned",
        "1 skipped",
    ):
        assert expected in text


NESTED = """
struct io { int read_bytes; } PAI;
struct task { int pid; struct io ioac; struct io all[4]; } PAI;
SEC("raw_tp/x") u64 first(struct task *t) { return t->ioac.read_bytes; }
SEC("raw_tp/x") u64 second(struct task *t) { return t->all[2].read_bytes; }
"""


@pytest.mark.parametrize(
    ("target", "first", "second"),
    [
        (
            "struct io { int read_bytes_all; }; struct task { int pid; struct io ioac; struct io all[4]; };",
            "has no member 'read_bytes' in 'ioac' (struct io) (it has 'read_bytes_all')",
            "has no member 'read_bytes' in 'all[2]' (struct io) (it has 'read_bytes_all')",
        ),
        (
            "struct task { int pid; struct { int x; } ioac; int *all[4]; };",
            "has no member 'read_bytes' in 'ioac' (an anonymous struct)",
            "its member 'all' is a ptr, the program expects a struct",
        ),
        ("struct task { int pid; };", "has no member 'ioac'", "has no member 'all'"),
    ],
)
def test_what_lacks_a_member_is_the_struct_that_would_hold_it(
    tmp_path: Path, target: str, first: str, second: str
) -> None:
    """Not the struct the path begins at."""
    (tmp_path / "x.bpf.o").write_bytes(compile_bpf(NESTED))
    (tmp_path / "target.btf").write_bytes(compile_target(target, "struct task"))
    _, lines = _lines(tmp_path / "x.bpf.o", "--btf", tmp_path / "target.btf")
    said = {line["prog"]: line["candidates"][0]["why_not"] for line in lines[:-1] if line["outcome"] == "poisoned"}
    assert said == {"first": first, "second": second}


def test_several_btfs_make_a_table(files: dict[str, Path]) -> None:
    status, text = _inspect(files["x.bpf.o"], "--btf", files["old.btf"], files["new.btf"])
    assert status == 0
    row = next(line for line in text.splitlines() if "byte_off" in line and "struct task.state" in line)
    assert row.split()[-2:] == ["12", "poisoned"]


def test_kconfig_and_release(files: dict[str, Path]) -> None:
    _, lines = _lines(files["x.bpf.o"], "--btf", files["old.btf"])
    assert {row["outcome"] for row in lines[-1]["externs"]} == {"unknown"}
    _, lines = _lines(files["x.bpf.o"], "--btf", files["old.btf"], "--kconfig", files["config"], "--release", "6.1.50")
    assert {row["name"]: row["value"] for row in lines[-1]["externs"]} == {
        "CONFIG_HZ": 250,
        "LINUX_KERNEL_VERSION": 393522,
    }
    files["config"].write_text("CONFIG_NO=y\n")
    status, lines = _lines(files["x.bpf.o"], "--btf", files["old.btf"], "--kconfig", files["config"])
    assert (status, len(lines)) == (1, 1), "libbpf resolves externs before it relocates"
    assert "CONFIG_HZ" in lines[0]["error"]


def test_object_without_btf(tmp_path: Path, files: dict[str, Path]) -> None:
    needs_clang()
    source = tmp_path / "plain.c"
    source.write_text('__attribute__((section("xdp"), used)) int prog(void *c) { return 2; }\n')
    subprocess.run([CLANG, "--target=bpf", "-O2", "-c", str(source), "-o", str(tmp_path / "plain.o")], check=True)
    status, lines = _lines(tmp_path / "plain.o", "--btf", files["old.btf"])
    assert (status, lines[0]["ok"], lines[0]["core_relos"]) == (0, True, 0)
    assert "no BTF" in _inspect(tmp_path / "plain.o", "--btf", files["old.btf"])[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("missing.o", "--btf", "old.btf"), "cannot read this object"),
        (("x.bpf.o", "--btf", "missing.btf"), "cannot read this BTF"),
        (("config", "--btf", "old.btf"), "not an ELF"),
        (("x.bpf.o", "--btf", "config"), "header not found"),
        (("x.bpf.o", "--btf", "old.btf", "--arch", "s390x"), "little-endian"),
        (("x.bpf.o", "--btf", "old.btf", "--release", "new"), "not a kernel release"),
        (("x.bpf.o", "--btf", "old.btf", "--set", "limits=1"), "no .rodata variable 'limits'"),
        (("x.bpf.o", "--btf", "old.btf", "--rules", "x"), "not a libbpf version"),
        (("x.bpf.o", "--btf", "old.btf", "--kconfig", "missing"), "cannot read this Kconfig"),
    ],
)
def test_refusals_are_one_clear_line(files: dict[str, Path], arguments: tuple[str, ...], words: str) -> None:
    where = files["config"].parent
    paths = [str(where / word) if word in NAMES else word for word in arguments]
    with pytest.raises(UsageError, match=words) as refused:
        _inspect(*paths)
    assert "\n" not in refused.value.message


def test_a_modules_btf_wants_its_kernels(files: dict[str, Path], tmp_path: Path) -> None:
    """pahole and the kernel's build split a module's BTF; here a broken one stands for one of another kernel."""
    module = tmp_path / "some-thing.ko"
    module.write_bytes(files["old.btf"].read_bytes()[:-1])
    with pytest.raises(UsageError) as alone:
        _inspect(files["x.bpf.o"], "--btf", module)
    assert "--module" in (alone.value.remedy or "")
    with pytest.raises(UsageError) as other:
        _inspect(files["x.bpf.o"], "--btf", files["old.btf"], "--module", module)
    assert "of the kernel that --btf is of" in (other.value.remedy or "")
    with pytest.raises(UsageError, match="one kernel"):
        _inspect(files["x.bpf.o"], "--btf", files["old.btf"], files["new.btf"], "--module", module)


def test_command_alone_and_settings(files: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "harness.inspection", str(files["x.bpf.o"]), "--set", "limit=4", "--btf"]
    good = subprocess.run([*command, str(files["old.btf"])], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    bad = subprocess.run([*command, "/nonexistent"], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert "remedy" not in bad.stderr.splitlines()[0]


def test_names_of_an_object_cannot_speak_to_the_terminal(tmp_path: Path) -> None:
    """A function is named by whoever made the object."""
    text = "struct s { int a; } PAI; SEC(\"raw_tp/x\") int evil_name(struct s *s) { return s->a; }"
    path, target = tmp_path / "evil.bpf.o", tmp_path / "target.o"
    path.write_bytes(compile_bpf(text).replace(b"evil_name", b"e\x1b[2J\x07mes"))
    target.write_bytes(compile_target("struct s { int b; int a; };", "struct s"))
    inspection = inspect_object(path, open_btf(target))
    for shown in ([inspection], [inspection, dataclasses.replace(inspection, error="bad \x1b[2J")]):
        out = io.StringIO()
        render_text(shown, out)
        assert set(out.getvalue()) & set(map(chr, range(32))) == {"\n"}
        assert "e\\x1b[2J\\x07mes" in out.getvalue()
