from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from harness import config
from harness.errors import ConfigError
from harness.model.sources import AptSource

ROOT = Path(__file__).resolve().parents[2]
GOOD: dict[str, Any] = {
    "repositories": {
        "debian": {"uri": "http://deb.debian.org/debian/", "keyring": "/k.gpg", "suites": ["bookworm", "trixie"]}
    },
    "guest": {"suites": ["bookworm"], "packages": ["libc6"]},
    "kernels": [
        {
            "id": "debian-6.1-cloud-amd64",
            "arch": "x86_64",
            "variant": "cloud",
            "suites": ["bookworm"],
            "package": "linux-image-6.1.*-cloud-amd64",
        },
        {
            "id": "mine",
            "arch": "arm64",
            "variant": "16k",
            "suites": "trixie",
            "package": "linux-image-*",
            "tags": ["gate", "nightly"],
            "cpu": "cortex-a76",
            "memory_mb": 512,
            "kernel_args": ["nokaslr"],
        },
    ],
    "exclude": ["mine/x@*"],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one value replaced; `path` like `kernels.0.arch`."""
    data = copy.deepcopy(GOOD)
    *parents, last = path.split(".")
    node: Any = data
    for name in parents:
        node = node[int(name)] if isinstance(node, list) else node[name]
    node[int(last) if isinstance(node, list) else last] = value
    return data


def test_a_matrix_becomes_model_objects() -> None:
    matrix = config.matrix_from(GOOD, "kernels.yaml")
    first, second = matrix.kernels
    assert isinstance(first.source, AptSource)
    assert first.source.suites == ("bookworm",)
    assert first.source.repositories[0].uri == "http://deb.debian.org/debian"
    assert (first.memory_mb, first.tags, first.cpu) == (256, frozenset(), None)
    assert (second.arch.name, second.cpu, second.memory_mb) == ("arm64", "cortex-a76", 512)
    assert second.tags == {"gate", "nightly"}
    assert second.kernel_args == ("nokaslr",)
    assert matrix.guest.packages == ("libc6",)
    assert matrix.exclude == ("mine/x@*",)


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("kernel", [], "kernels.yaml: kernel: unknown key\n  remedy: did you mean 'kernels'?"),
        ("kernels.1.sutes", "x", "kernels[1].sutes: unknown key\n  remedy: did you mean 'suites'?"),
        ("repositories.debian.url", "x", "repositories.debian.url: unknown key\n  remedy: did you mean 'uri'?"),
        ("kernels.0.arch", "amd64", "kernels[0].arch: 'amd64' is not known here"),
        ("kernels.0.arch", None, "kernels[0].arch: this key is required"),
        ("kernels.0.id", "a/b", "kernels[0].id: 'a/b' cannot be an identity"),
        ("kernels.0.id", "mine", "kernels[1]: two kernels have the identity 'mine'"),
        ("kernels.0.id", 6.1, "kernels[0].id: expected text, found the number 6.1"),
        ("kernels.0.package", "linux-[56", "kernels[0].package: bad glob 'linux-[56'"),
        ("kernels.0.suites", ["bookwrm"], "kernels[0].suites[0]: 'bookwrm' is not known here\n  remedy: did you mean"),
        ("kernels.1.memory_mb", 16, "kernels[1].memory_mb: expected a whole number of at least 96"),
        ("kernels.1.memory_mb", True, "kernels[1].memory_mb: expected a whole number"),
        ("kernels.1.tags", {"a": 1}, "kernels[1].tags: expected a list, found a mapping"),
        ("kernels", {"a": 1}, "kernels: expected a list, found a mapping"),
        ("kernels.0", "x", "kernels[0]: expected a mapping, found text"),
        ("repositories.debian.uri", "ftp://x", "repositories.debian.uri: 'ftp://x' is none of"),
        ("exclude", ["a[x=1"], "exclude[0]: bad glob"),
    ],
)
def test_every_complaint_names_the_path_to_the_key(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.matrix_from(changed(path, value), "kernels.yaml")
    assert complaint in str(caught.value)
    assert str(caught.value).startswith("kernels.yaml: ")
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a: 1\na: 2\n", "x.yaml:2:1: key 'a' stands here twice"),
        ("kernels:\n  - id: a\n    id: b\n", "x.yaml:3:5: key 'id' stands here twice"),
        ("a: [1, 2\nb: 3\n", "x.yaml:2:2: "),
        ("a: !!python/object/apply:os.system [id]\n", "x.yaml:1:4: could not determine a constructor"),
        ("[" * 5000, "x.yaml: not YAML"),
        ("a: \x00\n", "x.yaml: not YAML"),
    ],
)
def test_what_is_not_yaml_is_told_with_its_place(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.parse_yaml(text, "x.yaml")
    assert str(caught.value).startswith(complaint)


@pytest.mark.parametrize("content", [None, b"\xff\xfe\x00"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "kernels.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"kernels\.yaml: (cannot be read|not UTF-8)"):
        config.load_matrix(tmp_path / "kernels.yaml")


def test_kernels_yaml_of_the_working_directory_comes_before_the_built_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config.matrix_path(None) == config.builtin_matrix()
    (tmp_path / "kernels.yaml").touch()
    assert config.matrix_path(None) == Path("kernels.yaml")


def test_a_broken_lock_is_told_not_ignored(tmp_path: Path) -> None:
    (tmp_path / "kernels.yaml").write_bytes((ROOT / "kernels.yaml").read_bytes())
    (tmp_path / "kernels.lock").write_text("{")
    with pytest.raises(ConfigError, match=r"kernels\.lock: not JSON"):
        config.load_matrix(tmp_path / "kernels.yaml")


# The gate, and that the full matrix spreads over every version and variant, are promises of the README.
GATE = [
    "debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64", "debian-6.1-generic-amd64", "debian-6.12-cloud-amd64",
    "debian-6.12-rt-amd64", "debian-6.18-cloud-amd64", "debian-7.2-cloud-amd64", "debian-5.10-cloud-arm64",
    "debian-6.1-cloud-arm64", "debian-6.12-16k-arm64", "debian-7.2-cloud-arm64",
]  # fmt: skip


def test_the_built_in_matrix_holds_what_was_promised() -> None:
    kernels = config.load_matrix(config.builtin_matrix()).kernels
    assert [kernel.id for kernel in kernels if "gate" in kernel.tags] == GATE
    assert sum("full" in kernel.tags for kernel in kernels) == 26


def elsewhere(**keys: Any) -> dict[str, Any]:
    """GOOD with a third kernel that has these keys in place of `suites` and `package`."""
    data = copy.deepcopy(GOOD)
    data["kernels"].append({"id": "own", "arch": "x86_64", "variant": "own", **keys})
    return data


PATH = {"kind": "path", "vmlinuz": "old/vmlinuz"}
HASH = "0123456789abcdef" * 4


def test_kernels_of_files_urls_and_trees() -> None:
    def source(value: dict[str, Any]) -> Any:
        return config.matrix_from(elsewhere(source=value), "/etc/cm/kernels.yaml").kernels[-1].source

    files = source({**PATH, "config": "/boot/config", "modules": "../lib"})
    assert files.kind == "path"
    assert (files.vmlinuz, files.config) == (Path("/etc/cm/old/vmlinuz"), Path("/boot/config"))
    assert files.modules == Path("/etc/cm/../lib")
    assert source({"kind": "path", "packages": "a.deb"}).packages == (Path("/etc/cm/a.deb"),)
    remote = source({"kind": "url", "vmlinuz": {"url": "https://x/vmlinuz", "sha256": HASH.upper()}})
    assert (remote.vmlinuz.url, remote.vmlinuz.sha256) == ("https://x/vmlinuz", HASH)
    tree = source({"kind": "tree", "tree": "linux", "config": "defconfig", "fragments": ["ikconfig", "./x.config"]})
    assert (tree.tree, tree.config) == (Path("/etc/cm/linux"), "defconfig")
    assert [path.name for path in tree.fragments] == ["ikconfig.config", "x.config"]
    assert tree.fragments[0].is_file()
    assert source({"kind": "tree", "tree": "linux", "config": "my/config-6.1"}).config == Path("/etc/cm/my/config-6.1")


def test_btf_from_elsewhere() -> None:
    def btf(value: Any) -> Any:
        return config.matrix_from(elsewhere(source=PATH, btf=value), "/etc/cm/kernels.yaml").kernels[-1].btf

    assert btf("x.btf").file == btf({"file": "x.btf"}).file == Path("/etc/cm/x.btf")
    assert btf({"dwarf": "/v"}).dwarf == Path("/v")
    hub = btf({"tree": "hub", "distro": "ubuntu", "version": "18.04"})
    assert (hub.tree, hub.distro, hub.version) == (Path("/etc/cm/hub"), "ubuntu", "18.04")
    assert btf({"url": "https://x/y.btf", "sha256": HASH}).remote.sha256 == HASH
    assert config.matrix_from(GOOD, "k").kernels[0].btf is None


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"source": {"kind": "flopy"}}, "source.kind: 'flopy' is not known here"),
        ({"source": {"vmlinuz": "x"}}, "kernels[2].source: `kind` is required"),
        ({"source": PATH, "suites": ["bookworm"]}, "kernels[2].suites: does not go with `source`"),
        ({"source": {"kind": "path"}}, "source: either `vmlinuz` or `packages` is needed"),
        ({"source": {"kind": "path", "packages": ["a"], "config": "c"}}, "source.config: comes out of `packages`"),
        ({"source": {**PATH, "moduls": "x"}}, "source.moduls: unknown key\n  remedy: did you mean 'modules'?"),
        ({"source": {"kind": "url", "vmlinuz": "https://x"}}, "source.vmlinuz: expected a mapping"),
        ({"source": {"kind": "url", "vmlinuz": {"url": "ftp://x", "sha256": HASH}}}, "vmlinuz.url: 'ftp://x' is none"),
        ({"source": {"kind": "url", "vmlinuz": {"url": "http://x", "sha256": "12"}}}, "sha256: not a SHA-256"),
        ({"source": {"kind": "url", "vmlinuz": {"url": "http://x"}}}, "vmlinuz.sha256: this key is required"),
        ({"source": {"kind": "tree", "tree": "x"}}, "source.config: this key is required"),
        (
            {"source": {"kind": "tree", "tree": "x", "config": "defconfig", "fragments": ["ikconfg"]}},
            "fragments[0]: 'ikconfg' is not known here\n  remedy: did you mean 'ikconfig'?",
        ),
        ({"source": PATH, "btf": {}}, "btf: exactly one of file, tree, dwarf, url is needed"),
        ({"source": PATH, "btf": {"file": "a", "dwarf": "b"}}, "btf: exactly one of"),
        ({"source": PATH, "btf": {"file": "a", "distro": "b"}}, "btf.distro: does not go with `file`"),
    ],
)
def test_what_is_wrong_with_a_source_is_named(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.matrix_from(elsewhere(**keys), "kernels.yaml")
    assert complaint in str(caught.value)


def test_an_architecture_may_have_packages_of_its_own() -> None:
    other = {"riscv64": {"suites": ["trixie"], "packages": ["libc6", "python3.13-minimal"]}}
    data = changed("guest", {**GOOD["guest"], "arches": other})
    guest = config.matrix_from(data, "k").guest
    assert guest.for_arch("riscv64").packages == ("libc6", "python3.13-minimal")
    assert guest.for_arch("riscv64").suites == ("trixie",)
    assert guest.for_arch("x86_64").packages == ("libc6",)
    with pytest.raises(ConfigError, match="'risc' is not known here"):
        config.matrix_from(changed("guest", {**GOOD["guest"], "arches": {"risc": other["riscv64"]}}), "k")


def test_a_root_of_its_own_is_for_virtme_ng(tmp_path: Path) -> None:
    data = copy.deepcopy(GOOD)
    data["kernels"][0] |= {"backend": "virtme-ng", "root": "chroot"}
    found = config.matrix_from(data, str(tmp_path / "kernels.yaml")).kernels[0]
    assert found.root == tmp_path / "chroot"
    data["kernels"][0]["backend"] = "qemu"
    with pytest.raises(ConfigError, match=r"kernels\[0\].root: goes with `backend: virtme-ng` only"):
        config.matrix_from(data, "kernels.yaml")
