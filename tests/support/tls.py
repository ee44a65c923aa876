"""Certificates for Dask's TLS, made with openssl: an authority, and keys it has signed, as Dask's environment."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_PREFIX = "DASK_DISTRIBUTED__COMM__"


def authority(directory: Path) -> Path:
    """A new authority's directory (ca.pem, ca.key). Skips the calling test without openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory.mkdir()
    _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={directory.name}",
             "-keyout", directory / "ca.key", "-out", directory / "ca.pem")  # fmt: skip
    return directory


def certificate(made_by: Path, name: str) -> dict[str, str]:
    """Dask's environment with a key of that name, signed by an authority, which alone is believed."""
    key, request, signed = (made_by / f"{name}.{suffix}" for suffix in ("key", "csr", "pem"))
    _openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-keyout", key, "-out", request)
    _openssl("x509", "-req", "-days", "2", "-in", request, "-CA", made_by / "ca.pem", "-CAkey", made_by / "ca.key",
             "-CAcreateserial", "-out", signed)  # fmt: skip
    roles = {f"{_PREFIX}TLS__{role}__{what}": str(path) for role in ("SCHEDULER", "WORKER", "CLIENT")
             for what, path in (("KEY", key), ("CERT", signed))}  # fmt: skip
    return {f"{_PREFIX}REQUIRE_ENCRYPTION": "True", f"{_PREFIX}TLS__CA_FILE": str(made_by / "ca.pem"), **roles}


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
