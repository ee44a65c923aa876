"""Rows of the matrix become kernels in the cache: whole and split packages, locks, substitutes, lost files."""

from __future__ import annotations

import dataclasses
import lzma
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness.apt.guest import fetch_guest
from harness.apt.repository import AptClient, AptOptions
from harness.errors import ConfigError, FetchError, UsageError
from harness.kernels import kernel_modules, make_lock, provide
from harness.kernels.debian import debian_spec
from harness.model.arch import ARCHITECTURES
from harness.model.kernel import KernelSpec
from harness.model.lock import Lock
from harness.model.sources import AptSource, GuestPackages
from harness.store import Store
from tests.support.apt_repo import FakeRepository, SigningKey, tools_missing
from tests.support.debs import deb_of, tar_file, tar_of
from tests.support.elf_modules import btf_of, bzimage_of, elf_of, module_of

pytestmark = pytest.mark.skipif(tools_missing() is not None, reason=str(tools_missing()))

MODULES = {
    "kernel/drivers/virtio/virtio.ko": module_of("virtio", "virtio_ring"),
    "kernel/drivers/virtio/virtio_ring.ko": module_of("virtio_ring", "crc"),
    "kernel/drivers/virtio/virtio_pci.ko": module_of("virtio_pci", "virtio"),
    "kernel/drivers/char/virtio_console.ko": module_of("virtio_console", "virtio"),
    "kernel/lib/crc.ko": module_of("crc"),
    "kernel/net/veth.ko": module_of("veth", "crc"),
}
BUILTIN = b"kernel/drivers/virtio/virtio_mmio.ko\n"
NOW = datetime.now(UTC)


def _vmlinuz(release: str) -> bytes:
    vmlinux = elf_of({".text": release.encode(), ".BTF": btf_of(b"\0" + release.encode() + b"\0")})
    return bzimage_of(lzma.compress(vmlinux, check=lzma.CHECK_CRC32))


def _deb(files: dict[str, bytes]) -> bytes:
    return deb_of(tar_of(*(tar_file(f"./{name}", data) for name, data in files.items())))


def _whole(release: str) -> bytes:
    """A package as up to 6.18: everything in one."""
    files = {f"lib/modules/{release}/{name}": data for name, data in MODULES.items()}
    files[f"lib/modules/{release}/modules.builtin"] = BUILTIN
    return _deb({f"boot/vmlinuz-{release}": _vmlinuz(release), f"boot/config-{release}": b"CONFIG_HZ=250\n", **files})


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SigningKey]:
    made = SigningKey(tmp_path_factory.mktemp("gnupg") / "key", "key")
    yield made
    made.stop()


@pytest.fixture
def repository(tmp_path: Path, key: SigningKey) -> FakeRepository:
    made = FakeRepository(tmp_path / "repo", key)
    made.add("linux-image-6.1.0-1-cloud-amd64", "6.1.9-1", _whole("6.1.0-1-cloud-amd64"))
    made.add("linux-image-6.1.0-2-cloud-amd64", "6.1.10-1", _whole("6.1.0-2-cloud-amd64"))
    made.add("linux-image-6.1.0-2-amd64", "6.1.10-1", _whole("6.1.0-2-amd64"))
    made.publish(date=NOW - timedelta(days=2))
    return made


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as made:
        yield made


def _spec(repository: FakeRepository, package: str = "linux-image-6.1.*-cloud-amd64") -> KernelSpec:
    source = AptSource(repositories=(repository.source(),), suites=(repository.suite,), package=package)
    return KernelSpec(id="debian-6.1-cloud-amd64", arch=ARCHITECTURES["x86_64"], variant="cloud", source=source)


def _lock(repository: FakeRepository, store: Store) -> Lock:
    return make_lock([_spec(repository)], _guest(repository), store, lambda _: None)


def _guest(repository: FakeRepository, *packages: str) -> GuestPackages:
    return GuestPackages(repositories=(repository.source(),), suites=(repository.suite,), packages=packages)


def _remove(repository: FakeRepository, version: str) -> None:
    """The pool loses a version that the index still lists."""
    for path in repository.root.glob(f"pool/*_{version}_*.deb"):
        path.unlink()


