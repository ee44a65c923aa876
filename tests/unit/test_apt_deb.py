"""Reading packages, against dpkg-deb; refusing those that reach out of themselves, hold devices, or never end."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.apt import deb
from tests.support.debs import COMPRESSORS, ar_of, deb_of, tar_file, tar_of, write_deb

FILES = {
    "boot/vmlinuz-1": b"kernel" * 999,
    "boot/config-1": b"CONFIG_BPF=y\n",
    "lib/modules/1/a.ko": b"",
    "usr/x y": b"odd",
}


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_every_compression(tmp_path: Path, suffix: str) -> None:
    path = write_deb(tmp_path / "x.deb", FILES, suffix)
    found = deb.read_members(path, ["*"])
    assert {name: member.data for name, member in found.items()} == FILES


def test_only_what_is_asked_for(tmp_path: Path) -> None:
    path = write_deb(tmp_path / "x.deb", FILES)
    assert list(deb.read_members(path, ["boot/config-*", "lib/*"])) == ["boot/config-1", "lib/modules/1/a.ko"]
    assert deb.read_members(path, []) == {}


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is not installed")
def test_as_dpkg_deb_builds_it(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for name, data in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "lib/link.so").symlink_to("modules/1/a.ko")
    (root / "boot/again").hardlink_to(root / "boot/config-1")
    (root / ("n" * 150)).write_bytes(b"a name too long for a plain header")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"
    )
    subprocess.run(
        ["dpkg-deb", "-b", "--root-owner-group", str(root), str(tmp_path / "x.deb")], check=True, capture_output=True
    )
    found = deb.read_members(tmp_path / "x.deb", ["*"])
    assert {name: found[name].data for name in FILES} == FILES
    assert (found["lib/link.so"].link, found["lib/link.so"].data) == ("modules/1/a.ko", None)
    assert found["boot/again"].data == FILES["boot/config-1"]
    assert "n" * 150 in found


HOSTILE = {
    "up and out": tar_file("../../etc/passwd", b"x"),
    "absolute": tar_file("/etc/passwd", b"x"),
    "through the middle": tar_file("./usr/../../etc/passwd", b"x"),
    "link out": tar_file("./usr/lib/x", kind=tarfile.SYMTYPE, link="../../../etc/passwd"),
    "hard link out": tar_file("./x", kind=tarfile.LNKTYPE, link="../etc/passwd"),
    "hard link to nothing": tar_file("./x", kind=tarfile.LNKTYPE, link="./nowhere"),
    "character device": tar_file("./dev/mem", kind=tarfile.CHRTYPE),
    "block device": tar_file("./dev/sda", kind=tarfile.BLKTYPE),
    "pipe": tar_file("./x", kind=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("member", HOSTILE.values(), ids=HOSTILE)
def test_hostile_members_are_refused(tmp_path: Path, member: tuple[tarfile.TarInfo, bytes]) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(deb_of(tar_of(tar_file("./a", b"fine"), member)))
    with pytest.raises(deb.DebError, match="refused"):
        deb.read_members(path, ["*"])


def test_an_absolute_link_stays_in_the_guest(tmp_path: Path) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(deb_of(tar_of(tar_file("./usr/bin/vi", kind=tarfile.SYMTYPE, link="/etc/alternatives/vi"))))
    assert deb.read_members(path, ["*"])["usr/bin/vi"].link == "/etc/alternatives/vi"


@pytest.mark.parametrize("suffix", [".xz", ".zst", ".gz"])
def test_a_bomb_ends_at_the_limit(tmp_path: Path, suffix: str) -> None:
    path = write_deb(tmp_path / "x.deb", {"zeros": bytes(24 << 20)}, suffix)
    assert path.stat().st_size < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(deb.DebError, match="a bomb"):
            deb.read_members(path, ["nothing"], limits=deb.Limits(total_bytes=8 << 20))
        assert tracemalloc.get_traced_memory()[1] < 16 << 20  # of 24 MiB; xz alone needs 8 for its dictionary
    finally:
        tracemalloc.stop()


def test_what_is_kept_is_limited(tmp_path: Path) -> None:
    path = write_deb(tmp_path / "x.deb", {"a": bytes(1000), "b": bytes(1000)})
    with pytest.raises(deb.DebError, match="larger than 1500 bytes"):
        deb.read_members(path, ["*"], limits=deb.Limits(kept_bytes=1500))
    assert len(deb.read_members(path, ["b"], limits=deb.Limits(kept_bytes=1500))) == 1


def test_members_are_limited(tmp_path: Path) -> None:
    path = write_deb(tmp_path / "x.deb", {str(number): b"" for number in range(20)})
    with pytest.raises(deb.DebError, match="more than 10 members"):
        deb.read_members(path, [], limits=deb.Limits(members=10))


def test_xz_that_wants_too_much_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_deb(tmp_path / "x.deb", FILES)
    monkeypatch.setattr(deb, "_LZMA_BYTES", 1 << 16)
    with pytest.raises(deb.DebError, match=r"[Mm]emory"):
        deb.read_members(path, ["*"])


BROKEN = {
    "empty": b"",
    "not ar": b"PK\x03\x04 a zip",
    "no data.tar": ar_of({"debian-binary": b"2.0\n"}),
    "unknown compression": ar_of({"data.tar.rar": b"x"}),
    "ar header cut": ar_of({"data.tar": b"x"})[:20],
    "ar size is no number": ar_of({"data.tar": b"x"}).replace(b"1         `", b"one       `"),
    "not a tar": deb_of(b"x" * 5000),
}


@pytest.mark.parametrize("data", BROKEN.values(), ids=BROKEN)
def test_broken_packages(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.deb"
    path.write_bytes(data)
    with pytest.raises(deb.DebError, match=r"x\.deb"):
        deb.read_members(path, ["*"])


@pytest.mark.parametrize("suffix", COMPRESSORS)
def test_cut_short(tmp_path: Path, suffix: str) -> None:
    """Cut anywhere, it is an error, or (past the last byte that matters) the whole content: never half of it."""
    whole = write_deb(tmp_path / "x.deb", FILES, suffix).read_bytes()
    path = tmp_path / "cut.deb"
    for length in range(0, len(whole), max(1, len(whole) // 60)):
        path.write_bytes(whole[:length])
        try:
            found = deb.read_members(path, ["*"])
        except deb.DebError:
            continue
        assert {name: member.data for name, member in found.items()} == FILES


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_anywhere_only_our_own_error(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    suffix = data.draw(st.sampled_from(list(COMPRESSORS)))
    whole = bytearray(deb_of(tar_of(*(tar_file(f"./{name}", content) for name, content in FILES.items())), suffix))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("deb") / "x.deb"
    path.write_bytes(whole)
    with contextlib.suppress(deb.DebError):
        deb.read_members(path, ["*"])


def test_the_file_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_deb(tmp_path / "x.deb", FILES)
    opened: list[io.BufferedReader] = []
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: opened.append(real(self, mode)) or opened[-1])
    deb.read_members(path, ["*"])
    assert [file.closed for file in opened] == [True]
