"""Kernels in files and by URL: what they say of themselves is believed, what files are called is not."""

from __future__ import annotations

import gzip
import hashlib
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import FetchError, UsageError
from harness.kernels import identify, kernel_modules, provide
from harness.model.arch import ARCHITECTURES
from harness.model.kernel import Kernel, KernelSpec
from harness.model.sources import PathSource, RemoteFile, UrlSource
from harness.store import Store
from tests.support.debs import deb_of, tar_file, tar_of
from tests.support.elf_modules import btf_of, bzimage_of, elf_of, image_of

RELEASE = "4.19.48-test"
BANNER = f"Linux version {RELEASE} (me@here) (gcc) #1 SMP\n\0".encode()
CONFIG = b"CONFIG_HZ=250\n"


def vmlinux_of(*extra: bytes) -> bytes:
    return elf_of({".text": BANNER + b"".join(extra), ".BTF": btf_of(b"\0a\0")})


def module_of(name: str, *depends: str, release: str = RELEASE) -> bytes:
    info = f"name={name}\0depends={','.join(depends)}\0vermagic={release} SMP mod_unload \0"
    return elf_of({".modinfo": info.encode(), ".text": b"\xc3"})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as made:
        yield made


def _write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _spec(source: PathSource | UrlSource, arch: str = "x86_64") -> KernelSpec:
    return KernelSpec(id="mine", arch=ARCHITECTURES[arch], variant="own", source=source)


def _provide(source: PathSource | UrlSource, store: Store, arch: str = "x86_64") -> Kernel:
    return provide(_spec(source, arch), store, None, lambda _line: None)


@pytest.fixture
def vmlinuz(tmp_path: Path) -> Path:
    return _write(tmp_path / "vmlinuz-9.9.9-liar", bzimage_of(gzip.compress(vmlinux_of())))


def test_the_release_is_the_kernels_and_not_the_file_names(vmlinuz: Path, tmp_path: Path, store: Store) -> None:
    kernel = _provide(PathSource(vmlinuz=vmlinuz, config=_write(tmp_path / "config", CONFIG)), store)
    assert kernel.release == RELEASE
    assert kernel.vmlinuz is not None
    assert kernel.vmlinuz.read_bytes() == vmlinuz.read_bytes()
    assert kernel.config is not None
    assert kernel.config.read_bytes() == CONFIG
    assert kernel.btf is not None
    assert not kernel.btf_external
    assert kernel.source["vmlinuz"] == str(vmlinuz)
    assert kernel.source["sha256"] == hashlib.sha256(vmlinuz.read_bytes()).hexdigest()
    assert kernel.modules == ()


def test_the_header_of_a_bzimage_says_its_release_where_the_kernel_does_not() -> None:
    data = bytearray(bzimage_of(b""))
    struct.pack_into("<H", data, 0x20E, 0x300)
    data[0x500 : 0x500 + 30] = b"4.4.178 (root@box) #2 SMP\0\0\0\0\0"
    assert identify.release(bytes(data), b"no banner") == "4.4.178"
    assert identify.release(b"MZ", b"no banner") is None


@pytest.mark.skipif(shutil.which("file") is None, reason="file(1) is not installed")
def test_the_header_agrees_with_file_1(tmp_path: Path) -> None:
    found = sorted(Path("/boot").glob("vmlinuz-*")) + sorted(Path("/work/cache/trees/kernel").glob("*/vmlinuz"))
    images = [path for path in found if path.read_bytes()[0x202:0x206] == b"HdrS"]
    if not images:
        pytest.skip("no bzImage on this machine")
    said = subprocess.run(["file", "-b", "-L", images[0]], capture_output=True, text=True, check=True).stdout
    assert f"version {identify.release(images[0].read_bytes(), b'')} " in said


def test_a_changed_file_is_another_kernel(vmlinuz: Path, store: Store) -> None:
    source = PathSource(vmlinuz=vmlinuz)
    first = _provide(source, store)
    vmlinuz.write_bytes(bzimage_of(gzip.compress(vmlinux_of(b"more"))))
    assert _provide(source, store).vmlinuz_sha256 != first.vmlinuz_sha256


def test_modules_in_a_directory(vmlinuz: Path, tmp_path: Path, store: Store) -> None:
    place = tmp_path / "lib/modules/whatever"
    _write(place / "kernel/drivers/char/virtio_console.ko.gz", gzip.compress(module_of("virtio_console", "virtio")))
    _write(place / "kernel/drivers/virtio/virtio.ko", module_of("virtio"))
    _write(place / "kernel/net/veth.ko", module_of("veth"))
    _write(place / "modules.builtin", b"kernel/drivers/virtio/virtio_pci.ko\n")
    kernel = _provide(PathSource(vmlinuz=vmlinuz, modules=place), store)
    assert [path.name for path in kernel.modules] == ["virtio.ko", "virtio_console.ko"]
    assert kernel.source["modules_builtin"] == ["virtio_pci"]
    more = kernel_modules(kernel, ["veth", "nothing"], store, lambda _line: None)
    assert [path.read_bytes() for path in more.paths] == [module_of("veth")]
    assert more.missing == ("nothing",)


