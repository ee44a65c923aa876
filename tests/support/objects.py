"""Test objects from the C files of programs/ and tests/objects, compiled when a test asks for them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "programs"
OBJECTS = ROOT / "tests" / "objects"

_RELO = re.compile(r"CO-RE <(?P<kind>\w+)> \[\d+\] (?:(?:struct|union|enum|typedef) )?(?P<spec>.*)$")


@lru_cache(maxsize=1)
def clang() -> str:
    """The newest clang of 15 or newer on the path; skips the test where there is none."""
    for name in ("clang-19", *(f"clang-{version}" for version in range(30, 14, -1)), "clang"):
        if shutil.which(name):
            version = subprocess.run([name, "-dumpversion"], capture_output=True, text=True, check=True).stdout
            if int(version.split(".")[0]) >= 15:
                return name
    pytest.skip("needs clang 15 or newer (apt-get install clang-19)")


def tool(name: str) -> str:
    """The LLVM tool that belongs to `clang()` (`llvm-objdump`); skips where it is missing."""
    versioned = name + clang().removeprefix("clang")
    found = shutil.which(versioned) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {versioned} (apt-get install {clang().replace('clang', 'llvm')})")
    return found


def clang_run(source: Path, out: Path, *flags: str, debug: bool = True) -> subprocess.CompletedProcess[str]:
    """clang's own word on compiling `source` into `out`; nothing is checked."""
    command = [clang(), "--target=bpf", *(["-g"] if debug else []), "-O2", "-mcpu=v3", "-Wall", "-Werror"]
    command += [f"-I{PROGRAMS / 'include'}", *flags, "-c", str(source), "-o", str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def compile_object(source: Path, out: Path, *flags: str, debug: bool = True) -> Path:
    """The object at `out`; a compiler's complaint fails the test."""
    done = clang_run(source, out, *flags, debug=debug)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out


def target_btf(source: Path, out: Path, *flags: str) -> Path:
    """The .BTF of `source` compiled with -DTARGET, as a raw BTF file at `out`."""
    built = compile_object(source, out.with_suffix(".o"), "-DTARGET", *flags)
    subprocess.run([tool("llvm-objcopy"), f"--dump-section=.BTF={out}", built], check=True)
    return out


def disassembly(path: Path) -> str:
    """llvm-objdump's text, with the CO-RE records below their instructions."""
    done = subprocess.run([tool("llvm-objdump"), "-dr", path], capture_output=True, text=True, check=True)
    return done.stdout


def core_relos(path: Path) -> Counter[tuple[str, str]]:
    """(kind, field as docs/expectations.md spells it) of each CO-RE record, by LLVM's own reader of .BTF.ext."""
    found: Counter[tuple[str, str]] = Counter()
    for line in disassembly(path).splitlines():
        if match := _RELO.search(line):
            found[match["kind"], _field(match["kind"], match["spec"])] += 1
    return found


def _field(kind: str, spec: str) -> str:
    """LLVM prints `task_struct::thread.fsbase (0:0:0)`, `e::A = 1`, `<anon 0>`; libbpf a dot, and nothing unnamed."""
    if kind.startswith("enumval"):
        return spec.partition(" = ")[0]
    return re.sub(r"<anon \d+>\.| \([0-9:]+\)$", "", spec).replace("::", ".", 1)
