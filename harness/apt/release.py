"""InRelease files: the signed root of a suite. Everything else is believed for a hash that this file vouches for.

Rules, as apt-secure(8) has them: at least one good signature of a key in the keyring and none that is bad; no
signature over MD5, SHA-1 or RIPEMD-160; what is read is the text gpgv gives back, never the file itself (which may
hold more than was signed); the suite is the one asked for; the date never goes back (replay); Valid-Until in the past
is said or refused, as the caller likes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import proc
from harness.errors import FetchError, InfrastructureError

_HASH_LINE = re.compile(r"^ ([0-9a-f]{64}) +(\d+) (\S+)$", re.MULTILINE)
# OpenPGP hash algorithm ids (RFC 4880, section 9.4): MD5, SHA-1, RIPEMD-160.
_WEAK_HASHES = frozenset({"1", "2", "3"})
# Status words of gpgv (doc/DETAILS in GnuPG) that void the file whatever else it says.
_BAD = ("BADSIG", "REVKEYSIG", "FAILURE")


@dataclass(frozen=True, kw_only=True)
class IndexFile:
    """A file the Release vouches for: its path below dists/SUITE, its SHA-256, its size in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Release:
    """A verified Release. `names`: what the suite calls itself (Suite, Codename); `signers`: key fingerprints."""

    names: tuple[str, ...]
    date: datetime
    valid_until: datetime | None
    by_hash: bool
    files: dict[str, IndexFile]
    signers: tuple[str, ...]

    def to_json(self, wanted: str = "/Packages") -> dict[str, Any]:
        """For the store: only the files whose path holds `wanted` (a Release lists hundreds more)."""
        return {
            "names": list(self.names),
            "date": self.date.isoformat(),
            "valid_until": self.valid_until.isoformat() if self.valid_until else None,
            "by_hash": self.by_hash,
            "files": [[file.path, file.sha256, file.size] for file in self.files.values() if wanted in file.path],
            "signers": list(self.signers),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Release:
        """The inverse of `to_json`. KeyError, TypeError or ValueError when it is not one."""
        until = value["valid_until"]
        return cls(
            names=tuple(value["names"]),
            date=datetime.fromisoformat(value["date"]),
            valid_until=datetime.fromisoformat(until) if until else None,
            by_hash=bool(value["by_hash"]),
            files={path: IndexFile(path=path, sha256=sha256, size=size) for path, sha256, size in value["files"]},
            signers=tuple(value["signers"]),
        )


def verify(inrelease: Path, keyring: Path, *, source: str, scratch: Path) -> Release:
    """Check the signature of an InRelease file and read what was signed.

    `source` names it in messages, `scratch` is a directory to write in. Raises FetchError when it is not to be
    trusted or makes no sense, InfrastructureError when gpgv or the keyring is missing.
    """
    if not keyring.is_file():
        message = f"{source}: no keyring {keyring} to verify it with"
        raise InfrastructureError(
            message, remedy="apt-get install debian-archive-keyring, or name the keyring in kernels.yaml"
        )
    signed_text = scratch / "Release"
    result = proc.run(
        ["gpgv", "--keyring", keyring, "--status-fd", "1", "--output", signed_text, inrelease],
        check=False, remedy="apt-get install gpgv",
    )  # fmt: skip
    signers = _signers(result.text, source)
    try:
        text = signed_text.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"{source}: gpgv gave no text back"
        raise FetchError(message) from error
    return _parse(text, signers, source)


def _signers(status: str, source: str) -> tuple[str, ...]:
    """Fingerprints of the keys whose signatures hold. FetchError unless there is one and none is bad."""
    remedy = "the mirror is damaged or tampered with, or the keyring is too old: name another in kernels.yaml"
    words = [line.split()[1:] for line in status.splitlines() if line.startswith("[GNUPG:] ")]
    bad = [word for word in words if word and word[0] in _BAD]
    if bad:
        message = f"{source}: bad signature: {' '.join(bad[0])}"
        raise FetchError(message, remedy=remedy)
    # VALIDSIG: fingerprint, date, timestamp, expiry, version, reserved, key and hash algorithm, class, primary key
    valid = [word for word in words if word and word[0] == "VALIDSIG" and len(word) > 8]
    strong = tuple(word[1] for word in valid if word[8] not in _WEAK_HASHES)
    if not strong or not any(word and word[0] == "GOODSIG" for word in words):
        missing = " ".join(word[1] for word in words if word and word[0] == "NO_PUBKEY")
        reason = (
            "its hash algorithm is too weak"
            if valid
            else f"keys not in the keyring: {missing}"
            if missing
            else "not signed"
        )
        message = f"{source}: no valid signature ({reason})"
        raise FetchError(message, remedy=remedy)
    return strong


def _parse(text: str, signers: tuple[str, ...], source: str) -> Release:
    head, _, hashes = text.partition("\nSHA256:")
    # Fields may follow the list of hashes: the list ends where a line does not begin with a blank.
    listed = re.match(r"(?:\s*\n(?: .*\n?)*)", hashes)
    tail = hashes[listed.end() :] if listed else ""
    fields = dict(re.findall(r"^([A-Za-z0-9-]+): *(.*)$", head + "\n" + tail, re.MULTILINE))
    files = {
        path: IndexFile(path=path, sha256=sha256, size=int(size))
        for sha256, size, path in _HASH_LINE.findall(listed.group() if listed else "")
    }
    if "Date" not in fields or not files:
        message = f"{source}: a Release needs a Date and SHA256 hashes"
        raise FetchError(message)
    names = tuple(fields[key] for key in ("Suite", "Codename") if fields.get(key))
    return Release(
        names=names, date=_date(fields["Date"], source), files=files, signers=signers,
        valid_until=_date(fields["Valid-Until"], source) if "Valid-Until" in fields else None,
        by_hash=fields.get("Acquire-By-Hash", "").lower() == "yes",
    )  # fmt: skip


def _date(text: str, source: str) -> datetime:
    """RFC 2822, always UTC (Debian repository format, "Date, Valid-Until")."""
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(text)
    except ValueError as error:
        message = f"{source}: {text!r} is not a date"
        raise FetchError(message) from error
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date.astimezone(UTC)


def check_suite(release: Release, suite: str, source: str) -> None:
    """FetchError when the Release is of another suite: a mirror cannot pass off one signed suite as another."""
    if release.names and suite not in release.names:
        message = f"{source}: this is the Release of {' / '.join(release.names)}, not of {suite}"
        raise FetchError(message, remedy="name the suite as the repository does, or another mirror")


def check_replay(release: Release, newest_seen: datetime | None, source: str) -> None:
    """FetchError when the Release is older than one this source has already given."""
    if newest_seen is not None and release.date < newest_seen:
        dates = f"dated {release.date:%Y-%m-%d %H:%M}, older than the one of {newest_seen:%Y-%m-%d %H:%M}"
        message = f"{source}: {dates} seen before (replay?)"
        raise FetchError(message, remedy="the mirror lags behind or replays an old state: name another in kernels.yaml")


def expired(release: Release, now: datetime) -> str | None:
    """What to say when Valid-Until has passed, else None."""
    if release.valid_until is None or now <= release.valid_until:
        return None
    days = (now - release.valid_until).days
    return f"Valid-Until passed on {release.valid_until:%Y-%m-%d} ({days} days ago): the mirror may lag"
