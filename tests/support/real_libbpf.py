"""The installed libbpf loads and RUNS test objects in this machine's kernel, program by program.

It shares no code with the harness, so what it says can be held against the harness (`libbpf_judge` is for relocation).
Needs root and bpf(2): the mark `needs_bpf` skips by name where they are absent.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, c_bool, c_char_p, c_int, c_size_t, c_uint, c_void_p
from dataclasses import dataclass, field
from pathlib import Path

import pytest

POISON = bytes.fromhex("850000001023ad0b")
# What libbpf says of one relocation: first the local spec, later (perhaps) what it wrote.
_SPEC = re.compile(r"relo #\d+: <(\w+)> \[\d+\] (?:(?:struct|union|enum|typedef) )?([^\s(]+)")
_PATCHED = re.compile(r"relo #\d+: patched insn #\d+ \([^)]*\) (?:imm|off|imm64) -?\d+ -> (-?\d+)")
_PRINT = CFUNCTYPE(c_int, c_int, c_void_p, c_void_p)


class _OpenOpts(ctypes.Structure):
    """struct bpf_object_open_opts of libbpf.h, as far as needed."""

    _fields_ = (
        ("sz", c_size_t), ("object_name", c_char_p), ("relaxed_maps", c_bool), ("pin_root_path", c_char_p),
        ("reserved", c_uint), ("kconfig", c_char_p), ("btf_custom_path", c_char_p),
    )  # fmt: skip


class _TestRunOpts(ctypes.Structure):
    """struct bpf_test_run_opts of bpf.h."""

    _fields_ = (
        ("sz", c_size_t), ("data_in", c_void_p), ("data_out", c_void_p), ("data_size_in", c_uint),
        ("data_size_out", c_uint), ("ctx_in", c_void_p), ("ctx_out", c_void_p), ("ctx_size_in", c_uint),
        ("ctx_size_out", c_uint), ("retval", c_uint), ("repeat", c_int), ("duration", c_uint), ("flags", c_uint),
        ("cpu", c_uint), ("batch_size", c_uint),
    )  # fmt: skip


_PROTOTYPES = {
    "bpf_object__open_file": (c_void_p, (c_char_p, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__next_program": (c_void_p, (c_void_p, c_void_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_program__name": (c_char_p, (c_void_p,)),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__set_autoload": (c_int, (c_void_p, c_bool)),
    "bpf_program__insns": (c_void_p, (c_void_p,)),
    "bpf_program__insn_cnt": (c_size_t, (c_void_p,)),
    "bpf_map__lookup_elem": (c_int, (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_uint)),
    "bpf_prog_test_run_opts": (c_int, (c_int, c_void_p)),
    "libbpf_set_print": (c_void_p, (c_void_p,)),
}


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """`errno` is 0 or bpf_object__load()'s, positive; `insns` the final instructions, empty when it gave up before."""

    errno: int
    messages: str
    insns: bytes = b""

    @property
    def poisoned(self) -> int:
        """How many instructions are libbpf's poison (both halves of an ldimm64 count)."""
        return sum(self.insns[at : at + 8] == POISON for at in range(0, len(self.insns), 8))

    @property
    def decisions(self) -> list[tuple[str, str, int | None]]:
        """(kind, field, new value) of each relocation in order, from libbpf's debug output; None where it poisoned."""
        found: list[tuple[str, str, int | None]] = []
        for line in self.messages.splitlines():
            if spec := _SPEC.search(line):
                found.append((spec[1], spec[2], None))
            elif patched := _PATCHED.search(line):
                found[-1] = (*found[-1][:2], int(patched[1]))
        return found


