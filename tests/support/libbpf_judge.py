"""The installed libbpf as a judge: what it decides for each CO-RE relocation, and the instructions it makes.

libbpf relocates before it loads, so its debug messages and bpf_program__insns() are complete even when the kernel then
refuses a program. Needs root (libbpf probes bpf(2) first); `judge()` skips the test by name where that is missing.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import os
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest

_PRINT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class _OpenOpts(ctypes.Structure):
    _fields_ = [  # struct bpf_object_open_opts, libbpf.h
        ("sz", ctypes.c_size_t),
        ("object_name", ctypes.c_char_p),
        ("relaxed_maps", ctypes.c_bool),
        ("pin_root_path", ctypes.c_char_p),
        ("removed", ctypes.c_uint32),
        ("kconfig", ctypes.c_char_p),
        ("btf_custom_path", ctypes.c_char_p),
        ("kernel_log_buf", ctypes.c_char_p),
        ("kernel_log_size", ctypes.c_size_t),
        ("kernel_log_level", ctypes.c_uint32),
    ]


@dataclass
class Decision:
    """One record as libbpf saw it: texts are libbpf's own."""

    prog: str
    number: int
    local_spec: str | None = None
    target_spec: str | None = None
    outcome: str = "resolved"
    orig_value: int | None = None
    new_value: int | None = None


@dataclass
class Judgement:
    """`errno` 0: loaded; `relocated`: CO-RE was done with and nothing was fatal there; `insns` by entry program name;
    `appended` for each entry program the (subprogram, number of instructions) in order; `kconfig` the content of the
    `.kconfig` map as the kernel has it (of a load that went well); `log` all messages."""

    errno: int = 0
    relocated: bool = True
    decisions: list[Decision] = field(default_factory=list)
    insns: dict[str, bytes] = field(default_factory=dict)
    appended: dict[str, list[tuple[str, int]]] = field(default_factory=dict)
    kconfig: bytes | None = None
    log: list[str] = field(default_factory=list)


@functools.lru_cache(maxsize=1)
def _library() -> tuple[ctypes.CDLL, ctypes.CDLL]:
    lib = ctypes.CDLL("libbpf.so.1", use_errno=True)
    libc = ctypes.CDLL(None)
    pointer = ctypes.c_void_p
    for name, result, arguments in (
        ("bpf_object__open_mem", pointer, [ctypes.c_char_p, ctypes.c_size_t, ctypes.POINTER(_OpenOpts)]),
        ("bpf_object__load", ctypes.c_int, [pointer]),
        ("bpf_object__close", None, [pointer]),
        ("bpf_object__next_program", pointer, [pointer, pointer]),
        ("bpf_object__next_map", pointer, [pointer, pointer]),
        ("bpf_map__name", ctypes.c_char_p, [pointer]),
        ("bpf_map__set_autocreate", ctypes.c_int, [pointer, ctypes.c_bool]),
        ("bpf_map__value_size", ctypes.c_uint32, [pointer]),
        ("bpf_map__fd", ctypes.c_int, [pointer]),
        ("bpf_map_lookup_elem", ctypes.c_int, [ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p]),
        ("bpf_program__name", ctypes.c_char_p, [pointer]),
        ("bpf_program__insns", pointer, [pointer]),
        ("bpf_program__set_autoload", ctypes.c_int, [pointer, ctypes.c_bool]),
        ("bpf_program__insn_cnt", ctypes.c_size_t, [pointer]),
        ("libbpf_set_print", pointer, [_PRINT]),
        ("libbpf_version_string", ctypes.c_char_p, []),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    libc.vsnprintf.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, pointer]
    return lib, libc


def libbpf_version() -> str:
    """`1.1.2`, the rule version to compare with."""
    return str(_library()[0].libbpf_version_string().decode()).removeprefix("v")


def needs_libbpf() -> None:
    """Skip the calling test by name where the judge cannot sit."""
    try:
        _library()
    except OSError:
        pytest.skip("libbpf.so.1 is not installed")
    if os.geteuid() != 0:
        pytest.skip("libbpf probes bpf(2) before it relocates: needs root")


def judge(
    data: bytes, *, target: bytes | str | None = None, kconfig: str | None = None, skip: Collection[str] = ()
) -> Judgement:
    """Load an object with libbpf. `target`: bytes of, or path to, the BTF to relocate against (None: the running
    kernel's); `skip`: programs that are not to be loaded.
    """
    needs_libbpf()
    if isinstance(target, bytes):
        with tempfile.TemporaryDirectory(prefix="corematrix-judge-") as scratch:
            path = Path(scratch) / "target.btf"
            path.write_bytes(target)
            return judge(data, target=str(path), kconfig=kconfig, skip=skip)
    lib, libc = _library()
    result = Judgement()

    def on_message(_level: int, text: bytes, arguments: int) -> int:
        buffer = ctypes.create_string_buffer(8192)
        libc.vsnprintf(buffer, len(buffer), text, arguments)
        result.log.append(buffer.value.decode("utf-8", "replace").removeprefix("libbpf: ").rstrip())
        return 0

    callback = _PRINT(on_message)
    lib.libbpf_set_print(callback)
    try:
        _load(lib, data, _options(target, kconfig), skip, result)
    finally:
        lib.libbpf_set_print(_PRINT())
    _read_log(result)
    if result.errno and any("permitted" in line and "probe" in line for line in result.log):
        pytest.skip("bpf(2) is not permitted here")
    return result


