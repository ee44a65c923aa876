"""The download door against servers that lie, stall, redirect and break off."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import fetch
from harness.errors import CacheError, FetchError
from tests.support.http_server import Server, redirects, sends, serving

DATA = bytes(range(256)) * 1000
SHA = hashlib.sha256(DATA).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(fetch, "_RETRY_DELAYS", (0.0, 0.0))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        yield running


def _nothing_left(directory: Path) -> bool:
    return list(directory.iterdir()) == []


def test_http(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = sends(DATA)
    seen: list[tuple[int, int | None]] = []
    got = fetch.fetch(
        server.url("/x"), tmp_path / "x", sha256=SHA, size=len(DATA), on_progress=lambda *at: seen.append(at)
    )
    assert (got.size, got.sha256, (tmp_path / "x").read_bytes()) == (len(DATA), SHA, DATA)
    assert seen[-1] == (len(DATA), len(DATA))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_file(tmp_path: Path) -> None:
    source = tmp_path / "a b+c"
    source.write_bytes(DATA)
    assert fetch.fetch(source.as_uri(), tmp_path / "copy", sha256=SHA).size == len(DATA)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(fetch.NotThereError):
        fetch.fetch((tmp_path / "none").as_uri(), tmp_path / "copy")


def test_a_wrong_hash_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = sends(DATA[:-1] + b"!")
    with pytest.raises(FetchError, match=f"expected {SHA}"):
        fetch.fetch(server.url("/x"), tmp_path / "x", sha256=SHA)
    assert _nothing_left(tmp_path)


def test_a_wrong_hash_keeps_what_was_there(server: Server, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"old")
    server.answers["/x"] = sends(b"new")
    with pytest.raises(FetchError):
        fetch.fetch(server.url("/x"), tmp_path / "x", sha256=SHA)
    assert (tmp_path / "x").read_bytes() == b"old"


def test_announced_as_too_long(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = sends(DATA)
    with pytest.raises(FetchError, match=f"announces {len(DATA)} bytes, more than the 1000"):
        fetch.fetch(server.url("/x"), tmp_path / "x", max_bytes=1000)
    assert _nothing_left(tmp_path)


def test_endless_without_a_length(server: Server, tmp_path: Path) -> None:
    def endless(handler: object) -> None:
        handler.send_response(200)  # type: ignore[attr-defined]
        handler.end_headers()  # type: ignore[attr-defined]
        while True:
            handler.wfile.write(b"x" * 65536)  # type: ignore[attr-defined]

    server.answers["/x"] = endless  # type: ignore[assignment]
    with pytest.raises(FetchError, match="longer than the 1000000 bytes"):
        fetch.fetch(server.url("/x"), tmp_path / "x", max_bytes=1_000_000)
    assert _nothing_left(tmp_path)


def test_shorter_than_expected(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = sends(DATA[:100])
    with pytest.raises(FetchError, match=f"100 bytes came, {len(DATA)} were expected"):
        fetch.fetch(server.url("/x"), tmp_path / "x", size=len(DATA))


def test_a_connection_that_breaks_is_tried_again(server: Server, tmp_path: Path) -> None:
    broken, whole = sends(DATA[:1000], length=len(DATA)), sends(DATA)
    server.answers["/x"] = lambda handler: (broken if len(server.seen) < 3 else whole)(handler)  # noqa: PLW0108 - chosen per request
    assert fetch.fetch(server.url("/x"), tmp_path / "x", sha256=SHA).sha256 == SHA
    assert len(server.seen) == 3


def test_a_connection_that_always_breaks(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = sends(DATA[:1000], length=len(DATA))
    with pytest.raises(fetch.UnreachableError):
        fetch.fetch(server.url("/x"), tmp_path / "x")
    assert len(server.seen) == 3
    assert _nothing_left(tmp_path)


def test_not_there_is_not_tried_again(server: Server, tmp_path: Path) -> None:
    with pytest.raises(fetch.NotThereError, match="404"):
        fetch.fetch(server.url("/none"), tmp_path / "x")
    assert server.seen == ["/none"]


def test_an_overloaded_server_is_tried_again(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = lambda handler: sends(DATA, status=503 if len(server.seen) < 2 else 200)(handler)  # noqa: PLW0108 - chosen per request
    assert fetch.fetch(server.url("/x"), tmp_path / "x", sha256=SHA).size == len(DATA)


def test_redirects_within_a_scheme_are_followed(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = redirects("/y")
    server.answers["/y"] = sends(DATA)
    assert fetch.fetch(server.url("/x"), tmp_path / "x", sha256=SHA).size == len(DATA)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "https://127.0.0.1/x", "ftp://127.0.0.1/x", "gopher://x/"])
def test_redirects_to_another_scheme_are_refused(server: Server, tmp_path: Path, to: str) -> None:
    server.answers["/x"] = redirects(to)
    with pytest.raises(FetchError, match=r"redirect|not allowed|302"):
        fetch.fetch(server.url("/x"), tmp_path / "x")
    assert _nothing_left(tmp_path)


def test_redirects_in_a_circle(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = redirects("/x")
    with pytest.raises(FetchError):
        fetch.fetch(server.url("/x"), tmp_path / "x")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/x", "data:,x", "/etc/passwd", "x"])
def test_other_schemes_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(FetchError, match="scheme"):
        fetch.fetch(url, tmp_path / "x")


def test_a_mirror_that_stalls(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = server.stalls(b"first")
    started = time.monotonic()
    with pytest.raises(fetch.UnreachableError, match="stalls"):
        fetch.fetch(server.url("/x"), tmp_path / "x", stall_seconds=0.3)
    assert time.monotonic() - started < 25  # it stalls for 30
    assert _nothing_left(tmp_path)


def test_a_mirror_that_drips(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = server.drips(0.05)
    with pytest.raises(fetch.UnreachableError, match="stalls"):
        fetch.fetch(server.url("/x"), tmp_path / "x", stall_seconds=0.5)


def test_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_RETRY_DELAYS", ())
    with serving() as server:
        url = server.url("/x")
    with pytest.raises(fetch.UnreachableError):
        fetch.fetch(url, tmp_path / "x")


def test_a_directory_that_is_not_there(server: Server, tmp_path: Path) -> None:
    server.answers["/x"] = sends(DATA)
    with pytest.raises(CacheError, match="cannot be written"):
        fetch.fetch(server.url("/x"), tmp_path / "none" / "x")


def test_exists_asks_without_downloading(server: Server) -> None:
    server.answers["/x"] = sends(DATA)
    assert fetch.exists(server.url("/x"))
    assert not fetch.exists(server.url("/y"))
