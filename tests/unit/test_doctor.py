from __future__ import annotations

from pathlib import Path

import pytest

from harness import config, doctor, proc
from harness.store import Store


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ('ID=debian\nVERSION_ID="12"\n', "apt-get install qemu-system-arm gpgv"),
        ("ID=linuxmint\nID_LIKE=ubuntu\n", "apt-get install qemu-system-arm gpgv"),
        ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install qemu-system-aarch64-core gnupg2"),
        ("ID=arch\n", "pacman -S qemu-system-aarch64 gnupg"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "zypper install qemu-arm gpg2"),
        ("ID=plan9\n", "install what Debian calls qemu-system-arm gpgv"),
        ("", "install what Debian calls qemu-system-arm gpgv"),
    ],
)
def test_the_remedy_is_this_distributions_command(text: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text(text)
    assert doctor.Installer.of(tmp_path / "os-release").remedy("qemu-system-arm", "gpgv") == remedy


def test_without_os_release_debians_names_are_given(tmp_path: Path) -> None:
    assert doctor.Installer.of(tmp_path / "none").family is None


def test_on_a_bare_machine_every_lack_has_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proc, "which", lambda _name: None)
    matrix = config.load_matrix(config.builtin_matrix())
    with Store(tmp_path / "cache") as store:
        findings = list(doctor.examine(matrix, store))
    lacks = {finding.name for finding in findings if finding.ok is False}
    assert {"gpgv", "clang", "QEMU x86_64", "QEMU arm64"} <= lacks
    assert all(finding.remedy for finding in findings if finding.ok is not True)
    guests = [finding.ok for finding in findings if finding.name.startswith("guest ")]
    assert guests and set(guests) == {None}
    assert doctor.lacking(findings)


def test_a_cache_that_cannot_be_written_is_a_lack(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with Store(tmp_path / "cache" / "below") as store:
        finding = doctor._cache(store)
    assert finding.ok is False
    assert "COREMATRIX_CACHE" in str(finding.remedy)
