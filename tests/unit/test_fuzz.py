"""The fuzz targets for seconds (tests/fuzz has the engines for hours), every finding once, and inputs built to cost
much more than their size.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.guest.bpf_object import BpfObject
from harness.guest.btf import Btf
from harness.guest.btf_ext import BtfExt
from harness.guest.errors import GuestError
from tests.fuzz import blind, seeds, targets
from tests.fuzz.patch import RECORD
from tests.support.btf_builder import BtfBuilder

needs_seeds = pytest.mark.skipif(not seeds.objects(), reason="programs/ is not built (make -C programs)")
FINDINGS = sorted(path for path in seeds.FINDINGS.rglob("*") if path.is_file())

# docs/reliability.md states these: what an input of N bytes may cost.
MOST_TIMES_ITS_SIZE, MOST_BESIDES = 64, 80 << 20
MOST_SECONDS = 20.0

patch = st.builds(
    RECORD.pack, st.integers(0, 40), st.integers(0, 7), st.integers(0, 0xFFFF),
    st.one_of(st.integers(0, 255), st.integers(0, 0xFFFFFFFF)),
)  # fmt: skip
recipe = st.builds(
    lambda which, steps: bytes((which,)) + b"".join(steps), st.integers(0, 255), st.lists(patch, max_size=12)
)


@needs_seeds
@pytest.mark.parametrize("target", targets.RECIPES)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=recipe)
def test_damage_gives_our_errors_only(target: str, data: bytes) -> None:
    targets.check(target, data)


@needs_seeds
@pytest.mark.parametrize("target", sorted(targets.TARGETS))
def test_blind_damage_gives_our_errors_only(target: str) -> None:
    assert not blind.run(target, 150, seed=8)


@needs_seeds
@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_what_was_found_once_is_not_found_again(path) -> None:  # type: ignore[no-untyped-def]
    targets.check(path.parent.name, path.read_bytes())


@needs_seeds
@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="needs atheris (pip install atheris)")
def test_the_coverage_guided_engine_runs() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "btf_ext", "-runs=300"]
    done = subprocess.run(command, cwd=seeds.ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Done 300 runs" in done.stderr


def test_a_finding_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine itself: an error that is not ours is told."""
    monkeypatch.setitem(targets.TARGETS, "wire", lambda _data: {}[1])  # type: ignore[arg-type]
    with pytest.raises(targets.Finding, match="wire: KeyError"):
        targets.check("wire", b"")


# --- small inputs that ask for much


def btf_section(types: bytes, strings: bytes) -> bytes:
    head = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings))
    return head + types + strings


SIZE = 2 << 20  # of the inputs below


def names_in_names(vlen: bool) -> bytes:
    """Every type (or every member of one) has a name that is a tail of one long string."""
    count = SIZE // 24
    strings = b"\0" + b"a" * (SIZE // 2) + b"\0"
    if not vlen:
        return btf_section(b"".join(struct.pack("<III", 1 + n, 7 << 24, 0) for n in range(count)), strings)
    count = min(count, 0xFFFF)
    members = b"".join(struct.pack("<III", 1 + n, 0, 0) for n in range(count))
    return btf_section(struct.pack("<III", 1, 4 << 24 | count, 8) + members, strings)


def walk_btf(data: bytes) -> None:
    found = Btf(data)
    for id_ in range(1, found.count):
        t = found.type(id_)
        if t.kind == 4:
            found.members(t)
    found.ids_by_essential_name("a")


def elf_file(sections: list[tuple[str, int, int, bytes, int, int, int]]) -> bytes:
    """A BPF object of sections (name, type, flags, content, link, info, entsize); section 1 must be the name table."""
    table = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in sections)
    offset_of, at = {}, 1
    for name, *_ in sections:
        offset_of.setdefault(name, at)
        at += len(name) + 1
    body, headers = bytearray(64), [bytes(64)]
    for name, type_, flags, own, link, info, entsize in sections:
        content = table if name == ".strtab" else own
        place = (0, len(body), len(content))
        headers.append(struct.pack("<IIQQQQIIQQ", offset_of[name], type_, flags, *place, link, info, 8, entsize))
        body += content + bytes(-len(content) % 8)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    body[:64] = ident + struct.pack("<HHIQQQIHHHHHH", 1, 247, 1, 0, 0, len(body), 0, 64, 0, 0, 64, len(headers), 1)
    return bytes(body) + b"".join(headers)


