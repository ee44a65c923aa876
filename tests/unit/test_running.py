"""`inspect --running`: the machine one sits at, read from its files, and whether each program would load on it."""

from __future__ import annotations

import argparse
import errno
import gzip
import io
import json
import os

import pytest

from harness.commands import inspect, running
from harness.errors import UsageError
from tests.support.clang import compile_bpf, compile_target
from tests.support.this_kernel import facts_of, machine

PROGRAM = """
struct task { int pid; } PAI;
extern int CONFIG_HZ __attribute__((section(".kconfig")));
extern int LINUX_KERNEL_VERSION __attribute__((section(".kconfig")));
SEC("fentry/attach_here") int attached(struct task *t) { return CONFIG_HZ + LINUX_KERNEL_VERSION; }
SEC("raw_tp/x") int reads(struct task *t) { return CONFIG_HZ > 100 ? 0 : t->pid; }
"""
VERIFIER = (
    "struct bpf_func_state { int x; }; struct bpf_verifier_state { int branches; };"
    "struct bpf_prog_aux { int attach_btf_id; };"
)
NAMES = ("struct bpf_func_state", "struct bpf_verifier_state", "struct bpf_prog_aux")


@pytest.fixture
def root(tmp_path):
    """A machine's files: BTF with a function to attach to and without the field, Kconfig packed."""
    made = tmp_path / "root"
    (made / "sys/kernel/btf").mkdir(parents=True)
    (made / "proc").mkdir()
    text = VERIFIER + "int attach_here(int number) { return number; }"
    (made / "sys/kernel/btf/vmlinux").write_bytes(compile_target(text, *NAMES))
    (made / "proc/config.gz").write_bytes(gzip.compress(b"CONFIG_HZ=250\n"))
    (made / "proc/version_signature").write_text("Ubuntu 5.4.0-12.15-generic 5.4.8\n")
    return made


@pytest.fixture
def obj(tmp_path):
    path = tmp_path / "x.bpf.o"
    path.write_bytes(compile_bpf(PROGRAM))
    return path


def options(*words):
    parser = argparse.ArgumentParser()
    inspect.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def asked(root, *words):
    out = io.StringIO()
    status = running.run(options(*words, "--running", "--format", "jsonl"), out, root)
    return status, [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_old_libbpf_takes_debians_release_for_its_version(root, monkeypatch):
    """As libbpf 1.1.2 answers on these machines (docs/corpus.md: pcp's biolatency)."""
    (root / "proc/version_signature").unlink()
    words = ("Linux", "host", "5.10.0-46-cloud-amd64", "#1 SMP Debian 5.10.192-1 (2026-05-01)", "x86_64")
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(words))
    assert running.this_machine(None, root).conditions.release == "5.10.192"
    assert running.this_machine("1.2.0", root).conditions.release == "5.10.192"
    assert running.this_machine("1.1.2", root).conditions.release == "5.10.0"


def test_configuration_and_release_are_this_machines(root, obj):
    status, lines = asked(root, obj)
    externs = {row["name"]: row["value"] for row in lines[-1]["externs"]}
    assert externs == {"CONFIG_HZ": 250, "LINUX_KERNEL_VERSION": 5 << 16 | 4 << 8 | 8}
    progs = {row["name"]: row for row in lines if row["type"] == "prog"}
    # CONFIG_HZ decides that the poisoned read is dead.
    assert progs["reads"]["outcome"] == "loads"
    assert [row["liveness"] for row in progs["reads"]["core_relos"]] == ["eliminated"]
    assert progs["attached"]["attach"] == {
        "what": "attach target", "name": "attach_here", "found": True, "signature": "int (int)",
    }  # fmt: skip
    assert (status, lines[-1]["ok"]) == (0, True)


def test_the_plain_configuration_comes_first_as_libbpf_reads_it(root, obj):
    (root / "boot").mkdir()
    (root / f"boot/config-{os.uname().release}").write_text("CONFIG_HZ=100\n")
    status, lines = asked(root, obj)
    progs = {row["name"]: row for row in lines if row["type"] == "prog"}
    assert (status, progs["reads"]["outcome"]) == (1, "refused")
    assert "poison is reached" in progs["reads"]["reason"]


def test_the_text_says_what_it_is_and_where_it_is_from(root, obj):
    out = io.StringIO()
    running.run(options(obj, "--running"), out, root)
    said = out.getvalue()
    assert "foretold, not proven" in said
    assert str(root / "proc/config.gz") in said
    assert "attached  (fentry/attach_here): loads" in said
    assert "1 of 1 relocations eliminated" in said


def test_a_machine_without_btf_says_what_it_lacks(tmp_path, obj):
    with pytest.raises(UsageError, match="has no BTF"):
        running.run(options(obj, "--running"), io.StringIO(), tmp_path)


@pytest.mark.parametrize("words", [(), ("--running", "--btf", "x"), ("--running", "--release", "6.1.0")])
def test_what_is_inspected_against_is_said_once(obj, words):
    with pytest.raises(UsageError):
        inspect.run(options(obj, *words), io.StringIO(), io.StringIO())


def test_what_is_foretold_of_this_kernel_is_what_it_does(obj, tmp_path):
    """The real kernel of this machine as the judge; a program may not be permitted here, which no BTF tells."""
    machine()
    text = PROGRAM.replace("struct task ", "struct task_struct ").replace("struct task *", "struct task_struct *")
    text += 'SEC("raw_tp/y") int gone(struct task_struct___x *t) { return t->nowhere; }'
    text = text.replace("extern int CONFIG", "struct task_struct___x { int nowhere; } PAI;\nextern int CONFIG", 1)
    path = tmp_path / "real.bpf.o"
    path.write_bytes(compile_bpf(text.replace("attach_here", "do_exit")))
    out = io.StringIO()
    assert running.run(options(path, "--running", "--format", "jsonl"), out) == 1
    foretold = {row["name"]: row["outcome"] for row in map(json.loads, out.getvalue().splitlines())
                if row["type"] == "prog"}  # fmt: skip
    facts = facts_of(path.read_bytes())
    loaded = {p["name"]: "loads" if p["loaded"] else "refused" for p in facts["progs"] if p["errno"] != errno.EPERM}
    assert foretold["gone"] == loaded["gone"] == "refused"
    assert {name: foretold[name] for name in loaded} == loaded