def _options(target: str | None, kconfig: str | None) -> _OpenOpts:
    log = ctypes.create_string_buffer(1 << 16)
    return _OpenOpts(
        sz=ctypes.sizeof(_OpenOpts),
        object_name=b"judged",
        kconfig=kconfig.encode() if kconfig is not None else None,
        btf_custom_path=target.encode() if target is not None else None,
        kernel_log_buf=ctypes.cast(log, ctypes.c_char_p),
        kernel_log_size=len(log),
    )


def _load(lib: ctypes.CDLL, data: bytes, opts: _OpenOpts, skip: Collection[str], result: Judgement) -> None:
    obj = lib.bpf_object__open_mem(data, len(data), ctypes.byref(opts))
    if not obj:
        result.errno = ctypes.get_errno()
        return
    for map_ in _maps(
        lib, obj
    ):  # maps are not relocated against; without them an object needs no sizes from its application
        if not lib.bpf_map__name(map_).endswith(b".kconfig"):
            lib.bpf_map__set_autocreate(map_, False)
    for prog in _progs(lib, obj):
        if lib.bpf_program__name(prog).decode() in skip:
            lib.bpf_program__set_autoload(prog, False)
    result.errno = -lib.bpf_object__load(obj)
    for prog in _progs(lib, obj):
        count = lib.bpf_program__insn_cnt(prog)
        result.insns[lib.bpf_program__name(prog).decode()] = ctypes.string_at(lib.bpf_program__insns(prog), count * 8)
    for map_ in _maps(lib, obj):
        if lib.bpf_map__name(map_).endswith(b".kconfig") and not result.errno:
            value = ctypes.create_string_buffer(lib.bpf_map__value_size(map_))
            assert lib.bpf_map_lookup_elem(lib.bpf_map__fd(map_), bytes(4), value) == 0
            result.kconfig = value.raw
    lib.bpf_object__close(obj)


def _progs(lib: ctypes.CDLL, obj: int) -> list[int]:
    progs, prog = [], lib.bpf_object__next_program(obj, None)
    while prog:
        progs.append(prog)
        prog = lib.bpf_object__next_program(obj, prog)
    return progs


def _maps(lib: ctypes.CDLL, obj: int) -> list[int]:
    maps, map_ = [], lib.bpf_object__next_map(obj, None)
    while map_:
        maps.append(map_)
        map_ = lib.bpf_object__next_map(obj, map_)
    return maps


_RELO = re.compile(r"prog '(?P<prog>[^']*)': relo #(?P<number>\d+): (?P<rest>.*)", re.DOTALL)
_PATCHED = re.compile(r"patched insn #\d+ \(\S+\) (?:imm|off|imm64) (\d+) -> (\d+)")
_ADDED = re.compile(r"prog '([^']*)': added (\d+) insns from sub-prog '([^']*)'")


def _read_log(result: Judgement) -> None:
    section, current = 0, None
    for line in result.log:
        if line.startswith("failed to perform CO-RE relocations"):  # the only word libbpf has on a bad record
            result.relocated = False
        if "CO-RE relocations" in line and line.startswith("sec '"):
            section += 1
        added = _ADDED.match(line)
        if added:
            result.appended.setdefault(added[1], []).append((added[3], int(added[2])))
        found = _RELO.match(line)
        if found is None or found["rest"].startswith(
            "poisoning insn"
        ):  # the latter: a reference to a map that was not created
            continue
        key = (section, found["prog"], int(found["number"]))
        if current is None or current[0] != key:
            current = (key, Decision(prog=found["prog"], number=key[2]))
            result.decisions.append(current[1])
        _read_decision(current[1], found["rest"])
        if "failed to relocate" in line or "failed to patch" in line:
            result.relocated = False
            current[1].outcome = "error"


def _read_decision(decision: Decision, text: str) -> None:
    if text.startswith("<") and decision.local_spec is None:
        decision.local_spec = text
    elif text.startswith("matching candidate #") and decision.target_spec is None:
        decision.target_spec = text.split(" ", 3)[3]
    elif text.startswith("substituting insn"):
        decision.outcome = "poisoned"
    patched = _PATCHED.match(text)
    if patched:
        decision.orig_value, decision.new_value = int(patched[1]), int(patched[2])
