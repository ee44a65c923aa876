"""Repositories that are well, and repositories that lie: signatures, hashes, dates, names. Signed for real."""

from __future__ import annotations

import lzma
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from harness.apt.repository import AptClient, AptOptions
from harness.errors import ConfigError, FetchError, InfrastructureError
from harness.fetch import NotThereError
from harness.store import Store
from tests.support.apt_repo import FakeRepository, SigningKey, tools_missing
from tests.support.debs import deb_of, tar_file, tar_of
from tests.support.http_server import sends, serving

pytestmark = pytest.mark.skipif(tools_missing() is not None, reason=str(tools_missing()))

DEB = deb_of(tar_of(tar_file("./usr/bin/tool", b"tool")))
NOW = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, SigningKey]]:
    home = tmp_path_factory.mktemp("gnupg")
    made = {name: SigningKey(home / name, name) for name in ("ours", "theirs")}
    yield made
    for key in made.values():
        key.stop()


@pytest.fixture
def repository(tmp_path: Path, keys: dict[str, SigningKey]) -> FakeRepository:
    made = FakeRepository(tmp_path / "repo", keys["ours"])
    made.add("tool", "1.0-1", DEB)
    made.add("tool", "1.0-10", DEB, depends="libc6 (>= 2),\n libffi8 (= 3)")
    made.add("toolbox", "3", DEB)
    return made


class Client(AptClient):
    """A client that keeps what it says, with a clock to set."""

    def __init__(self, repository: FakeRepository, store: Store, *, uri: str | None = None, **options: object) -> None:
        self.said: list[str] = []
        self.now = NOW
        super().__init__(
            [repository.source(uri=uri)], store, on_event=self.said.append, options=AptOptions(**options),  # type: ignore[arg-type]
            clock=lambda: self.now.timestamp(),  # noqa: PLW0108
        )  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as made:
        yield made