def test_the_newest_that_matches(repository: FakeRepository, store: Store) -> None:
    said: list[str] = []
    kernel = provide(_spec(repository), store, None, said.append)
    assert (kernel.release, kernel.source["version"]) == ("6.1.0-2-cloud-amd64", "6.1.10-1")
    assert kernel.vmlinuz.read_bytes() == _vmlinuz("6.1.0-2-cloud-amd64")
    assert kernel.config is not None
    assert kernel.config.read_text() == "CONFIG_HZ=250\n"
    assert kernel.btf is not None
    assert kernel.btf.read_bytes() == btf_of(b"\x006.1.0-2-cloud-amd64\0")
    assert kernel.btf_sha256 is not None
    assert store.blob(kernel.btf_sha256) is not None
    assert [path.name for path in kernel.modules] == [
        "crc.ko", "virtio_ring.ko", "virtio.ko", "virtio_pci.ko", "virtio_console.ko",
    ]  # fmt: skip
    assert kernel.modules[0].read_bytes() == MODULES["kernel/lib/crc.ko"]
    assert kernel.source["modules_builtin"] == ["virtio_mmio"]
    assert kernel.substituted is None
    assert any("downloading" in line for line in said)


def test_again_from_the_cache_without_the_repository(repository: FakeRepository, store: Store) -> None:
    first = provide(_spec(repository), store, None, lambda _: None)
    repository.root.rename(repository.root.with_name("away"))
    said: list[str] = []
    assert provide(_spec(repository), store, None, said.append) == first
    assert said == []


def test_ids_do_not_make_another_kernel(repository: FakeRepository, store: Store) -> None:
    """Two rows of one package share its files."""
    first = provide(_spec(repository), store, None, lambda _: None)
    other = provide(dataclasses.replace(_spec(repository), id="other"), store, None, lambda _: None)
    assert other.vmlinuz == first.vmlinuz
    assert other.spec.id == "other"


def test_from_the_cache_it_costs_next_to_nothing(repository: FakeRepository, store: Store) -> None:
    lock = _lock(repository, store)
    specs = [dataclasses.replace(_spec(repository), id=f"k{number}") for number in range(11)]
    locked = Lock(kernels={spec.id: lock.kernels["debian-6.1-cloud-amd64"] for spec in specs})
    for known in (None, locked):
        for spec in specs:
            provide(spec, store, known, lambda _: None)
        spent = []
        for _ in range(5):
            started = time.perf_counter()
            for spec in specs:
                provide(spec, store, known, lambda _: None)
            spent.append(time.perf_counter() - started)
        assert min(spent) < 0.05


def test_split_packages(repository: FakeRepository, store: Store) -> None:
    release = "7.2.1+deb13-cloud-amd64"
    base = f"usr/lib/modules/{release}"
    parts = {
        f"linux-binary-{release}": {f"{base}/vmlinuz": _vmlinuz(release)},
        f"linux-modules-{release}": {f"{base}/{name}.xz": lzma.compress(data) for name, data in MODULES.items()},
        f"linux-base-{release}": {f"{base}/config": b"CONFIG_HZ=1000\n", f"{base}/modules.builtin": BUILTIN},
    }
    depends = ", ".join(f"{name} (= 7.2.1-1)" for name in parts)
    repository.add(f"linux-image-{release}", "7.2.1-1", _deb({"usr/share/doc/x": b""}), f"kmod, {depends}, linux-doc")
    for name, files in parts.items():
        repository.add(name, "7.2.1-1", _deb(files), f"kmod, linux-base-{release} (= 7.2.1-1)")
        repository.add(name, "7.2.1-9", _deb({}))
    repository.publish(date=NOW)
    kernel = provide(_spec(repository, "linux-image-7.2.*-cloud-amd64"), store, None, lambda _: None)
    assert kernel.release == release
    assert [package["version"] for package in kernel.source["packages"]] == ["7.2.1-1"] * 4
    assert kernel.config is not None
    assert [path.stem for path in kernel.modules] == ["crc", "virtio_ring", "virtio", "virtio_pci", "virtio_console"]
    assert kernel.modules[2].read_bytes() == MODULES["kernel/drivers/virtio/virtio.ko"]


def test_parts_that_are_gone_are_done_without(repository: FakeRepository, store: Store) -> None:
    """trixie-backports keeps the signed -binary of 6.19 to 7.1 and none of their -modules and -base."""
    release = "6.19.1+deb13-cloud-amd64"
    depends = ", ".join(f"linux-{part}-{release} (= 6.19.1-1)" for part in ("base", "binary", "modules"))
    repository.add(f"linux-image-{release}", "6.19.1-1", _deb({"usr/share/doc/x": b""}), depends)
    repository.add(f"linux-binary-{release}", "6.19.1-1", _deb({f"boot/vmlinuz-{release}": _vmlinuz(release)}))
    repository.publish(date=NOW)
    said: list[str] = []
    kernel = provide(_spec(repository, "linux-image-6.19.*-cloud-amd64"), store, None, said.append)
    assert (kernel.release, kernel.config, kernel.modules) == (release, None, ())
    assert kernel.source["modules_missing"] == ["virtio_console", "virtio_mmio", "virtio_pci"]
    assert sum("done without" in line for line in said) == 2


