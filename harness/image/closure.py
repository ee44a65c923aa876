"""The guest's user land: a Python and what it needs, picked file by file out of Debian packages of the guest's
architecture.

Only what the guest's code can reach goes in: its imports are followed through the standard library's sources
(`modules.py` decides), shared libraries through DT_NEEDED. Sources become unchecked hash-based bytecode when this
Python's bytecode is the guest's (PEP 552); a `.pyc` made on x86_64 loads on arm64.
"""

from __future__ import annotations

import importlib.util
import io
import marshal
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from harness.apt.deb import Member, read_members
from harness.errors import InfrastructureError
from harness.image import cpio, imports
from harness.payload import bytecode

# The real libbpf, for the second loader; what it needs comes along.
_LIBRARIES = ("libbpf.so.1",)

_GLOBS = (
    "usr/bin/python3.*", "usr/lib/python3.*", "lib/*", "lib64/*", "usr/lib/*-linux-gnu*/*.so*", "usr/lib64/*",
    "usr/lib/ld-*",
)  # fmt: skip
_PYTHON = re.compile(r"usr/bin/python3\.\d+")
# The bytecode's magic number by Python version (importlib/_bootstrap_external.py).
_MAGIC = {"3.9": b"a\r\r\n", "3.11": b"\xa7\r\r\n", "3.12": b"\xcb\r\r\n", "3.13": b"\xf3\r\r\n"}


@dataclass(frozen=True, kw_only=True)
class UserLand:
    """The guest's files by path. `program` is its Python's path, `version` its `3.N`."""

    files: Mapping[str, cpio.Entry]
    program: str
    version: str


def user_land(debs: Sequence[Path], sources: Mapping[str, bytes]) -> UserLand:
    """The user land for the guest code `sources` (name in the bundle -> text), from the packages at `debs`.

    Raises FetchError for a package that cannot be read, InfrastructureError when something needed is in none of them.
    """
    members = {_merged(name): member for path in debs for name, member in read_members(path, _GLOBS).items()}
    program = next((name for name in sorted(members) if _PYTHON.fullmatch(name)), None)
    if program is None:
        message = "no python3.N among the guest's packages"
        raise InfrastructureError(message)
    version = program.removeprefix("usr/bin/python")
    standard = _standard_library(members, version, sources)
    extensions = {name: member for name, member in standard.items() if name.endswith(".so")}
    binaries = {program: members[program], **extensions}
    libraries = {**_libraries(members, binaries.values()), **_interpreter(members, program)}
    files = {
        **{name: _executable(member) for name, member in {**binaries, **libraries}.items()},
        **_bytecode(standard, version),
        **_layout(members),
    }
    return UserLand(files=files, program=f"/{program}", version=version)


def bytecode_magic(version: str) -> bytes | None:
    """The magic number of bytecode for Python `3.N`, None when it is not known here."""
    return _MAGIC.get(version)


def dump(user_land: UserLand) -> bytes:
    """One blob for the cache; `load` reads it back."""
    rows = {name: (entry.mode, entry.data, entry.device) for name, entry in user_land.files.items()}
    return marshal.dumps((user_land.program, user_land.version, rows))


def load(blob: bytes) -> UserLand:
    """What `dump` wrote. Only for blobs of our own cache, found by their hash."""
    program, version, rows = marshal.loads(blob)
    files = {name: cpio.Entry(mode=mode, data=data, device=device) for name, (mode, data, device) in rows.items()}
    return UserLand(files=files, program=program, version=version)


def _merged(name: str) -> str:
    """/lib is /usr/lib on every Debian since 12; packages of before still say /lib."""
    return f"usr/{name}" if name.startswith(("lib/", "lib64/")) else name


def _layout(members: Mapping[str, Member]) -> dict[str, cpio.Entry]:
    names = {"lib": "usr/lib", "lib64": "usr/lib64"}
    present = {link: target for link, target in names.items() if any(name.startswith(f"{target}/") for name in members)}
    return {link: cpio.symlink(target) for link, target in present.items()}


