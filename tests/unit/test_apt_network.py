"""Debian's own repository, as it is today: what kernels.yaml names must be there, verified from end to end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.apt import deb
from harness.apt.guest import fetch_guest
from harness.apt.repository import AptClient, AptOptions
from harness.config import builtin_matrix, load_matrix
from harness.kernels import apt_source
from harness.model.arch import ARCHITECTURES
from harness.model.sources import AptSource
from harness.store import Store

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("cache")) as made:
        yield made


def _said(line: str) -> None:
    assert line


def test_every_row_is_there_today(store: Store) -> None:
    matrix = load_matrix(builtin_matrix())
    for spec in matrix.kernels:
        assert isinstance(spec.source, AptSource)
        packages = apt_source.select(spec, spec.source, store, _said, AptOptions())
        assert packages[0].arch == spec.arch.debian


@pytest.mark.parametrize("arch", ["x86_64", "arm64"])
def test_the_guests_packages_are_of_its_architecture(store: Store, arch: str) -> None:
    row = ARCHITECTURES[arch]
    got = fetch_guest(load_matrix(builtin_matrix()).guest, row, store, None, _said)
    assert {package.arch for package in got.packages} == {row.debian}
    python = dict(zip((package.name for package in got.packages), got.paths, strict=True))["python3.11-minimal"]
    binary = deb.read_members(python, ["usr/bin/python3.11"])["usr/bin/python3.11"]
    assert binary.data is not None
    assert int.from_bytes(binary.data[18:20], row.byteorder) == row.elf_machine


def test_signed_by_debian(store: Store) -> None:
    matrix = load_matrix(builtin_matrix())
    client = AptClient(matrix.guest.repositories, store, options=AptOptions(max_age=0.0))
    assert client.named("linux-libc-dev", ["bookworm", "bookworm-security"], "amd64")
    assert Path(matrix.guest.repositories[0].keyring).is_file()
