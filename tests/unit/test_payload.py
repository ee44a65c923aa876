"""The guest bundle: the same bytes each time, runnable by every Python at hand."""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from harness import payload

# Those that are old enough are in test_machines.py: a guest's oldest Python is 3.9.
_OTHERS = (path for path in Path("/root/.pyenv/versions").glob("3.*/bin/python"))
PYTHONS = sorted({sys.executable, *(str(path) for path in _OTHERS if not re.match(r"3\.[0-8]\.", path.parts[-3]))})
MAGIC = importlib.util.MAGIC_NUMBER


def test_two_builds_are_the_same_bytes() -> None:
    first, second = payload.build(magic=MAGIC), payload.build(dict(reversed(payload.sources().items())), magic=MAGIC)
    assert first.data == second.data
    assert first.sha256 == second.sha256


def test_a_changed_module_is_another_bundle() -> None:
    sources = payload.sources()
    changed = {**sources, "guest/wire.py": sources["guest/wire.py"] + b"\n"}
    assert payload.build(changed).sha256 != payload.build(sources).sha256
    assert payload.fingerprint(changed) != payload.fingerprint(sources)


def test_bytecode_goes_along_only_for_a_python_that_can_read_it() -> None:
    def names(bundle: payload.Bundle) -> set[str]:
        return set(zipfile.ZipFile(io.BytesIO(bundle.data)).namelist())

    sources = set(payload.sources())
    assert names(payload.build(magic=MAGIC)) == sources | {f"{name}c" for name in sources}
    assert names(payload.build(magic=b"\0\0\r\n")) == sources


def test_bytecode_is_hash_based_and_unchecked() -> None:
    """PEP 552: flags 1, then the source's hash; loading looks at no clock and no source."""
    code = payload.bytecode("x.py", b"a = 1\n")
    assert code[:4] == MAGIC
    assert int.from_bytes(code[4:8], "little") == 0b01
    assert code[8:16] == importlib.util.source_hash(b"a = 1\n")


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("with_bytecode", [True, False])
def test_it_runs_alone_isolated_and_from_a_zip(python: str, with_bytecode: bool, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.zip"
    bundle.write_bytes(payload.build(magic=MAGIC if with_bytecode else None).data)
    done = subprocess.run(
        [python, "-I", "-S", "-W", "error", bundle, "--help"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "judge" in done.stdout
