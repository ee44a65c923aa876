"""Kconfig externs: libbpf fills a `.kconfig` map in this machine's kernel, ours must be the same to the byte, or fail
alike.
"""

from __future__ import annotations

import platform

import pytest

from harness.guest import kconfig
from harness.guest.bpf_object import BpfObject
from harness.guest.errors import GuestError
from tests.support.clang import compile_bpf
from tests.support.libbpf_judge import judge

TYPES = {
    "CONFIG_BOOL": "bool",
    "CONFIG_CHAR": "char",
    "CONFIG_UCHAR": "u8",
    "CONFIG_SHORT": "s16",
    "CONFIG_USHORT": "u16",
    "CONFIG_INT": "int",
    "CONFIG_UINT": "u32",
    "CONFIG_LONG": "s64",
    "CONFIG_ULONG": "u64",
    "CONFIG_TRI": "enum libbpf_tristate",
    "CONFIG_STR": "char",
}
TRISTATE = "enum libbpf_tristate { TRI_NO = 0, TRI_YES = 1, TRI_MODULE = 2 };\n"


def _object(*names: str, weak: bool = False, extra: str = "", types: dict[str, str] | None = None) -> bytes:
    """An object that reads the named externs; a name with `[N]` is a char array."""
    declarations, uses = [], []
    for name in names:
        bare = name.split("[")[0]
        kind = (types or {}).get(bare) or TYPES.get(bare, "int")
        weakness = " __attribute__((weak))" if weak else ""
        declarations.append(f'extern {kind} {name} __attribute__((section(".kconfig"))){weakness};')
        uses.append(f"(u64){bare}{'[0]' if '[' in name else ''}")
    body = " + ".join(uses)
    return compile_bpf(
        f'{TRISTATE}{extra}{" ".join(declarations)}\nSEC("socket") u64 prog(void *c) {{ return {body}; }}\n'
    )


def _ours(data: bytes, text: str | None) -> tuple[bytes | None, int]:
    """The map's content, or the errno we would fail with."""
    try:
        obj = BpfObject(data)
        assert obj.btf is not None
        externs = kconfig.layout(kconfig.find_externs(obj)[".kconfig"], obj.btf)
        kconfig.resolve(
            externs, byteorder="little", extra=text, system=lambda: None,
            virtual=lambda name: kconfig.kernel_version(platform.release(), platform.version())
            if name == "LINUX_KERNEL_VERSION" else None,
        )  # fmt: skip
    except GuestError as error:
        return None, error.errno or 0
    return kconfig.map_value(externs), 0


def _agree(data: bytes, text: str) -> bytes | None:
    judged = judge(data, kconfig=text)
    mine, errno = _ours(data, text)
    assert errno == judged.errno, judged.log[-5:]
    assert mine == judged.kconfig
    return mine


ALL = (*(name for name in TYPES if name != "CONFIG_STR"), "CONFIG_STR[9]")
FULL = {
    "CONFIG_BOOL": "y", "CONFIG_CHAR": "m", "CONFIG_UCHAR": "200", "CONFIG_SHORT": "-5", "CONFIG_USHORT": "0xffff",
    "CONFIG_INT": "-2147483648", "CONFIG_UINT": "4294967295", "CONFIG_LONG": "-1", "CONFIG_ULONG": "0xffffffffffffffff",
    "CONFIG_TRI": "m", "CONFIG_STR": '"generic"',
}  # fmt: skip


def test_every_type_and_the_layout() -> None:
    text = "".join(f"{name}={value}\n" for name, value in FULL.items())
    value = _agree(_object(*ALL), text)
    assert value is not None
    assert any(value)


# (extern, text behind `=`): what fits, what is cut, what is refused. Not a single quote: libbpf 1.1.2 reads beyond it.
VALUES = [
    *(("CONFIG_BOOL", value) for value in ("y", "n", "m", "1", '"y"', "yes")),
    *(("CONFIG_TRI", value) for value in ("y", "n", "m", "2", '"m"')),
    *(("CONFIG_CHAR", value) for value in ("y", "n", "m", "127", "128", "-128", "-129", "0x41", '"c"', "c")),
    *(("CONFIG_UCHAR", value) for value in ("255", "256", "-1", "0377", "08")),
    *(("CONFIG_SHORT", value) for value in ("32767", "32768", "-32768", "-32769", "+7", " 7")),
    *(("CONFIG_USHORT", value) for value in ("65535", "65536")),
    *(("CONFIG_INT", value) for value in ("2147483647", "2147483648", "-2147483649", "y")),
    *(("CONFIG_INT", value) for value in ("0x7fffffff", "0x", "1k", "1 ")),
    *(("CONFIG_UINT", value) for value in ("4294967296", "-1", "0xDEADBEEF")),
    *(("CONFIG_LONG", value) for value in ("18446744073709551615", "18446744073709551616", "-9223372036854775808")),
    *(("CONFIG_ULONG", value) for value in ("18446744073709551615", "-1", "01777777777777777777777", "")),
    *(("CONFIG_STR[4]", value) for value in ('"abc"', '"abcd"', '"abcdefgh"', '""', '"ab', "abc", "y", "7", '"a"b"')),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_value(name: str, value: str) -> None:
    _agree(_object(name), f"{name.partition('[')[0]}={value}\n")


@pytest.mark.parametrize(
    "text",
    [
        "CONFIG_INT=1\nCONFIG_INT=2\n",
        "# CONFIG_INT is not set\nCONFIG_INT=3\n",
        " CONFIG_INT=3\nCONFIG_INT=4\n",
        "CONFIG_OTHER\nCONFIG_INT=3\n",
        "CONFIG_OTHER=\nCONFIG_INT=3\n",
        "CONFIG_OTHER=junk\nCONFIG_INT=3",
        "CONFIG_INT=3\nCONFIG_OTHER\n",
        "CONFIG_INT=5=6\n",
        "CONFIG_INTEGER=5\nCONFIG_INT=6\n",
    ],
)
def test_lines(text: str) -> None:
    _agree(_object("CONFIG_INT"), text)


def test_weak_virtual_is_zero_and_strong_one_fails() -> None:
    assert _agree(_object("LINUX_NONESUCH", weak=True), "") == bytes(4)
    assert _agree(_object("LINUX_NONESUCH"), "") is None
    assert _agree(_object("NONESUCH", weak=True), "") is None


def test_kernel_version_of_this_machine() -> None:
    value = _agree(_object("LINUX_KERNEL_VERSION"), "")
    assert value is not None
    assert value[2] >= 5


@pytest.mark.parametrize("kind", ["float", "struct { int x; }", "enum other { O }", "int *", "unsigned __int128"])
def test_unsupported_types(kind: str) -> None:
    use = {"struct { int x; }": "CONFIG_X.x"}.get(kind, "(u64)&CONFIG_X")
    declaration = f'extern {kind} CONFIG_X __attribute__((section(".kconfig")));\n'
    data = compile_bpf(f'{declaration}SEC("socket") u64 prog(void *c) {{ return (u64){use}; }}\n')
    judged = judge(data, kconfig="CONFIG_X=1\n")
    assert judged.errno != 0
    assert _ours(data, "CONFIG_X=1\n") == (None, judged.errno)
