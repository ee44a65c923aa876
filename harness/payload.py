"""The guest bundle: `harness/guest` as one zip, byte for byte reproducible, named by its content.

Members are stored, not compressed: the guest reads them from memory, and inflating would cost it more than it saves.
Beside each source lies its `.pyc`, hash-based and *unchecked* (PEP 552), which loads without looking at any clock; it
is compiled by a Python whose bytecode magic is the guest's. Without such a Python the guest compiles the sources
itself, slower and the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import zipfile
from dataclasses import dataclass
from pathlib import Path

_GUEST = Path(__file__).resolve().parent / "guest"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_WARM = Path(__file__).resolve().parent / "warm" / "warm.bpf.o"
# CPython 3.11 specialises code that has run eight times; ten rounds take a sixth off the first request, three nothing.
WARM_ROUNDS = 10
# PEP 552: flags of a hash-based .pyc; bit 1 (check the source) left out.
_UNCHECKED_HASH = (0b01).to_bytes(4, "little")
# Read by whatever Python a machine has, Python 2 too: nothing younger may stand before the check.
_MAIN = """\
import sys
if sys.version_info < (3, 9):
    sys.exit("corematrix: Python 3.9 or newer is needed, this is %s" % sys.version.split()[0])
from guest.__main__ import main
sys.exit(main())
"""


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A zip Python can run (`python3 -I -S bundle.zip`); `sha256` names it."""

    data: bytes
    sha256: str


def sources(directory: Path = _GUEST) -> dict[str, bytes]:
    """The guest's modules as the bundle names them (`guest/wire.py`), with the `__main__.py` that starts them."""
    files = {
        f"guest/{path.relative_to(directory).as_posix()}": path.read_bytes() for path in sorted(directory.rglob("*.py"))
    }
    return {"__main__.py": _MAIN.encode(), **files}


def build(files: dict[str, bytes] | None = None, *, magic: bytes | None = None) -> Bundle:
    """The bundle of `files` (default: `sources()`).

    `magic` is the guest's Python's bytecode magic number (4 bytes); where it is this Python's, bytecode goes along.
    """
    members = dict(sorted((sources() if files is None else files).items()))
    if magic == importlib.util.MAGIC_NUMBER:
        members = {name: data for source, text in members.items() for name, data in _with_bytecode(source, text)}
    data = _zip(members)
    return Bundle(data=data, sha256=hashlib.sha256(data).hexdigest())


def warm_object() -> bytes:
    """The object a guest judges before it is saved (`harness/warm/warm.bpf.c`)."""
    return _WARM.read_bytes()


def fingerprint(files: dict[str, bytes]) -> str:
    """A hash of what `build` makes of `files` here, without making it: the sources, and the bytecode's magic number."""
    digest = hashlib.sha256(importlib.util.MAGIC_NUMBER)
    for name, data in sorted(files.items()):
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(data), data))
    return digest.hexdigest()


def bytecode(name: str, source: bytes) -> bytes:
    """An unchecked hash-based .pyc of `source`; `name` is what tracebacks call the file."""
    code = compile(source, name, "exec", dont_inherit=True, optimize=0)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source) + marshal.dumps(code)


def _with_bytecode(name: str, source: bytes) -> list[tuple[str, bytes]]:
    # Bytecode comes first: zipimport prefers it, and a reader of the archive still has the source.
    return [(f"{name}c", bytecode(name, source)), (name, source)]


def _zip(members: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, data in members.items():
            information = zipfile.ZipInfo(name, _EPOCH)
            information.create_system = 3
            information.external_attr = 0o100644 << 16
            archive.writestr(information, data)
    return stream.getvalue()


