"""A small apt repository on disk, signed with a key of its own, and keyrings to hold against it."""

from __future__ import annotations

import hashlib
import lzma
import shutil
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from harness.model.sources import AptRepository


class SigningKey:
    """A GnuPG home with one key; `keyring` is its public part, as gpgv wants it."""

    def __init__(self, home: Path, name: str) -> None:
        self.home = home
        home.mkdir(mode=0o700, parents=True)
        self._gpg("--quick-gen-key", "--passphrase", "", f"{name} <{name}@example.org>", "ed25519", "sign", "never")
        self.keyring = home / "public.gpg"
        self.keyring.write_bytes(self._gpg("--export"))

    def clearsign(self, text: str, *options: str) -> bytes:
        return self._gpg(*options, "--clearsign", stdin=text.encode())

    def stop(self) -> None:
        """End the agent that gpg has started for this home."""
        subprocess.run(["gpgconf", "--homedir", str(self.home), "--kill", "all"], check=False, capture_output=True)

    def _gpg(self, *args: str, stdin: bytes | None = None) -> bytes:
        command = ["gpg", "--homedir", str(self.home), "--batch", "--yes", "--pinentry-mode", "loopback", *args]
        return subprocess.run(command, input=stdin, check=True, capture_output=True).stdout


@dataclass
class FakeRepository:
    """`add` packages, then `publish`; publish again for a newer state. `uri` is what AptRepository takes."""

    root: Path
    key: SigningKey
    suite: str = "bookworm"
    arch: str = "amd64"
    stanzas: list[str] = field(default_factory=list)

    def add(self, name: str, version: str, deb: bytes, depends: str = "") -> str:
        """Put a .deb into the pool and the index; its path below the root."""
        filename = f"pool/{name}_{version}_{self.arch}.deb"
        path = self.root / filename
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(deb)
        digest = hashlib.sha256(deb).hexdigest()
        self.stanzas.append(
            f"Package: {name}\nVersion: {version}\nArchitecture: {self.arch}\nDepends: {depends or 'libc6'}\n"
            f"Description: made up\n more of it\nFilename: {filename}\nSize: {len(deb)}\nSHA256: {digest}\n"
        )
        return filename

    def publish(
        self, *, date: datetime | None = None, valid_until: datetime | None = None, text: str | None = None
    ) -> None:
        """Write Packages.xz and a signed InRelease; `text` replaces what is signed."""
        packages = lzma.compress("\n".join(self.stanzas).encode())
        index = f"main/binary-{self.arch}/Packages.xz"
        self.write(f"dists/{self.suite}/{index}", packages)
        self.write_release(text or self.release_text(index, packages, date, valid_until))

    def release_text(self, index: str, packages: bytes, date: datetime | None, valid_until: datetime | None) -> str:
        until = f"Valid-Until: {_rfc(valid_until)}\n" if valid_until else ""
        return (
            f"Origin: Test\nSuite: stable\nCodename: {self.suite}\nDate: {_rfc(date or datetime.now(UTC))}\n{until}"
            f"Architectures: {self.arch}\nComponents: main\nSHA256:\n"
            f" {hashlib.sha256(packages).hexdigest()} {len(packages)} {index}\n"
        )

    def write_release(self, text: str, *options: str) -> None:
        self.write(f"dists/{self.suite}/InRelease", self.key.clearsign(text, *options))

    def write(self, name: str, data: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def inrelease(self) -> Path:
        return self.root / "dists" / self.suite / "InRelease"

    def source(self, keyring: Path | None = None, uri: str | None = None) -> AptRepository:
        return AptRepository(
            name="fake", uri=uri or self.root.as_uri(), keyring=str(keyring or self.key.keyring), suites=(self.suite,)
        )


def tools_missing() -> str | None:
    """Why this module cannot be used here, or None."""
    missing = [tool for tool in ("gpg", "gpgv", "gpgconf") if shutil.which(tool) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _rfc(date: datetime) -> str:
    return date.strftime("%a, %d %b %Y %H:%M:%S UTC")