def test_the_pool_has_lost_the_newest(repository: FakeRepository, store: Store) -> None:
    _remove(repository, "6.1.10-1")
    said: list[str] = []
    kernel = provide(_spec(repository), store, None, said.append)
    assert kernel.source["version"] == "6.1.9-1"
    assert any("6.1.10-1 is listed in bookworm but not there" in line for line in said)


def test_nothing_can_be_had(repository: FakeRepository, store: Store) -> None:
    with pytest.raises(FetchError, match=r"no package linux-image-4\.\* \(amd64\) in bookworm: the index lists none"):
        provide(_spec(repository, "linux-image-4.*"), store, None, lambda _: None)
    _remove(repository, "6.1.10-1")
    _remove(repository, "6.1.9-1")
    with pytest.raises(FetchError, match="2 are listed and none can be had"):
        provide(_spec(repository), store, None, lambda _: None)


def test_what_is_no_kernel(repository: FakeRepository, store: Store) -> None:
    repository.add("linux-doc", "1", _deb({"usr/share/doc/x": b""}))
    repository.publish(date=NOW)
    with pytest.raises(FetchError, match="expected one kernel"):
        provide(_spec(repository, "linux-doc"), store, None, lambda _: None)
    assert not list(store.root.glob("trees/*/*"))


def test_a_kernel_of_an_unknown_kind(repository: FakeRepository, store: Store) -> None:
    class Floppy:
        kind = "floppy"

    with pytest.raises(ConfigError, match="cannot come from 'floppy'"):
        provide(dataclasses.replace(_spec(repository), source=Floppy()), store, None, lambda _: None)


# --- locks


def test_a_lock_survives_its_file(repository: FakeRepository, store: Store) -> None:
    lock = _lock(repository, store)
    assert [package.version for package in lock.kernels["debian-6.1-cloud-amd64"]] == ["6.1.10-1"]
    assert Lock.from_json(lock.to_json(), "kernels.lock").to_json() == lock.to_json()


def test_the_locked_kernel_although_there_is_a_newer(repository: FakeRepository, store: Store) -> None:
    lock = _lock(repository, store)
    repository.add("linux-image-6.1.0-3-cloud-amd64", "6.1.11-1", _whole("6.1.0-3-cloud-amd64"))
    repository.publish(date=NOW)
    options = AptOptions(max_age=0.0)
    assert provide(_spec(repository), store, lock, lambda _: None, options=options).source["version"] == "6.1.10-1"
    assert provide(_spec(repository), store, None, lambda _: None, options=options).source["version"] == "6.1.11-1"


def test_a_locked_kernel_needs_no_index(repository: FakeRepository, store: Store) -> None:
    lock = _lock(repository, store)
    repository.inrelease().unlink()
    with Store(store.root.with_name("another")) as empty:
        assert provide(_spec(repository), empty, lock, lambda _: None).source["version"] == "6.1.10-1"


def test_the_locked_kernel_is_in_the_cache_only(repository: FakeRepository, store: Store) -> None:
    lock = _lock(repository, store)
    provide(_spec(repository), store, lock, lambda _: None)
    repository.root.rename(repository.root.with_name("away"))
    kernel = provide(_spec(repository), store, lock, lambda _: None, options=AptOptions(offline=True))
    assert (kernel.source["version"], kernel.substituted) == ("6.1.10-1", None)


def test_the_locked_kernel_is_nowhere(repository: FakeRepository, store: Store) -> None:
    lock = _lock(repository, store)
    _remove(repository, "6.1.10-1")
    kernel = provide(_spec(repository), store, lock, lambda _: None)
    assert kernel.source["version"] == "6.1.9-1"
    assert kernel.substituted == (
        "locked linux-image-6.1.0-2-cloud-amd64 6.1.10-1 is no longer in the repository; "
        "linux-image-6.1.0-1-cloud-amd64 6.1.9-1 stands in"
    )