def symbols(rows: list[tuple[int, int, int, int, int]]) -> bytes:
    """.symtab of (name, info, shndx, value, size)."""
    return b"".join(struct.pack("<IBBHQQ", name, info, 0, *rest) for name, info, *rest in rows)


def symbols_named_by_tails() -> bytes:
    count = SIZE // 48
    table = symbols([(1 + n, 0x11, 0, 0, 0) for n in range(count)])
    return elf_file([(".strtab", 3, 0, b"", 0, 0, 0), (".names", 3, 0, b"\0" + b"a" * (SIZE // 2) + b"\0", 0, 0, 0),
                     (".symtab", 2, 0, table, 2, 1, 24)])  # fmt: skip


def programs_over_each_other() -> bytes:
    """Many functions, each of which is the whole section."""
    code = bytes.fromhex("b700000000000000") * (SIZE // 16)
    table = symbols([(0, 0, 0, 0, 0), *((1, 0x12, 4, 0, len(code)) for _ in range(SIZE // 48))])
    return elf_file([(".strtab", 3, 0, b"", 0, 0, 0), (".names", 3, 0, b"\0f\0", 0, 0, 0),
                     (".symtab", 2, 0, table, 2, 1, 24), ("tc", 1, 6, code, 0, 0, 0)])  # fmt: skip


def sections_over_each_other() -> bytes:
    """Many executable sections, each of which is most of the file."""
    data = bytearray(elf_file([(".strtab", 3, 0, b"", 0, 0, 0), (".symtab", 2, 0, bytes(24), 1, 1, 24),
                               *((".text", 1, 6, b"", 0, 0, 0) for _ in range(SIZE // 128))]))  # fmt: skip
    (table,) = struct.unpack_from("<Q", data, 40)
    for at in range(table + 3 * 64, len(data), 64):
        struct.pack_into("<QQ", data, at + 24, 0, len(data) // 2)
    return bytes(data)


def huge_bss(kind: str, size: int) -> bytes:
    data = bytearray(elf_file([(".strtab", 3, 0, b"", 0, 0, 0), (".symtab", 2, 0, bytes(24), 1, 1, 24),
                               (kind, 8, 3, b"", 0, 0, 0)]))  # fmt: skip
    (table,) = struct.unpack_from("<Q", data, 40)
    struct.pack_into("<Q", data, table + 3 * 64 + 32, size)
    return bytes(data)


def huge_extern() -> bytes:
    """`extern char CONFIG_X[4294967295] __kconfig`."""
    b = BtfBuilder()
    char = b.int("char", 1, 1)
    number = b.int("int", 4, 1)
    array = b.add("", 3, 0, (char, number, 0xFFFFFFFF))
    var = b.add("CONFIG_X", 14, array, (2,))
    b.add(".kconfig", 15, 0, (var, 0, 0), vlen=1)
    table = symbols([(0, 0, 0, 0, 0), (1, 0x10, 0, 0, 0)])
    return elf_file([(".strtab", 3, 0, b"", 0, 0, 0), (".names", 3, 0, b"\0CONFIG_X\0", 0, 0, 0),
                     (".symtab", 2, 0, table, 2, 1, 24), (".BTF", 1, 0, b.build(), 0, 0, 0)])  # fmt: skip


def deep_calls() -> bytes:
    """A chain of functions that call one another, longer than Python's stack is deep."""
    count = 5000
    call = struct.pack("<BBhi", 0x85, 0x10, 0, 0) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    body = bytearray()
    for _ in range(count):
        body += struct.pack("<BBhi", 0x85, 0x10, 0, 1) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    body += bytes.fromhex("9500000000000000") * 2
    chain = [(3, 0x12, 4, 16 * n, 16) for n in range(count + 1)]
    rows = [(0, 0, 0, 0, 0), (1, 0x12, 5, 0, 16), *chain, (0, 3, 4, 0, 0)]
    relocs = struct.pack("<QQ", 0, (len(rows) - 1) << 32 | 10)
    return elf_file([(".strtab", 3, 0, b"", 0, 0, 0), (".names", 3, 0, b"\0e\0f\0", 0, 0, 0),
                     (".symtab", 2, 0, symbols(rows), 2, 1, 24), (".text", 1, 6, bytes(body), 0, 0, 0),
                     ("tc", 1, 6, bytes(call), 0, 0, 0), (".reltc", 9, 0, relocs, 3, 5, 16)])  # fmt: skip


def info_sections() -> bytes:
    """.BTF.ext whose three subsections are the same bytes, in the smallest records."""
    body = struct.pack("<I", 16) + b"".join(struct.pack("<II4I", 0, 1, 0, 0, 0, 0) for _ in range(SIZE // 24))
    return struct.pack("<HBBI6I", 0xEB9F, 1, 0, 32, *(0, len(body)) * 3) + body


AMPLIFIERS: dict[str, tuple[Callable[[bytes], object], Callable[[], bytes]]] = {
    "type names inside of each other": (walk_btf, lambda: names_in_names(False)),
    "member names inside of each other": (walk_btf, lambda: names_in_names(True)),
    "symbol names inside of each other": (targets.elf, symbols_named_by_tails),
    "programs over each other": (targets.opened, programs_over_each_other),
    "sections over each other": (targets.opened, sections_over_each_other),
    "a .bss of 4 GiB": (targets.opened, lambda: huge_bss(".bss", 1 << 32)),
    "a .bss of 2**63 bytes": (targets.opened, lambda: huge_bss(".bss", 1 << 63)),
    "an arena of 2**40 bytes": (targets.opened, lambda: huge_bss(".addr_space.1", 1 << 40)),
    "a Kconfig extern of 4 GiB": (targets.opened, huge_extern),
    "calls 5000 deep": (targets.opened, deep_calls),
    "records of nothing": (BtfExt, info_sections),
    "an object opened on the host": (lambda data: BpfObject(data, "x", None), sections_over_each_other),
}


def cost(work: Callable[[], object]) -> tuple[int, float, str]:
    """Bytes of memory, seconds of CPU, and the error (ours or nobody's) of some work, in a process of its own."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(there, "w") as pipe:
            pipe.write(_measured(work))
        os._exit(0)
    os.close(there)
    with os.fdopen(here) as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, f"status {status}: killed, or out of memory"
    memory, seconds, error = said.split(" ", 2)
    return int(memory), float(seconds), error


def _measured(work: Callable[[], object]) -> str:
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
    resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
    gc.collect()  # what other tests have left, freed meanwhile, would be taken for memory that was not needed
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak (VmHWM) starts over
    before, started, error = _status("VmRSS"), time.process_time(), ""
    try:
        work()
    except GuestError:
        pass
    except BaseException as other:
        error = repr(other)[:300]
    return f"{_status('VmHWM') - before} {time.process_time() - started} {error}"


def _status(field: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


@pytest.mark.parametrize("name", AMPLIFIERS)
def test_an_input_costs_at_most_a_multiple_of_its_size(name: str) -> None:
    read, build = AMPLIFIERS[name]
    data = build()
    memory, seconds, error = cost(lambda: read(data))
    assert not error
    assert seconds < MOST_SECONDS
    assert memory < MOST_TIMES_ITS_SIZE * len(data) + MOST_BESIDES, f"{memory >> 20} MiB for {len(data)} bytes"


def test_the_scales_weigh() -> None:
    memory, _, error = cost(lambda: bytes(range(256)) * (1 << 18))
    assert not error
    assert memory >= 60 << 20  # of 64: the kernel counts pages in batches
    assert "KeyError" in cost(lambda: {}[1])[2]
