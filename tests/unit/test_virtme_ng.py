"""By what a guest of virtme-ng's takes files from here: the kernel's modules and the daemons of this machine decide."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness import kernels
from harness.backends import virtme_ng
from harness.errors import InfrastructureError
from harness.kernels.modules import ModuleFiles

RUST, QEMUS = "virtiofsd 1.13.2", "virtiofsd version 7.2.22 (Debian 1:7.2+dfsg-7)"


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a virtiofsd that says this into PATH, and hide those of this machine."""
    monkeypatch.setattr(virtme_ng, "_DAEMONS", ())
    monkeypatch.setattr(virtme_ng, "_path", lambda: {"PATH": str(tmp_path / "bin")})

    def put(said: str) -> None:
        path = tmp_path / "bin" / "virtiofsd"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\necho '{said}'\n")
        path.chmod(0o755)

    return put


def sharing(monkeypatch: pytest.MonkeyPatch, *missing: str) -> tuple[str, ...]:
    def modules(_kernel: object, names: tuple[str, ...], *_rest: object) -> ModuleFiles:
        return ModuleFiles(paths=(), builtin=(), missing=tuple(name for name in names if name in missing))

    monkeypatch.setattr(kernels, "kernel_modules", modules)
    kernel, options = SimpleNamespace(spec=SimpleNamespace(id="mine")), SimpleNamespace(store=None, on_event=print)
    return virtme_ng._sharing(kernel, options)[0]  # type: ignore[arg-type]


def test_9p_where_the_kernel_has_it(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon(RUST)
    assert sharing(monkeypatch) == ("9p", "9pnet_virtio")


def test_virtiofs_where_it_has_not(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon(RUST)
    assert sharing(monkeypatch, "9p", "9pnet_virtio") == ("virtiofs",)


@pytest.mark.parametrize("said", [None, QEMUS])
def test_without_the_daemon_vng_can_use_it_is_said(
    said: str | None, daemon: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said is not None:
        daemon(said)
    with pytest.raises(InfrastructureError, match="no virtiofsd is here"):
        sharing(monkeypatch, "9p", "9pnet_virtio")


def test_a_kernel_with_neither_is_refused(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon(RUST)
    with pytest.raises(InfrastructureError, match="neither 9p nor virtiofs"):
        sharing(monkeypatch, "9p", "virtiofs")
