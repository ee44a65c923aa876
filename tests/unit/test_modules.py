"""Which modules, in which order."""

from __future__ import annotations

import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.kernels import modules
from tests.support.elf_modules import btf_of, elf_of, module_of

FILES = {
    "virtio_ring": module_of("virtio_ring"),
    "virtio": module_of("virtio", "virtio_ring"),
    "virtio_pci_legacy_dev": module_of("virtio_pci_legacy_dev"),
    "virtio_pci": module_of("virtio_pci", "virtio", "virtio-pci-legacy-dev", "virtio_ring"),
    "virtio_console": module_of("virtio_console", "virtio_ring", "virtio", "gone"),
}


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("lib/modules/6.1/kernel/drivers/virtio/virtio.ko", "virtio"),
        ("kernel/drivers/char/hw_random/virtio-rng.ko.xz", "virtio_rng"),
        ("a.ko.zst", "a"),
        ("a.ko.gz", "a"),
        ("modules.builtin", None),
        ("a.ko.bak", None),
        ("ko", None),
    ],
)
def test_names(path: str, name: str | None) -> None:
    assert modules.module_name(path) == name


def test_dependencies_first() -> None:
    found = modules.resolve(["virtio_pci", "virtio-console", "virtio_mmio"], frozenset({"virtio_mmio"}), FILES.get)
    assert found.order == ("virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci", "virtio_console")
    assert found.builtin == ("virtio_mmio",)
    assert found.missing == ("gone",)


def test_a_circle_is_an_error() -> None:
    files = {"a": module_of("a", "b"), "b": module_of("b", "c"), "c": module_of("c", "a")}
    with pytest.raises(modules.ModuleError, match="a -> b -> c -> a"):
        modules.resolve(["a"], frozenset(), files.get)


@pytest.mark.parametrize(
    "data", [b"", b"not elf", elf_of({".text": b""}), b"\x7fELF" + bytes(60), lzma.compress(b"text")]
)
def test_what_is_no_module(data: bytes) -> None:
    with pytest.raises((modules.ModuleError, modules.UsageError)):
        modules.depends(modules.unpack(data, "x.ko"), "x")


def test_compressed_modules() -> None:
    data = FILES["virtio"]
    assert modules.unpack(lzma.compress(data, check=lzma.CHECK_CRC32), "virtio.ko.xz") == data
    assert modules.unpack(data, "virtio.ko") == data


def test_builtin_lists() -> None:
    text = b"kernel/drivers/virtio/virtio.ko\nkernel/drivers/char/virtio-console.ko\n\n"
    assert modules.builtin_names(text) == {"virtio", "virtio_console"}
    assert modules.builtin_by_btf(btf_of(b"\0virtcons_probe\0x_virtio_pci_probe\0")) == {"virtio_console"}


CACHED = sorted(Path("/work/cache/trees/kernel").glob("*/modules/*.ko"))


@pytest.mark.skipif(shutil.which("modinfo") is None, reason="modinfo (kmod) is not installed")
@pytest.mark.skipif(not CACHED, reason="no kernels in the cache")
def test_dependencies_as_modinfo_reads_them() -> None:
    for path in CACHED:
        said = subprocess.run(
            ["modinfo", "-F", "depends", str(path)], check=True, capture_output=True, text=True
        ).stdout
        expected = tuple(name.replace("-", "_") for name in said.strip().split(",") if name)
        assert modules.depends(path.read_bytes(), path.stem) == expected, path
