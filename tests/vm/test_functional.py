"""Functional tests of an object in real guests, through the command line: bpftool loads the object there, and commands
that fail, hang and say what a terminal must not hear.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import guests
from tests.support.objects import PROGRAMS, compile_object

pytestmark = pytest.mark.vm

KERNELS = ("debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64")
BPFTOOL = Path("/usr/sbin/bpftool")
# With this setting the object wants a helper that came with 6.1.
EXPECTATIONS = """
settings: [{use_fancy_helper: 1}]
rules:
  - {kernels: debian-5.10-*, verdict: rejected, reason: the helper came with 6.1}
tests:
  - name: bpftool
    run: [bpftool, -d, prog, load, tool.bpf.o, /sys/fs/bpf/tool]
    files: /usr/sbin/bpftool
  - name: where it is
    run: python3 where.py
    files: [where.py]
    env: {MINE: 3}
    kernels: debian-6.*
  - name: hangs
    run: [python3, -c, "print('before', flush=True)\\nwhile True: pass"]
    timeout: 10
    kernels: debian-6.*
  - name: fails
    run: [python3, -c, "import sys; sys.stderr.write('\\\\x1b]0;owned\\\\x07 no'); sys.exit(3)"]
    kernels: debian-6.*
"""
WHERE = """
import os
assert os.uname().release == os.environ["COREMATRIX_RELEASE"]
assert open(os.environ["COREMATRIX_OBJECT"], "rb").read(4) == b"\\x7fELF"
print(os.environ["COREMATRIX_KERNEL"], os.environ["COREMATRIX_SETTINGS"], os.environ["MINE"])
"""


def test_commands_of_an_object(tmp_path: Path) -> None:
    if not BPFTOOL.exists():
        pytest.skip(f"needs {BPFTOOL}")
    for identity in KERNELS:
        guests.kernel(identity)
    compile_object(PROGRAMS / "fancy_helper.bpf.c", tmp_path / "tool.bpf.o")
    (tmp_path / "tool.yaml").write_text(EXPECTATIONS)
    (tmp_path / "where.py").write_text(WHERE)
    command = [sys.executable, "-m", "harness.cli", "run", str(tmp_path / "tool.bpf.o"), "--json", "run.json"]
    command += [word for identity in KERNELS for word in ("-k", identity)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    old, young = json.loads((tmp_path / "run.json").read_text())["cells"]
    (skipped,) = old["functional"]
    assert (old["status"], skipped["outcome"]) == ("passed", "skipped")
    assert "rejected" in skipped["reason"]
    found: dict[str, dict[str, Any]] = {test["name"]: test for test in young["functional"]}
    assert found["bpftool"]["outcome"] == "passed", found["bpftool"]
    assert found["where it is"]["output"] == "debian-6.1-cloud-amd64 use_fancy_helper=1 3\n"
    assert (found["hangs"]["outcome"], found["hangs"]["output"]) == ("timeout", "before\n")
    assert (found["fails"]["outcome"], found["fails"]["status"]) == ("failed", 3)
    assert young["status"] == "failed"
    assert [prog["verdict"] for prog in young["progs"]] == ["loaded"]
    assert "functional test fails: exit status 3" in young["reason"]
    assert "\x1b]0;owned" not in done.stdout
    assert "\\x1b]0;owned\\x07 no" in done.stdout