def test_modules_of_another_release_are_refused(vmlinuz: Path, tmp_path: Path, store: Store) -> None:
    _write(tmp_path / "m/virtio_pci.ko", module_of("virtio_pci", release="5.4.0"))
    with pytest.raises(UsageError, match=rf"a module of 5\.4\.0, the kernel is {RELEASE}"):
        _provide(PathSource(vmlinuz=vmlinuz, modules=tmp_path / "m"), store)


@pytest.mark.parametrize("arch", ["arm64", "riscv64", "s390x", "ppc64le"])
def test_a_kernel_of_another_architecture_is_refused(vmlinuz: Path, store: Store, arch: str) -> None:
    with pytest.raises(UsageError, match=f"not a kernel for {arch}"):
        _provide(PathSource(vmlinuz=vmlinuz), store, arch)


def test_images_and_s390_kernels_are_known_by_their_headers(tmp_path: Path, store: Store) -> None:
    image = _write(tmp_path / "Image", image_of(BANNER))
    assert _provide(PathSource(vmlinuz=image), store, "arm64").release == RELEASE
    with pytest.raises(UsageError, match="not a kernel for riscv64"):
        _provide(PathSource(vmlinuz=image), store, "riscv64")
    mainframe = bytearray(0x11000)
    mainframe[0x10008:0x1000E] = b"S390EP"
    s390 = _write(tmp_path / "s390", bytes(mainframe) + gzip.compress(b"raw" + BANNER + btf_of(order=">")))
    kernel = _provide(PathSource(vmlinuz=s390), store, "s390x")
    assert kernel.vmlinuz is not None
    assert (kernel.release, kernel.vmlinuz.read_bytes()) == (RELEASE, s390.read_bytes())
    assert kernel.btf is not None
    assert kernel.btf.read_bytes() == btf_of(order=">")
    with pytest.raises(UsageError, match="not a kernel for x86_64"):
        _provide(PathSource(vmlinuz=s390), store)


def test_the_configuration_inside_a_kernel(tmp_path: Path, store: Store) -> None:
    inside = b"IKCFG_ST" + gzip.compress(CONFIG) + b"IKCFG_ED"
    path = _write(tmp_path / "k", bzimage_of(gzip.compress(vmlinux_of(inside))))
    kernel = _provide(PathSource(vmlinuz=path), store)
    assert kernel.config is not None
    assert kernel.config.read_bytes() == CONFIG


def test_a_file_that_is_missing_or_no_kernel(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="nowhere: cannot be read"):
        _provide(PathSource(vmlinuz=tmp_path / "nowhere"), store)
    with pytest.raises(UsageError, match="not a kernel"):
        _provide(PathSource(vmlinuz=_write(tmp_path / "text", b"hello" * 999)), store)
    silent = _write(tmp_path / "silent", bzimage_of(gzip.compress(elf_of({".text": b"x"}))))
    with pytest.raises(UsageError, match="does not say its release"):
        _provide(PathSource(vmlinuz=silent), store)


def test_packages_of_ones_own(vmlinuz: Path, tmp_path: Path, store: Store) -> None:
    image = deb_of(tar_of(tar_file(f"./boot/vmlinuz-{RELEASE}", vmlinuz.read_bytes())))
    parts = deb_of(tar_of(tar_file(f"./lib/modules/{RELEASE}/kernel/virtio_pci.ko", module_of("virtio_pci"))))
    packages = (_write(tmp_path / "image.deb", image), _write(tmp_path / "modules.deb", parts))
    kernel = _provide(PathSource(packages=packages), store)
    assert (kernel.release, [path.name for path in kernel.modules]) == (RELEASE, ["virtio_pci.ko"])
    assert [item["path"] for item in kernel.source["packages"]] == [str(path) for path in packages]


def test_a_url_is_downloaded_once_and_must_be_what_its_hash_says(vmlinuz: Path, store: Store) -> None:
    remote = RemoteFile(url=vmlinuz.as_uri(), sha256=hashlib.sha256(vmlinuz.read_bytes()).hexdigest())
    assert _provide(UrlSource(vmlinuz=remote), store).release == RELEASE
    wrong = RemoteFile(url=vmlinuz.as_uri(), sha256="0" * 64)
    with pytest.raises(FetchError, match="SHA-256"):
        _provide(UrlSource(vmlinuz=wrong), store)
    vmlinuz.unlink()
    assert _provide(UrlSource(vmlinuz=remote), store).source["vmlinuz"] == remote.url


def test_a_build_id_is_what_readelf_says(tmp_path: Path) -> None:
    if shutil.which("readelf") is None or shutil.which("cc") is None:
        pytest.skip("binutils and a compiler are not installed")
    out = tmp_path / "a.o"
    source = _write(tmp_path / "a.c", b"int main(void) { return 0; }\n")
    subprocess.run(["cc", "-Wl,--build-id=sha1", "-o", out, source], check=True)
    notes = subprocess.run(["readelf", "-n", out], capture_output=True, text=True, check=True).stdout
    found = identify.build_id(out.read_bytes())
    assert found is not None
    assert f"Build ID: {found}" in notes