def test_from_suite_to_verified_package(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    client = Client(repository, store)
    versions = [package.version for package in client.named("tool", ["bookworm"], "amd64")]
    assert versions == ["1.0-10", "1.0-1"]
    newest = client.named("tool", ["bookworm"], "amd64")[0]
    assert newest.depends == "libc6 (>= 2), libffi8 (= 3)"
    assert client.fetch(newest).read_bytes() == DEB
    assert {package.name for package in client.matching("tool*", ["bookworm"], "amd64")} == {"tool", "toolbox"}
    assert client.named("too", ["bookworm"], "amd64") == []
    assert [package.name for package in client.matching("[t]*[x]", ["bookworm"], "amd64")] == ["toolbox"]


def test_http_by_hash_and_by_name(repository: FakeRepository, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("http_proxy", raising=False)
    repository.publish(date=NOW)
    with serving() as server:
        for path in repository.root.rglob("*"):
            if path.is_file():
                server.answers[f"/{path.relative_to(repository.root)}"] = sends(path.read_bytes())
        client = Client(repository, store, uri=server.url(""))
        assert client.fetch(client.named("toolbox", ["bookworm"], "amd64")[0]).read_bytes() == DEB


def test_nothing_is_asked_twice(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    package = Client(repository, store).named("tool", ["bookworm"], "amd64")[0]
    Client(repository, store).fetch(package)
    repository.inrelease().unlink()
    client = Client(repository, store)
    assert client.fetch(client.named("tool", ["bookworm"], "amd64")[0]).read_bytes() == DEB
    assert client.said == []


def test_an_old_index_is_asked_for_again(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    Client(repository, store).named("tool", ["bookworm"], "amd64")
    repository.add("tool", "2.0", DEB)
    repository.publish(date=NOW + timedelta(hours=1))
    client = Client(repository, store)
    assert client.named("tool", ["bookworm"], "amd64")[0].version == "1.0-10"
    client.now += timedelta(hours=7)
    assert client.named("tool", ["bookworm"], "amd64")[0].version == "2.0"
    client.now -= timedelta(days=400)  # a clock that jumps back makes an index neither fresh for ever nor an error
    assert client.named("tool", ["bookworm"], "amd64")[0].version == "2.0"


def test_unreachable_with_an_old_index(
    repository: FakeRepository, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.fetch._RETRY_DELAYS", ())
    monkeypatch.delenv("http_proxy", raising=False)
    repository.publish(date=NOW)
    with serving() as server:
        for path in repository.root.rglob("*"):
            if path.is_file():
                server.answers[f"/{path.relative_to(repository.root)}"] = sends(path.read_bytes())
        uri = server.url("")
        Client(repository, store, uri=uri).named("tool", ["bookworm"], "amd64")
    client = Client(repository, store, uri=uri)
    client.now += timedelta(days=3)
    assert client.named("tool", ["bookworm"], "amd64")[0].version == "1.0-10"
    assert "using the index of 2026-11-20" in client.said[0]


def test_offline(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    with pytest.raises(FetchError, match="offline") as caught:
        Client(repository, store, offline=True).named("tool", ["bookworm"], "amd64")
    assert "corematrix kernels fetch" in str(caught.value)
    package = Client(repository, store).named("tool", ["bookworm"], "amd64")[0]
    offline = Client(repository, store, offline=True)
    offline.now += timedelta(days=300)
    assert offline.named("tool", ["bookworm"], "amd64")[0] == package
    with pytest.raises(FetchError, match="offline"):
        offline.fetch(package)


# --- signatures


def _index(repository: FakeRepository, store: Store, **options: object) -> None:
    Client(repository, store, **options).packages("bookworm", "amd64")


def _nothing_learnt(store: Store) -> bool:
    return not list(store.root.glob("entries/*/*")) and not list(store.root.glob("blobs/*/*"))


def test_signed_by_a_stranger(repository: FakeRepository, store: Store, keys: dict[str, SigningKey]) -> None:
    repository.key = keys["theirs"]
    repository.publish(date=NOW)
    repository.key = keys["ours"]
    with pytest.raises(FetchError, match="keys not in the keyring"):
        _index(repository, store)
    assert _nothing_learnt(store)


def test_changed_after_signing(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    path = repository.inrelease()
    path.write_bytes(path.read_bytes().replace(b"Origin: Test", b"Origin: Best"))
    with pytest.raises(FetchError, match="bad signature"):
        _index(repository, store)
    assert _nothing_learnt(store)


def test_not_signed_at_all(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    repository.inrelease().write_text(repository.release_text("x", b"", NOW, None))
    with pytest.raises(FetchError, match="no valid signature"):
        _index(repository, store)


@pytest.mark.parametrize("where", ["before", "after"])
def test_text_outside_what_is_signed_is_not_read(repository: FakeRepository, store: Store, where: str) -> None:
    """A forged list of hashes around a genuine signed part: either refused, or only the signed part counts."""
    repository.publish(date=NOW)
    genuine = repository.inrelease().read_bytes()
    repository.add("tool", "9.9", b"not what the owner published")
    packages = lzma.compress("\n".join(repository.stanzas).encode())
    repository.write("dists/bookworm/main/binary-amd64/Packages.xz", packages)
    forged = repository.release_text("main/binary-amd64/Packages.xz", packages, NOW, None).encode()
    repository.inrelease().write_bytes(forged + b"\n" + genuine if where == "before" else genuine + b"\n" + forged)
    with pytest.raises(FetchError):
        _index(repository, store)
    assert not list(store.root.glob("entries/packages/*"))


def test_one_known_signature_among_unknown_ones(
    repository: FakeRepository, store: Store, keys: dict[str, SigningKey]
) -> None:
    """Debian signs with the keys of two releases: the older keyring must do."""
    text = repository.release_text("main/binary-amd64/Packages.xz", _publish_packages(repository), NOW, None)
    both = keys["theirs"]
    secret = keys["ours"]._gpg("--export-secret-keys")
    both._gpg("--import", stdin=secret)
    signed = both.clearsign(text, "--local-user", "ours@example.org", "--local-user", "theirs@example.org")
    repository.inrelease().write_bytes(signed)
    _index(repository, store)


def _publish_packages(repository: FakeRepository) -> bytes:
    packages = lzma.compress("\n".join(repository.stanzas).encode())
    repository.write("dists/bookworm/main/binary-amd64/Packages.xz", packages)
    return packages


def test_a_weak_hash_is_no_signature(repository: FakeRepository, store: Store) -> None:
    text = repository.release_text("main/binary-amd64/Packages.xz", _publish_packages(repository), NOW, None)
    repository.write_release(text, "--digest-algo", "SHA1", "--allow-weak-digest-algos")
    assert b"Hash: SHA1" in repository.inrelease().read_bytes()
    with pytest.raises(FetchError, match=r"no valid signature|bad signature"):
        _index(repository, store)


def test_without_the_keyring(repository: FakeRepository, store: Store, tmp_path: Path) -> None:
    repository.publish(date=NOW)
    client = AptClient([repository.source(tmp_path / "none.gpg")], store)
    with pytest.raises(InfrastructureError, match="no keyring") as caught:
        client.packages("bookworm", "amd64")
    assert "debian-archive-keyring" in str(caught.value)


def test_without_gpgv(
    repository: FakeRepository, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    repository.publish(date=NOW)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfrastructureError, match="gpgv: command not found") as caught:
        _index(repository, store)
    assert "apt-get install gpgv" in str(caught.value)


# --- dates


def test_an_older_index_is_refused(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    _index(repository, store)
    repository.publish(date=NOW - timedelta(days=1))
    with pytest.raises(FetchError, match=r"older than the one of 2026-11-20 12:00 seen before \(replay\?\)"):
        _index(repository, store, max_age=0.0)


def test_the_same_index_again_is_fine(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    _index(repository, store)
    _index(repository, store, max_age=0.0)


def test_replay_is_remembered_through_prune(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    _index(repository, store)
    store.prune(cap_bytes=0)
    repository.publish(date=NOW - timedelta(days=1))
    with pytest.raises(FetchError, match="replay"):
        _index(repository, store, max_age=0.0)


def test_valid_until_in_the_past_is_said_or_refused(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW - timedelta(days=20), valid_until=NOW - timedelta(days=13))
    with pytest.raises(FetchError, match=r"Valid-Until passed on 2026-11-07 \(13 days ago\)"):
        _index(repository, store, strict_valid_until=True)
    client = Client(repository, store)
    client.packages("bookworm", "amd64")
    assert "Valid-Until passed on 2026-11-07 (13 days ago)" in client.said[0]


def test_valid_until_in_the_future_is_nothing_to_talk_about(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW, valid_until=NOW + timedelta(days=7))
    client = Client(repository, store, strict_valid_until=True)
    client.packages("bookworm", "amd64")
    assert not [line for line in client.said if "Valid-Until" in line]


# --- content


def test_the_release_of_another_suite(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    repository.write("dists/trixie/InRelease", repository.inrelease().read_bytes())
    repository.suite = "trixie"
    with pytest.raises(FetchError, match="this is the Release of stable / bookworm, not of trixie"):
        Client(repository, store).packages("trixie", "amd64")


def test_an_index_that_is_not_the_one_signed_for(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    path = repository.root / "dists/bookworm/main/binary-amd64/Packages.xz"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FetchError, match="SHA-256 is"):
        _index(repository, store)
    assert not list(store.root.glob("entries/packages/*"))


def test_an_index_cut_short(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    path = repository.root / "dists/bookworm/main/binary-amd64/Packages.xz"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(FetchError, match="bytes came"):
        _index(repository, store)


def test_a_package_that_is_not_the_one_signed_for(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    client = Client(repository, store)
    package = client.named("toolbox", ["bookworm"], "amd64")[0]
    (repository.root / package.filename).write_bytes(DEB[:-1] + b"!")
    with pytest.raises(FetchError, match=f"expected {package.sha256}"):
        client.fetch(package)
    assert store.blob(package.sha256) is None
    (repository.root / package.filename).write_bytes(DEB[:-9])
    with pytest.raises(FetchError, match="bytes came"):
        client.fetch(package)
    (repository.root / package.filename).write_bytes(DEB)
    assert client.fetch(package).read_bytes() == DEB


def test_a_package_that_is_gone(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    client = Client(repository, store)
    package = client.named("toolbox", ["bookworm"], "amd64")[0]
    (repository.root / package.filename).unlink()
    with pytest.raises(NotThereError):
        client.fetch(package)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Filename: pool/", "Filename: ../pool/"),
        ("Filename: pool/", "Filename: /etc/"),
        ("Filename: pool/", "Filename: http://evil/"),
        ("Filename: pool/", "Filename: pool/../../"),
        ("SHA256: ", "SHA256: xyz"),
        ("SHA256: ", "MD5sum: "),
        ("Size: ", "Size: -"),
        ("Package: tool\n", "Package: Tool\tname\n"),
        ("Version: ", "Version: 1 2"),
    ],
)
def test_stanzas_that_make_no_sense(repository: FakeRepository, store: Store, old: str, new: str) -> None:
    repository.stanzas = [stanza.replace(old, new) for stanza in repository.stanzas]
    repository.publish(date=NOW)
    with pytest.raises(FetchError, match="makes no sense"):
        _index(repository, store)


@pytest.mark.parametrize(
    "text", ["", "Date: yesterday\nSHA256:\n " + "0" * 64 + " 1 x\n", "Date: Fri, 20 Nov 2026 12:00:00 UTC\n"]
)
def test_releases_that_make_no_sense(repository: FakeRepository, store: Store, text: str) -> None:
    repository.publish(text=text or "nothing\n")
    with pytest.raises(FetchError):
        _index(repository, store)


def test_a_bomb_for_an_index(repository: FakeRepository, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    repository.publish(date=NOW)
    monkeypatch.setattr("harness.apt.repository._MAX_INDEX_BYTES", 100)
    with pytest.raises(FetchError, match="more than 100 bytes"):
        _index(repository, store)


def test_what_is_not_configured(repository: FakeRepository, store: Store) -> None:
    repository.publish(date=NOW)
    client = Client(repository, store)
    with pytest.raises(ConfigError, match="no repository serves the suite 'sid'"):
        client.packages("sid", "amd64")
    with pytest.raises(FetchError, match="bookworm has no packages for main, arm64"):
        client.packages("bookworm", "arm64")