@dataclass
class Libbpf:
    """libbpf.so.1 of this machine."""

    dll: ctypes.CDLL = field(default_factory=lambda: ctypes.CDLL("libbpf.so.1", use_errno=True))
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(self.dll, name)
            function.restype, function.argtypes = result, arguments
        self._libc = ctypes.CDLL(None)
        self._libc.vsnprintf.argtypes = (c_void_p, c_size_t, c_void_p, c_void_p)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        text = ctypes.create_string_buffer(1 << 16)

        def keep(_level: int, fmt: int, arguments: int) -> int:
            self._libc.vsnprintf(text, len(text), fmt, arguments)
            self.messages.append(text.value.decode("utf-8", "replace"))
            return 0

        self.messages.clear()
        callback = _PRINT(keep)
        before = self.dll.libbpf_set_print(ctypes.cast(callback, c_void_p))
        try:
            yield
        finally:
            self.dll.libbpf_set_print(before)

    def programs(self, opened: int) -> Iterator[tuple[str, int]]:
        """(name, struct bpf_program *) of each program, in the object's order."""
        program = None
        while program := self.dll.bpf_object__next_program(opened, program):
            yield self.dll.bpf_program__name(program).decode(), program

    def _open(self, path: Path, btf: Path | None, kconfig: str | None) -> int | None:
        options = _OpenOpts(
            sz=ctypes.sizeof(_OpenOpts),
            btf_custom_path=os.fsencode(btf) if btf else None,
            kconfig=kconfig.encode() if kconfig is not None else None,
        )
        opened: int | None = self.dll.bpf_object__open_file(os.fsencode(path), ctypes.byref(options))
        return opened

    @contextmanager
    def loaded(
        self, path: Path, program: str | None = None, *, btf: Path | None = None, kconfig: str | None = None
    ) -> Iterator[tuple[Loaded, int | None]]:
        """Load `program` (None: all) against `btf` (None: this machine's); gives the judgement and the open object."""
        with self._listening():
            opened = self._open(path, btf, kconfig)
            if opened is None:
                yield Loaded(errno=ctypes.get_errno(), messages="".join(self.messages)), None
                return
            try:
                for name, one in self.programs(opened):
                    self.dll.bpf_program__set_autoload(one, program in {None, name})
                errno = -self.dll.bpf_object__load(opened)
                insns = b"".join(self._insns(one) for name, one in self.programs(opened) if program in {None, name})
                yield Loaded(errno=errno, messages="".join(self.messages), insns=insns), opened
            finally:
                self.dll.bpf_object__close(opened)

    def load(
        self, path: Path, program: str | None = None, *, btf: Path | None = None, kconfig: str | None = None
    ) -> Loaded:
        """As `loaded`, with everything closed again."""
        with self.loaded(path, program, btf=btf, kconfig=kconfig) as (loaded, _opened):
            return loaded

    def _insns(self, program: int) -> bytes:
        count = self.dll.bpf_program__insn_cnt(program)
        return ctypes.string_at(self.dll.bpf_program__insns(program), count * 8)

    def run(self, opened: int, program: str) -> int:
        """BPF_PROG_TEST_RUN of a raw tracepoint program with a context of zeros; its return value."""
        context = ctypes.create_string_buffer(8 * 12)
        options = _TestRunOpts(
            sz=ctypes.sizeof(_TestRunOpts), ctx_in=ctypes.addressof(context), ctx_size_in=len(context.raw)
        )
        handle = dict(self.programs(opened))[program]
        error = self.dll.bpf_prog_test_run_opts(self.dll.bpf_program__fd(handle), ctypes.byref(options))
        if error:
            raise OSError(-error, f"BPF_PROG_TEST_RUN of {program}")
        return int(options.retval)

    def value(self, opened: int, map_name: str, key: int, size: int) -> bytes:
        """The value at `key` (u32) of the map."""
        found = self.dll.bpf_object__find_map_by_name(opened, map_name.encode())
        value, wanted = ctypes.create_string_buffer(size), ctypes.c_uint32(key)
        error = self.dll.bpf_map__lookup_elem(found, ctypes.byref(wanted), 4, value, size, 0)
        if error:
            raise OSError(-error, f"no key {key} in map {map_name}")
        return value.raw


def _why_not() -> str | None:
    if os.geteuid() != 0:
        return "needs root for bpf(2)"
    if not Path("/sys/kernel/btf/vmlinux").exists():
        return "this machine's kernel has no BTF"
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return "libbpf.so.1 is not installed (apt-get install libbpf1)"
    return None


needs_bpf = pytest.mark.skipif(_why_not() is not None, reason=str(_why_not()))
