"""ci/lib, function by function, in a real bash: which packages are wanted, and how they come onto which machine."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


class Box:
    """A machine whose commands are written here; the words of apt-get, sudo and their like are noted, a call a line."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.calls = directory / "calls"
        self.calls.touch()
        self.release = directory / "os-release"
        for name in ("bash", "awk", "xargs", "dirname", "env", "id", "printf", "cat", "echo"):
            found = shutil.which(name)
            assert found is not None
            (self.bin / name).symlink_to(found)

    def command(self, name: str, body: str = "") -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f'#!{shutil.which("bash")}\necho "{name} $*" >>"{self.calls}"\n{body}\n')
        path.chmod(0o755)

    def installed(self, *packages: str) -> None:
        """What dpkg knows; `removed` is known to it and not installed."""
        names = "|".join(packages) or "-"
        says = f'case "${{@: -1}}" in {names}) echo installed ;; removed) echo config-files ;; *) exit 1 ;; esac'
        path = self.bin / "dpkg-query"
        path.write_text(f"#!{shutil.which('bash')}\n{says}\n")
        path.chmod(0o755)

    def bash(self, text: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": str(self.bin), "HOME": "/nowhere", "COREMATRIX_OS_RELEASE": str(self.release)}
        words = [str(self.bin / "bash"), "-c", f'set -euo pipefail; . "{ROOT}/ci/lib"; {text}']
        return subprocess.run(words, env=env, capture_output=True, text=True, check=False, timeout=60)

    def said(self, text: str) -> str:
        done = self.bash(text)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @property
    def asked(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@pytest.mark.parametrize(
    ("wanted", "lacking"),
    [
        ("make", ""),  # installed
        ("removed", "removed"),  # its configuration is all that is left
        ("qemu-system-x86", "qemu-system-x86"),
        ("nodejs:node", ""),  # not installed, and the command is there: NodeSource's brings npm too
        ("npm:npm", "npm"),  # neither
        ("make:no-such-command", ""),  # installed, and brings no such command: that is not for us to mend
        ("make nodejs:node npm:npm removed", "npm removed"),
    ],
)
def test_what_is_missing(box: Box, wanted: str, lacking: str) -> None:
    box.installed("make")
    box.command("node")
    assert box.said(f"missing {wanted}") == lacking


@pytest.mark.parametrize(
    ("release", "family"),
    [
        ("ID=debian\n", "debian"), ('ID=ubuntu\nID_LIKE="debian"\n', "debian"),
        ("ID=linuxmint\nID_LIKE='ubuntu debian'\n", "debian"),
        ("ID=fedora\n", "fedora"), ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "fedora"),
        ("ID=arch\n", "arch"), ("ID=manjaro\nID_LIKE=arch\n", "arch"),
        ('ID="opensuse-leap"\nID_LIKE="suse opensuse"\n', "suse"), ("ID=void\n", "other"), ("", "other"),
        (None, "other"),
    ],
)  # fmt: skip
def test_the_family_of_a_distribution(box: Box, release: str | None, family: str) -> None:
    if release is not None:
        box.release.write_text(release)
    assert box.said("family") == family


@pytest.mark.parametrize("what", ["run", "test", "gate"])
@pytest.mark.parametrize("release", ["fedora", "arch", "suse", "void"])
def test_elsewhere_the_packages_are_named_and_nothing_is_installed(box: Box, release: str, what: str) -> None:
    box.release.write_text(f"ID={release}\n")
    for name in ("sudo", "apt-get"):
        box.command(name)
    said = box.said(f"install_packages {what}")
    lines = (ROOT / "ci/packages.txt").read_text().splitlines()
    family = "debian" if release == "void" else release
    (wanted,) = [line.split()[2:] for line in lines if line.split()[:2] == [what, family]]
    assert "not a Debian-like system" in said
    assert said.splitlines()[-1].split() == [name.partition(":")[0] for name in wanted]
    assert box.asked == []


def test_root_installs_what_is_missing_and_nothing_else(box: Box) -> None:
    box.release.write_text("ID=debian\n")
    box.installed("python3", "python3-venv", "ca-certificates", "qemu-system-x86", "gpgv", "debian-archive-keyring")
    for name in ("sudo", "apt-get"):
        box.command(name)
    box.command("id", "echo 0")
    assert "installing qemu-system-arm" in box.said("install_packages gate")
    assert [call for call in box.asked if not call.startswith("id")] == [
        "apt-get update -q", "apt-get install -q -y --no-install-recommends qemu-system-arm",
    ]  # fmt: skip


def test_others_install_by_sudo(box: Box) -> None:
    box.release.write_text("ID=debian\n")
    box.installed()
    box.command("id", "echo 1000")
    box.command("apt-get")
    box.command("sudo", 'exec "$@"')
    box.said("install_packages gate")
    sudo = [call for call in box.asked if call.startswith("sudo")]
    assert sudo[0] == "sudo env DEBIAN_FRONTEND=noninteractive apt-get update -q"
    assert sudo[1].startswith("sudo env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends")
    assert "qemu-system-arm" in sudo[1] and len(sudo) == 2


def test_without_sudo_the_command_is_named(box: Box) -> None:
    box.release.write_text("ID=debian\n")
    box.installed()
    box.command("id", "echo 1000")
    done = box.bash("install_packages gate")
    assert done.returncode == 4
    assert "not root and no sudo; install as root: apt-get install python3 " in done.stderr


def test_a_refusing_apt_ends_it(box: Box) -> None:
    box.release.write_text("ID=debian\n")
    box.installed()
    box.command("id", "echo 0")
    box.command("apt-get", "exit 100")
    assert box.bash("install_packages gate; echo went on").stdout.find("went on") < 0


def test_all_there_asks_for_nothing(box: Box) -> None:
    box.release.write_text("ID=debian\n")
    box.installed("python3", "python3-venv", "ca-certificates", "qemu-system-x86", "qemu-system-arm", "gpgv",
                  "debian-archive-keyring")  # fmt: skip
    assert "all 7 are installed" in box.said("install_packages gate")


def test_the_first_python_that_is_new_enough(box: Box) -> None:
    box.command("python3", "exit 1")
    box.command("python3.12")
    assert box.said("find_python") == "python3.12"
