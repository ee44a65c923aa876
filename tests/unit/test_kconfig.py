"""Numbers and versions in Kconfig externs; libc's strtoull and sscanf are the second witness, libbpf that of
tests/libbpf.
"""

from __future__ import annotations

import ctypes
import random

import pytest

from harness.guest.kconfig import kernel_version, parse_u64

libc = ctypes.CDLL(None, use_errno=True)
libc.strtoull.restype = ctypes.c_ulonglong
libc.strtoull.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.c_int]
libc.sscanf.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]


def _strtoull(text: str) -> int | None:
    end = ctypes.c_char_p()
    ctypes.set_errno(0)
    number = int(libc.strtoull(text.encode(), ctypes.byref(end), 0))
    return None if ctypes.get_errno() or end.value or not text else number


EDGES = [
    "0", "-0", "+5", "-1", "010", "08", "0x", "0xg", "0XfF", " 7", "7 ", "--1", "+-1", "18446744073709551615",
    "18446744073709551616", "-18446744073709551615", "-18446744073709551616", "0x10000000000000000", "1_0", "٣", "",
    "-", "0b1", "1e3",
]  # fmt: skip


@pytest.mark.parametrize("text", EDGES)
def test_numbers_at_the_edges(text: str) -> None:
    assert parse_u64(text) == _strtoull(text)


def test_random_numbers() -> None:
    r = random.Random(7)
    for _ in range(3000):
        text = "".join(r.choice("0123456789abcdefxX+- ") for _ in range(r.randrange(1, 22)))
        assert parse_u64(text) == _strtoull(text), text


def _sscanf(text: str) -> int:
    major, minor, patch = (ctypes.c_uint() for _ in range(3))
    found = libc.sscanf(text.encode(), b"%u.%u.%u", *(ctypes.byref(n) for n in (major, minor, patch)))
    return (major.value << 16) + (minor.value << 8) + min(patch.value, 255) if found == 3 else 0


@pytest.mark.parametrize(
    "release",
    ["6.1.0-50-cloud-amd64", "5.10.251", "4.19.300-x", "7.0-rc1", "6.1", "", "v6.1.2", "6.1.x", "7.2+deb14-amd64"],
)
def test_release(release: str) -> None:
    assert kernel_version(release) == _sscanf(release)


def test_where_distributions_keep_the_patch_level() -> None:
    """get_kernel_version(): Debian's uname -v and Ubuntu's version_signature know the stable release, uname -r does
    not.
    """
    debian = "#1 SMP PREEMPT_DYNAMIC Debian 6.1.176-1 (2026-06-20)"
    assert kernel_version("6.1.0-50-amd64", debian) == _sscanf("6.1.176")
    assert kernel_version("7.2+deb14-amd64", "#1 SMP Debian 7.2~rc1-1 (2026-06-20)") == 0
    ubuntu = "Ubuntu 5.15.0-100.110-generic 5.15.143\n"
    assert kernel_version("5.15.0-100-generic", "#110-Ubuntu SMP", ubuntu) == _sscanf("5.15.143")