def _standard_library(members: Mapping[str, Member], version: str, sources: Mapping[str, bytes]) -> dict[str, Member]:
    """The members of the standard library that `sources` can reach, by path."""
    root = f"usr/lib/python{version}/"
    available: dict[str, str] = {}
    for name in members:
        if name.startswith(root) and members[name].data is not None:
            module = imports.module_name(name.removeprefix(root))
            if module is not None:
                available.setdefault(module, name)
    texts = {module: _data(members[name]) for module, name in available.items() if name.endswith(".py")}
    reached = imports.reachable(sources, texts, set(available))
    return {available[module]: members[available[module]] for module in sorted(reached)}


def _bytecode(standard: Mapping[str, Member], version: str) -> dict[str, cpio.Entry]:
    compiled = bytecode_magic(version) == importlib.util.MAGIC_NUMBER
    files = {}
    for name, member in standard.items():
        if name.endswith(".py"):
            text = _data(member)
            files[f"{name}c" if compiled else name] = cpio.file(bytecode(f"/{name}", text) if compiled else text)
    # What the interpreter looks for to know where its library is (Modules/getpath.py): landmarks, never read.
    root = f"usr/lib/python{version}"
    files.setdefault(f"{root}/os.py", cpio.file(b""))
    files[f"{root}/lib-dynload/.keep"] = cpio.file(b"")
    return files


def _libraries(members: Mapping[str, Member], binaries: Iterable[Member]) -> dict[str, Member]:
    """Every shared library `binaries` need, by the path the dynamic loader looks at, and theirs in turn. Links stay
    links: the file's own name is where libbpf's patch level stands (`libbpf_ffi.py`).
    """
    by_soname = {posixpath.basename(name): name for name in sorted(members) if ".so" in name and "/python3" not in name}
    wanted = [*_LIBRARIES, *(name for member in binaries for name in _needed(_data(member)))]
    found: dict[str, Member] = {}
    while wanted:
        soname = wanted.pop()
        name = by_soname.get(soname)
        if name is None:
            message = f"{soname}, which the guest's Python needs, is in none of its packages"
            raise InfrastructureError(message)
        if name not in found:
            steps = _resolved(members, name)
            found.update(steps)
            wanted += _needed(_data(list(steps.values())[-1]))
    return found


def _executable(member: Member) -> cpio.Entry:
    return cpio.symlink(member.link) if member.link is not None else cpio.file(_data(member), executable=True)


def _interpreter(members: Mapping[str, Member], program: str) -> dict[str, Member]:
    """The dynamic loader at the very path the program names: the kernel looks nowhere else. s390x has it in /lib and
    in /lib/s390x-linux-gnu too.
    """
    section = ELFFile(io.BytesIO(_data(members[program]))).get_section_by_name(".interp")
    if section is None:
        return {}
    name = _merged(section.data().rstrip(b"\0").decode().removeprefix("/"))
    return _resolved(members, name)


def _resolved(members: Mapping[str, Member], name: str) -> dict[str, Member]:
    """What stands at a library's name, the links behind it in turn, and last the regular file they lead to."""
    steps: dict[str, Member] = {}
    for _ in range(8):
        member = members.get(name)
        if member is None:
            break
        steps[name] = member
        if member.link is None:
            return steps
        target = posixpath.normpath(posixpath.join("/", posixpath.dirname(name), member.link)).removeprefix("/")
        name = _merged(target)
    message = f"{name}: a library's link leads nowhere"
    raise InfrastructureError(message)


def _needed(data: bytes) -> list[str]:
    """DT_NEEDED and the interpreter, as sonames."""
    elf = ELFFile(io.BytesIO(data))
    dynamic = elf.get_section_by_name(".dynamic")
    interpreter = elf.get_section_by_name(".interp")
    names = [posixpath.basename(interpreter.data().rstrip(b"\0").decode())] if interpreter is not None else []
    if isinstance(dynamic, DynamicSection):
        names += [str(getattr(tag, "needed", "")) for tag in dynamic.iter_tags("DT_NEEDED")]
    return names


def _data(member: Member) -> bytes:
    if member.data is None:
        message = f"{member.name}: a link where a file was expected"
        raise InfrastructureError(message)
    return member.data
