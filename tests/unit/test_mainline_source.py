"""Ubuntu's mainline builds: virtme-ng's own downloader against a local copy of the archive's layout."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.apt.repository import AptOptions
from harness.errors import FetchError
from harness.kernels import kernel_modules, mainline_source, provide
from harness.model.arch import ARCHITECTURES
from harness.model.kernel import KernelSpec
from harness.model.sources import MainlineSource
from harness.store import Store
from tests.support.debs import deb_of, tar_file, tar_of
from tests.support.elf_modules import btf_of, bzimage_of, elf_of
from tests.support.http_server import Server, sends, serving

RELEASE = "6.12.0-061200-generic"
pytestmark = pytest.mark.skipif(shutil.which("dpkg") is None, reason="dpkg is not installed")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as made:
        yield made


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """kernel.ubuntu.com/mainline/v6.12/amd64: an index of packages, headers and other architectures among them."""
    banner = f"Linux version {RELEASE} (kernel@sita) (gcc) #202411\n\0".encode()
    kernel = bzimage_of(gzip.compress(elf_of({".text": banner, ".BTF": btf_of(b"\0a\0")})))
    info = f"name=veth\0depends=\0vermagic={RELEASE} SMP mod_unload \0".encode()
    packages = {
        f"linux-image-unsigned-{RELEASE}_6.12_amd64.deb": {f"boot/vmlinuz-{RELEASE}": kernel},
        f"linux-modules-{RELEASE}_6.12_amd64.deb": {
            f"boot/config-{RELEASE}": b"CONFIG_HZ=1000\n",
            f"lib/modules/{RELEASE}/kernel/net/veth.ko": elf_of({".modinfo": info, ".text": b"\xc3"}),
        },
    }
    names = [*packages, f"linux-headers-{RELEASE}_6.12_amd64.deb", f"linux-image-unsigned-{RELEASE}_6.12_arm64.deb"]
    index = "".join(f'<a href="{name}">{name}</a>' for name in names).encode()
    with serving() as server:
        server.answers["/v6.12/amd64"] = sends(index)
        for name, files in packages.items():
            data = deb_of(tar_of(*(tar_file(f"./{path}", text) for path, text in files.items())))
            server.answers[f"/v6.12/amd64/{name}"] = sends(data)
        local = f"import virtme_ng.mainline as m; m.BASE_URL = {server.url('')!r}; "
        monkeypatch.setattr(mainline_source, "DOWNLOAD", local + mainline_source.DOWNLOAD)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        yield server


def spec(version: str = "v6.12") -> KernelSpec:
    source = MainlineSource(version=version)
    return KernelSpec(id="mainline", arch=ARCHITECTURES["x86_64"], variant="mainline", source=source)


def test_fetched_once_and_read_as_files(archive: Server, store: Store) -> None:
    kernel = provide(spec(), store, None, lambda _: None)
    assert kernel.release == RELEASE
    assert kernel.config is not None
    assert kernel.config.read_bytes() == b"CONFIG_HZ=1000\n"
    assert kernel.btf is not None
    assert (kernel.source["kind"], kernel.source["version"]) == ("mainline", "v6.12")
    assert not any("headers" in path or "arm64" in path for path in archive.seen)
    found = kernel_modules(kernel, ["veth"], store, lambda _: None)
    assert [path.read_bytes()[:4] for path in found.paths] == [b"\x7fELF"]
    seen = len(archive.seen)
    assert provide(spec(), store, None, lambda _: None) == kernel
    assert len(archive.seen) == seen


def test_a_version_that_is_not_there(archive: Server, store: Store) -> None:
    with pytest.raises(FetchError, match=r"virtme-ng could not fetch v9\.99") as caught:
        provide(spec("v9.99"), store, None, lambda _: None)
    assert "kernel.ubuntu.com/mainline" in str(caught.value.remedy)


def test_offline_nothing_is_fetched(archive: Server, store: Store) -> None:
    with pytest.raises(FetchError, match="not fetched yet"):
        provide(spec(), store, None, lambda _: None, options=AptOptions(offline=True))
    assert not archive.seen
