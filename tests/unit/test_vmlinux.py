"""Kernels in every wrapping. The compressors are the real programs (gzip, xz, lz4, lzop, ...), ours only read."""

from __future__ import annotations

import contextlib
import functools
import random
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.kernels import vmlinux
from harness.kernels.decompress import DecompressError, decompress
from harness.kernels.lzo import LzoError, lzo1x_decompress
from tests.support.elf_modules import btf_of, bzimage_of, elf_of, image_of, zboot_of

# As the kernel's scripts/Makefile.lib calls them.
TOOLS = {
    "gzip": ["gzip", "-n", "-9", "-c"],
    "bzip2": ["bzip2", "-9", "-c"],
    "lzma": ["lzma", "-9", "-c"],
    "xz": ["xz", "--check=crc32", "--x86", "--lzma2=,dict=32MiB", "-c"],
    "lz4": ["lz4", "-l", "-9", "-c"],
    "lzo": ["lzop", "-9", "-c"],
    "zstd": ["zstd", "-22", "--ultra", "-c", "-q"],
}
BTF = btf_of()
VMLINUX = elf_of({".text": bytes(range(256)) * 40, ".BTF": BTF})


@functools.cache
def _compress(tool: str, data: bytes) -> bytes:
    command = TOOLS[tool]
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, input=data, check=True, capture_output=True).stdout


def _samples() -> dict[str, bytes]:
    rng = random.Random(7)
    words = [bytes(rng.randrange(256) for _ in range(rng.randrange(3, 40))) for _ in range(300)]
    return {
        "one byte": b"x",
        "a run": b"a" * 100_000,
        "short repeats": b"abcabcabcab" * 5000,
        "noise": rng.randbytes(70_000),
        "text": b"".join(rng.choice(words) for _ in range(5_000)),
        "far repeats": (block := rng.randbytes(60_000)) + bytes(30_000) + block,
    }


@pytest.mark.parametrize("sample", _samples().values(), ids=_samples())
@pytest.mark.parametrize("tool", TOOLS)
def test_what_the_tool_packed_comes_out(tool: str, sample: bytes) -> None:
    packed = _compress(tool, sample)
    assert decompress(packed) == sample
    assert decompress(packed + struct.pack("<I", len(sample))) == sample, "the kernel appends the size"


def test_lz4_of_several_blocks() -> None:
    data = random.Random(1).randbytes(1 << 20) * 9 + b"end"
    assert decompress(_compress("lz4", data)) == data


@pytest.mark.parametrize("tool", TOOLS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_damaged_streams_are_our_own_error(tool: str, data: st.DataObject) -> None:
    packed = bytearray(_compress(tool, _samples()["text"][:3000]))
    cut = data.draw(st.integers(3, len(packed)))
    packed[data.draw(st.integers(3, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(DecompressError):
        assert len(decompress(bytes(packed[:cut]))) < 10 << 20


@given(st.binary(max_size=200), st.integers(0, 4000))
def test_any_bytes_as_lzo(block: bytes, size: int) -> None:
    with contextlib.suppress(LzoError):
        assert len(lzo1x_decompress(block, size)) == size


@pytest.mark.parametrize("tool", TOOLS)
def test_bzimage(tool: str) -> None:
    packed = bzimage_of(_compress(tool, VMLINUX))
    assert vmlinux.unwrap(packed) == VMLINUX
    assert vmlinux.bootable(packed) == packed
    assert vmlinux.extract_btf(vmlinux.unwrap(packed)) == BTF


@pytest.mark.parametrize("magic", [b"ARM\x64", b"RSC\x05"])
def test_images(magic: bytes) -> None:
    image = image_of(bytes(5000) + BTF + bytes(100), magic)
    gzipped = _compress("gzip", image)
    for packed in (image, gzipped, zboot_of(gzipped), zboot_of(_compress("zstd", image))):
        assert vmlinux.unwrap(packed) == image
        assert vmlinux.bootable(packed) == image
    assert vmlinux.extract_btf(image) == BTF


def test_plain_vmlinux_and_payload_without_a_header() -> None:
    assert vmlinux.unwrap(VMLINUX) == VMLINUX
    assert vmlinux.unwrap(b"some boot code" * 9 + b"\x1f\x8b\x08 not it" + _compress("xz", VMLINUX)) == VMLINUX


def test_without_btf() -> None:
    assert vmlinux.extract_btf(elf_of({".text": b"x"})) is None
    assert vmlinux.extract_btf(image_of(bytes(1000))) is None


def test_the_largest_that_adds_up_wins_in_an_image() -> None:
    small, large = btf_of(), btf_of(b"\0" + b"name\0" * 50, bytes(400))
    lying = bytearray(btf_of())
    struct.pack_into("<I", lying, 20, 1 << 30)
    open_ended = btf_of(b"\0no end")
    image = image_of(b"".join((small, bytes(lying), large, open_ended)))
    assert vmlinux.extract_btf(image) == large


@pytest.mark.parametrize("data", [b"", b"MZ", b"HdrS" * 400, bytes(2000), b"\x1f\x8b\x08" + bytes(50), b"\x7fELF"])
def test_what_is_no_kernel(data: bytes) -> None:
    with pytest.raises(vmlinux.VmlinuxError):
        vmlinux.extract_btf(vmlinux.unwrap(data, "x"))


def test_wrapped_without_end() -> None:
    data = VMLINUX
    for _ in range(6):
        data = _compress("gzip", data)
    with pytest.raises(vmlinux.VmlinuxError, match="wrapped more than"):
        vmlinux.unwrap(data)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_kernels_are_our_own_error(data: st.DataObject) -> None:
    kernel = bytearray(VMLINUX)
    places = [*range(64), *range(len(kernel) - 300, len(kernel))]
    for _ in range(data.draw(st.integers(1, 4))):
        kernel[data.draw(st.sampled_from(places))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(vmlinux.VmlinuxError):
        vmlinux.extract_btf(vmlinux.unwrap(bytes(kernel)))


@pytest.mark.skipif(not Path("/sys/kernel/btf/vmlinux").exists(), reason="this machine has no BTF")
def test_this_machines_btf_is_found_in_an_image() -> None:
    btf = Path("/sys/kernel/btf/vmlinux").read_bytes()
    assert vmlinux.extract_btf(image_of(bytes(999) + btf + bytes(999))) == btf
