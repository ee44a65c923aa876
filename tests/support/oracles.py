"""What others say our files must look like: Jenkins' XSD, SARIF's schema, veristat itself. None of it is ours to copy,
so it is fetched with its package's own client, checked by hash, and kept in $COREMATRIX_ORACLES
(~/.cache/corematrix-oracles) for the next time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_PYTEST = ("pytest==8.3.4", "965370d062bce11e73868e0335abac31b4d3de0e82f4007408d242b4f8610761")
_XSD = "pytest-8.3.4/testing/example_scripts/junit-10.xsd"
_MULTITOOL = (
    "@microsoft/sarif-multitool-linux@5.7.0",
    "27d8e3e96dde578a23b7c45035b8d741fece5731e2700aa068015b8c44d1514e",
)
# What veristat.c wants of the kernel's own tools/include, and a flag that an older libbpf-dev has not heard of.
_COMPILER_H = """
#define __maybe_unused __attribute__((unused))
#define ARRAY_SIZE(x) (sizeof(x) / sizeof((x)[0]))
#define BPF_F_TEST_REG_INVARIANTS (1U << 7)
"""


def _directory() -> Path:
    path = Path(os.environ.get("COREMATRIX_ORACLES", Path("~/.cache/corematrix-oracles").expanduser()))
    path.mkdir(parents=True, exist_ok=True)
    return path


def junit_xsd() -> Path:
    """junit-10.xsd of Jenkins' xunit plug-in, as pytest's source package carries it for its own tests."""
    return _kept("junit-10.xsd", lambda scratch: _member(_pip_source(scratch), _XSD))


def sarif_schema() -> Path:
    """The JSON schema of SARIF 2.1.0, as Microsoft's SARIF tool carries it."""
    return _kept("sarif-2.1.0.json", lambda scratch: _member(_npm(scratch), "package/sarif-2.1.0.json"))


def veristat() -> Path:
    """$VERISTAT, `veristat` on the path, or the one built before; skips where there is none (see `build_veristat`)."""
    found = os.environ.get("VERISTAT") or shutil.which("veristat")
    path = Path(found) if found else _directory() / "veristat"
    if not path.is_file():
        pytest.skip("no veristat: `pytest -m ondemand tests/unit/test_oracles.py` builds one")
    return path


def build_veristat() -> Path:
    """veristat from Debian's package of the kernel's source (140 MB, a minute)."""
    return _kept("veristat", _built_veristat)


def _kept(name: str, make: Callable[[Path], bytes]) -> Path:
    path = _directory() / name
    if not path.is_file():
        with TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / name
            made.write_bytes(make(Path(scratch)))
            made.chmod(0o755)
            made.replace(path)
    return path


def _run(*command: str | Path, cwd: Path) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode != 0:
        pytest.skip(f"{command[0]} cannot get it: {done.stderr.strip()[-300:]}")
    return done.stdout


def _pip_source(scratch: Path) -> Path:
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "pytest")
    _run(*pip, _PYTEST[0], cwd=scratch)
    return _checked(next(scratch.glob("pytest-*.tar.gz")), _PYTEST[1])


def _npm(scratch: Path) -> Path:
    _run("npm", "pack", "--silent", _MULTITOOL[0], cwd=scratch)
    return _checked(next(scratch.glob("*.tgz")), _MULTITOOL[1])


def _checked(path: Path, sha256: str) -> Path:
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256, f"{path.name} is not what was pinned"
    return path


def _member(archive: Path, name: str) -> bytes:
    with tarfile.open(archive) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


def _built_veristat(scratch: Path) -> bytes:
    depends = _run("apt-cache", "depends", "linux-source", cwd=scratch)
    package = next(line.split()[-1] for line in depends.splitlines() if "Depends: linux-source-" in line)
    _run("apt-get", "download", "--quiet", package, cwd=scratch)
    deb = next(scratch.glob("*.deb"))
    unpack = f"dpkg-deb --fsys-tarfile {deb.name} | tar xO ./usr/src/{package}.tar.xz | xz -dc | tar x --wildcards "
    _run("sh", "-c", f"{unpack} '*/tools/testing/selftests/bpf/veristat.c'", cwd=scratch)
    include = scratch / "include" / "linux"
    include.mkdir(parents=True)
    (include / "compiler.h").write_text(_COMPILER_H)
    source = next(scratch.glob("*/tools/testing/selftests/bpf/veristat.c"))
    _run("cc", "-O1", "-w", "-Iinclude", "-include", "linux/compiler.h", "-o", "veristat.out", source, "-lbpf", "-lelf",
         "-lz", "-lm", cwd=scratch)  # fmt: skip
    return (scratch / "veristat.out").read_bytes()
