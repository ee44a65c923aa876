"""Compiling BPF C in tests, with the compiler the project asks for (clang 19: older ones drop some relocations
silently).
"""

from __future__ import annotations

import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CLANG = "clang-19"

PRELUDE = r"""
typedef signed char s8; typedef unsigned char u8; typedef short s16; typedef unsigned short u16;
typedef int s32; typedef unsigned int u32; typedef long long s64; typedef unsigned long long u64;
typedef _Bool bool;
#define SEC(name) __attribute__((section(name), used))
#define PAI __attribute__((preserve_access_index))
#define noinline __attribute__((noinline))
#define hidden __attribute__((visibility("hidden")))
enum bpf_field_info_kind { BYTE_OFF, BYTE_SZ, EXISTS, SIGNED, LSHIFT, RSHIFT };
enum bpf_type_info_kind { T_EXISTS, T_SIZE, T_MATCHES };
enum bpf_enum_value_kind { E_EXISTS, E_VALUE };
enum bpf_type_id_kind { ID_LOCAL, ID_TARGET };
#define field_info(f, kind) __builtin_preserve_field_info(f, kind)
#define type_info(t, kind) __builtin_preserve_type_info(*(t *)0, kind)
#define type_id(t, kind) __builtin_btf_type_id(*(t *)0, kind)
#define enum_value(t, v, kind) __builtin_preserve_enum_value(*(t *)v, kind)
static long (*const probe_read_kernel)(void *dst, u32 size, const void *src) = (void *)113;
char LICENSE[] SEC("license") = "GPL";
"""


class CompileError(AssertionError):
    """clang refused a text; the message is what it said."""


def needs_clang() -> None:
    """Skip the calling test by name when the compiler is not installed."""
    if shutil.which(CLANG) is None:
        pytest.skip(f"{CLANG} is not installed")


@functools.cache
def compile_bpf(
    source: str, *, cpu: str = "v3", target: str = "bpf", prelude: bool = True, options: tuple[str, ...] = ()
) -> bytes:
    """The object file of a C text; the prelude (types, SEC, CO-RE built-ins) comes first unless told otherwise."""
    needs_clang()
    text = (PRELUDE if prelude else "") + source
    with tempfile.TemporaryDirectory(prefix="corematrix-clang-") as scratch:
        path = Path(scratch) / f"t{hashlib.sha256(text.encode()).hexdigest()[:8]}.bpf.c"
        path.write_text(text)
        out = path.with_suffix(".o")
        command = [
            CLANG,
            f"--target={target}",
            "-g",
            "-O2",
            f"-mcpu={cpu}",
            "-Wno-everything",
            "-fno-crash-diagnostics",
            *options,
            "-c",
            str(path),
            "-o",
            str(out),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(done.stderr)
        return out.read_bytes()


def compile_target(types: str, *names: str, target: str = "bpf", prelude: bool = True) -> bytes:
    """An ELF whose `.BTF` holds the given C types; `names` are declarators kept alive by a variable ("struct s", "enum
    e").
    """
    variables = "".join(f"{name} kept_{index};\n" for index, name in enumerate(names))
    return compile_bpf(types + variables, target=target, prelude=prelude)
