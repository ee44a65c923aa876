"""`corematrix kernels prune`: saved guests listed and evicted, oldest use first."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from harness import cli
from harness.store import Store
from harness.vm import snapshot

_MIB = 1 << 20
_DAY = 86400


def _save(store: Store, key: str, fill: bytes, day: int, about: dict[str, str] | None) -> None:
    files = {"memory": store.put_bytes(fill * 3 * _MIB), "state": store.put_bytes(fill * 4096),
             "sha256sums": store.put_bytes(b"")}  # fmt: skip
    os.utime(store.put_tree("guests", key, files), (day * _DAY, day * _DAY))
    if about is not None:
        store.put_entry("guests", key, about)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with Store(tmp_path) as store:
        _save(store, "cafe", b"a", 10_001, None)
        _save(store, "beef", b"b", 10_000, {"kernel": "debian-6.1-cloud-amd64", "release": "6.1.0-50-cloud-amd64"})
        _save(store, "f00d", b"c", 10_002, {"kernel": "debian-7.2-cloud-arm64", "release": "7.2.3+deb13-cloud-arm64"})
    return tmp_path


def _prune(capsys: pytest.CaptureFixture[str], *words: str) -> list[list[str]]:
    assert cli.main(["kernels", "prune", *words]) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_a_dry_run_lists_and_removes_nothing(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows, last = _prune(capsys, "--dry-run", "--guests-gb", "0", "--keep-gb", "0")
    assert head[:2] == ["SAVED", "GUEST"]
    assert rows == [
        ["debian-6.1-cloud-amd64", "6.1.0-50-cloud-amd64", "3", "1997-05-19", "00:00"],
        ["cafe", "-", "3", "1997-05-20", "00:00"],
        ["debian-7.2-cloud-arm64", "7.2.3+deb13-cloud-arm64", "3", "1997-05-21", "00:00"],
    ]
    assert last[:3] == ["3", "saved", "guests,"]
    assert len(list(cache.glob("trees/guests/*"))) == 3


def test_beyond_the_cap_those_used_longest_ago_go(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, *rows, last = _prune(capsys, "--guests-gb", str(7 * _MIB / 2**30))
    assert [row[-1] for row in rows] == ["evicted", "kept", "kept"]
    assert last[:2] == ["1", "removed,"]
    with Store(cache) as store:
        assert [guest.key for guest in snapshot.inventory(store)] == ["cafe", "f00d"]
        assert snapshot.find(store, "beef") is None
        assert store.entry("guests", "beef") is None
        assert snapshot.find(store, "f00d") is not None


def test_the_cap_of_the_whole_cache_takes_guests_too(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, *rows, _ = _prune(capsys, "--keep-gb", "0")
    assert [row[-1] for row in rows] == ["evicted"] * 3
    assert not list(cache.glob("blobs/??/*"))


def test_looking_is_no_use(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _prune(capsys, "--dry-run") == _prune(capsys, "--dry-run")


def test_an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "none"))
    *_, last = _prune(capsys, "--dry-run")
    assert last[:3] == ["0", "saved", "guests,"]
