"""KVM is believed only after a guest has booted with it, once per boot of the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import GuestLostError
from harness.model.arch import ARCHITECTURES
from harness.store import Store
from harness.vm import accelerator

X86 = ARCHITECTURES["x86_64"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    device, boot_id = tmp_path / "kvm", tmp_path / "boot_id"
    device.touch()
    boot_id.write_text("first\n")
    monkeypatch.setattr(accelerator, "_DEVICE", device)
    monkeypatch.setattr(accelerator, "_BOOT_ID", boot_id)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return Store(tmp_path / "cache")


class Attempts:
    def __init__(self, *, works: bool) -> None:
        self.works = works
        self.count = 0

    def __call__(self) -> None:
        self.count += 1
        if not self.works:
            raise GuestLostError("no answer within 10 s", status="timeout")


@pytest.mark.parametrize(("works", "name"), [(True, "kvm"), (False, "tcg")])
def test_one_attempt_decides_until_the_host_boots_again(store: Store, tmp_path: Path, works: bool, name: str) -> None:
    attempts = Attempts(works=works)
    for _ in range(3):
        assert accelerator.choose(X86, "7.2.22 (Debian)", store, attempts).name == name
    assert attempts.count == 1
    (tmp_path / "boot_id").write_text("second\n")
    accelerator.choose(X86, "7.2.22 (Debian)", store, attempts)
    assert attempts.count == 2
    accelerator.choose(X86, "8.0.0", store, attempts)
    assert attempts.count == 3


def test_a_cache_that_cannot_be_written_costs_one_attempt_in_a_process(store: Store) -> None:
    store.root.write_bytes(b"")
    attempts = Attempts(works=False)
    for _ in range(3):
        assert accelerator.choose(X86, "7.2.22 (Debian)", Store(store.root), attempts).name == "tcg"
    assert attempts.count == 1


def test_the_reason_says_what_happened(store: Store) -> None:
    chosen = accelerator.choose(X86, "7.2", store, Attempts(works=False))
    assert "no answer within 10 s" in chosen.reason


def test_kvm_is_not_tried_where_it_cannot_be(store: Store, tmp_path: Path) -> None:
    attempts = Attempts(works=True)
    assert accelerator.choose(ARCHITECTURES["arm64"], "7.2", store, attempts).name == "tcg"
    (tmp_path / "kvm").unlink()
    assert accelerator.choose(X86, "7.2", store, attempts).name == "tcg"
    (tmp_path / "kvm").mkdir()  # opens for nobody's writing
    assert accelerator.choose(X86, "7.2", store, attempts).name == "tcg"
    assert attempts.count == 0