def test_a_locked_kernel_with_another_content_is_no_substitute(repository: FakeRepository, store: Store) -> None:
    lock = _lock(repository, store)
    for path in repository.root.glob("pool/*_6.1.10-1_*.deb"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(FetchError, match="SHA-256"):
        provide(_spec(repository), store, lock, lambda _: None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"lock": 2}',
        '{"lock": 1, "kernels": []}',
        '{"lock": 1, "kernels": {"a": [{}]}}',
        '{"lock": 1, "guest": {"a": 1}}',
    ],
)
def test_files_that_are_no_lock(text: str) -> None:
    with pytest.raises(ConfigError, match=r"kernels\.lock") as caught:
        Lock.from_json(text, "kernels.lock")
    assert "corematrix kernels lock" in str(caught.value)


@pytest.mark.parametrize("filename", ["../x.deb", "/x.deb", "a/../../x.deb"])
def test_a_lock_cannot_reach_out_of_the_repository(repository: FakeRepository, store: Store, filename: str) -> None:
    text = _lock(repository, store).to_json()
    real = _lock(repository, store).kernels["debian-6.1-cloud-amd64"][0].filename
    with pytest.raises(ConfigError):
        Lock.from_json(text.replace(real, filename), "kernels.lock")


# --- more modules, the guest, generated rows


def test_more_modules(repository: FakeRepository, store: Store) -> None:
    kernel = provide(_spec(repository), store, None, lambda _: None)
    found = kernel_modules(kernel, ["veth", "virtio-mmio", "no_such"], store, lambda _: None)
    assert [path.name for path in found.paths] == ["crc.ko", "veth.ko"]
    assert (found.builtin, found.missing) == (("virtio_mmio",), ("no_such",))
    repository.root.rename(repository.root.with_name("away"))
    assert kernel_modules(kernel, ["veth", "virtio_mmio", "no-such"], store, lambda _: None) == found


def test_the_guests_packages(repository: FakeRepository, store: Store) -> None:
    for name in ("python3", "libpython3"):
        for version in ("3.11-1", "3.11-2"):
            repository.add(name, version, _deb({f"usr/{name}": version.encode()}))
    repository.publish(date=NOW)
    guest, arch = _guest(repository, "python3", "libpython3"), ARCHITECTURES["x86_64"]
    lock = make_lock([_spec(repository)], guest, store, lambda _: None)
    assert [package.version for package in lock.guest["amd64"]] == ["3.11-2", "3.11-2"]
    locked = fetch_guest(guest, arch, store, lock, lambda _: None)
    assert [
        path.read_bytes() == _deb({f"usr/{name}": b"3.11-2"})
        for name, path in zip(guest.packages, locked.paths, strict=True)
    ]
    (repository.root / "pool/libpython3_3.11-2_amd64.deb").unlink()
    with Store(store.root.with_name("another")) as empty:
        substituted = fetch_guest(guest, arch, empty, lock, lambda _: None)
        assert [package.version for package in substituted.packages] == ["3.11-1", "3.11-1"], "they go together"
        assert substituted.substituted is not None
        assert fetch_guest(guest, arch, empty, None, lambda _: None).substituted is None


def test_any_debian_kernel_by_its_identity(repository: FakeRepository) -> None:
    served = dataclasses.replace(repository.source(), suites=("bookworm", "trixie", "trixie-backports"))
    rows = {
        name: debian_spec(name, [served])
        for name in ("debian-6.1-generic-amd64", "debian-6.16-rt-arm64", "debian-6.12-16k-arm64")
    }
    sources = {
        name: (row.arch.name, row.variant, row.cpu, row.source.suites, row.source.package) for name, row in rows.items()
    }  # type: ignore[attr-defined]
    assert sources == {
        "debian-6.1-generic-amd64": ("x86_64", "generic", None, ("bookworm",), "linux-image-6.1.*[0-9]-amd64"),
        "debian-6.16-rt-arm64": ("arm64", "rt", None, ("trixie-backports",), "linux-image-6.16.*-rt-arm64"),
        "debian-6.12-16k-arm64": ("arm64", "16k", "cortex-a76", ("trixie",), "linux-image-6.12.*-arm64-16k"),
    }
    for wrong in ("ubuntu-6.1-generic-amd64", "debian-6.1-cloud", "debian-6.1-cloud-vax", ""):
        with pytest.raises(UsageError, match="not an identity"):
            debian_spec(wrong, [served])


def test_a_generic_glob_leaves_variants_out(repository: FakeRepository, store: Store) -> None:
    client = AptClient([repository.source()], store)
    found = client.matching("linux-image-6.1.*[0-9]-amd64", ["bookworm"], "amd64")
    assert [package.name for package in found] == ["linux-image-6.1.0-2-amd64"]
