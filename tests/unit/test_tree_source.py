"""Kernels built from a tree, tried on trees whose make is a few lines: what is asked of make, what is kept, what is
refused. A real tree is built on demand (marker `ondemand`).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.apt.repository import AptOptions
from harness.errors import FetchError, InfrastructureError, UsageError
from harness.kernels import identify, provide
from harness.model.arch import ARCHITECTURES
from harness.model.kernel import Kernel, KernelSpec
from harness.model.sources import TreeSource
from harness.source_config import fragments_directory
from harness.store import Store

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")

BTF = fragments_directory() / "btf.config"

# A tree that knows three switches, keeps the last word for each, and makes a raw "kernel" out of its configuration.
MAKEFILE = r"""
defconfig:
	printf 'CONFIG_A=y\nCONFIG_B=y\n' > $(O)/.config
olddefconfig:
	sed -n 's/^# \(CONFIG_[A-Z_0-9]*\) is not set$$/\1 n/p; s/^\(CONFIG_[A-Z_0-9]*\)=\(.*\)/\1 \2/p' $(O)/.config | \
		awk '{ last[$$1] = $$2 } END { for (n in last) if (n != "CONFIG_UNKNOWN") print n, last[n] }' | sort | \
		awk '$$2 == "n" { print "# " $$1 " is not set"; next } { print $$1 "=" $$2 }' > $(O)/.config.new
	mv $(O)/.config.new $(O)/.config
Image:
	test ! -e $(CURDIR)/broken || { echo "kernel/fork.c: error: it is broken" >&2; exit 1; }
	mkdir -p $(O)/arch/arm64/boot
	{ head -c 56 /dev/zero; printf 'ARM\144'; printf 'Linux version 6.9.0-$(ARCH) (me@here)\n\0'; cat $(O)/.config; } \
		> $(O)/arch/arm64/boot/Image
	echo built >> $(CURDIR)/../builds
modules:
	@:
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as made:
        yield made


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    made = tmp_path / "tree"
    made.mkdir()
    (made / "Makefile").write_text(MAKEFILE)
    (made / "Kbuild").write_text("")
    return made


def _spec(tree: Path, *fragments: str, config: Path | str = "defconfig") -> KernelSpec:
    files = []
    for number, text in enumerate(fragments):
        path = tree.parent / f"f{number}.config"
        path.write_text(text)
        files.append(path)
    source = TreeSource(tree=tree, config=config, fragments=tuple(files), btf_fragment=BTF)
    return KernelSpec(id="mine", arch=ARCHITECTURES["arm64"], variant="own", source=source)


def _provide(spec: KernelSpec, store: Store, said: list[str] | None = None) -> Kernel:
    return provide(spec, store, None, (said if said is not None else []).append)


def _config(kernel: Kernel) -> list[str]:
    assert kernel.config is not None
    return kernel.config.read_text().splitlines()


def _builds(tree: Path) -> int:
    return len((tree.parent / "builds").read_text().splitlines())


def test_base_fragments_and_btf_make_the_configuration(tree: Path, store: Store) -> None:
    said: list[str] = []
    kernel = _provide(_spec(tree, "# CONFIG_A is not set\n", "CONFIG_C=7\n"), store, said)
    assert {"# CONFIG_A is not set", "CONFIG_B=y", "CONFIG_C=7", "CONFIG_DEBUG_INFO_BTF=y"} <= set(_config(kernel))
    assert kernel.release == "6.9.0-arm64"
    assert (kernel.source["config"], kernel.source["fragments"]) == ("defconfig", ["f0", "f1"])
    assert Path(kernel.source["log"]).is_file()
    assert any("building" in line for line in said)
    assert sorted(path.name for path in tree.iterdir()) == ["Kbuild", "Makefile"]  # the tree is not written to


def test_built_once_for_a_state_of_the_tree_and_its_configuration(tree: Path, store: Store) -> None:
    first = _provide(_spec(tree, "CONFIG_C=1\n"), store)
    assert _provide(_spec(tree, "CONFIG_C=1\n"), store) == first
    assert _builds(tree) == 1
    assert _provide(_spec(tree, "CONFIG_C=2\n"), store).vmlinuz_sha256 != first.vmlinuz_sha256
    (tree / "new.c").write_text("int x;")
    _provide(_spec(tree, "CONFIG_C=1\n"), store)
    assert _builds(tree) == 3


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_with_git_the_commit_and_what_is_not_committed_count(tree: Path, store: Store) -> None:
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert _provide(_spec(tree), store).source["state"] == head
    os.utime(tree / "Kbuild", (1, 1))
    _provide(_spec(tree), store)
    assert _builds(tree) == 1  # git sees no change
    (tree / "Kbuild").write_text("obj-y += x.o\n")
    assert _provide(_spec(tree), store).source["state"].startswith(f"{head}+")
    assert _builds(tree) == 2


def test_a_configuration_file_as_base(tree: Path, store: Store) -> None:
    base = tree.parent / "base"
    base.write_text("CONFIG_B=m\n")
    kernel = _provide(_spec(tree, config=base), store)
    assert "CONFIG_B=m" in _config(kernel)
    base.write_text("CONFIG_B=y\n")
    assert "CONFIG_B=y" in _config(_provide(_spec(tree, config=base), store))


def test_a_switch_that_the_tree_does_not_take_is_refused(tree: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="does not take CONFIG_UNKNOWN=y"):
        _provide(_spec(tree, "CONFIG_UNKNOWN=y\n"), store)
    # ... but one that is to be off may be missing.
    assert _provide(_spec(tree, "# CONFIG_UNKNOWN is not set\n"), store).release


def test_a_build_that_fails_shows_the_end_of_its_log(tree: Path, store: Store) -> None:
    (tree / "broken").write_text("")
    with pytest.raises(InfrastructureError, match="it is broken") as caught:
        _provide(_spec(tree), store)
    assert "corematrix-build.log" in str(caught.value.remedy)
    (tree / "broken").unlink()
    assert _provide(_spec(tree), store).release


def test_offline_nothing_is_built(tree: Path, store: Store) -> None:
    offline = AptOptions(offline=True)
    with pytest.raises(FetchError, match="not built yet"):
        provide(_spec(tree), store, None, lambda _line: None, options=offline)
    made = _provide(_spec(tree), store)
    assert provide(_spec(tree), store, None, lambda _line: None, options=offline) == made


def test_a_new_variant_starts_from_the_nearest_one_built(tree: Path, store: Store) -> None:
    def variant(identity: str, *fragments: str) -> tuple[list[str], Path]:
        said: list[str] = []
        kernel = _provide(replace(_spec(tree, *fragments), id=identity), store, said)
        return said, Path(kernel.source["log"]).parent

    said, plain = variant("plain", "CONFIG_B=y\n", "CONFIG_C=1\n")
    assert not [line for line in said if "starting from" in line]
    (plain / "object.o").write_text("of plain")
    os.utime(plain / "object.o", (1, 1))
    _, other = variant("other", "# CONFIG_B is not set\n", "# CONFIG_C is not set\n")
    (other / "object.o").write_text("of other")
    said, third = variant("third", "CONFIG_B=y\n", "CONFIG_C=1\n", "CONFIG_D=1\n")
    assert "third: starting from what was built of plain" in said
    # With its time, by which make goes; and the configuration is its own.
    assert ((third / "object.o").read_text(), (third / "object.o").stat().st_mtime) == ("of plain", 1)
    assert "CONFIG_D=1" in (third / ".config").read_text().splitlines()
    assert "CONFIG_D=1" not in (plain / ".config").read_text()
    # One that was begun goes on where it is.
    (third / "object.o").write_text("of third")
    variant("third", "# CONFIG_B is not set\n", "# CONFIG_C is not set\n")
    assert (third / "object.o").read_text() == "of third"
    assert not list(store.root.glob("build/.*"))


def test_another_tree_or_an_unfinished_build_is_nothing_to_start_from(tree: Path, store: Store) -> None:
    _provide(replace(_spec(tree), id="arm"), store)
    said: list[str] = []
    elsewhere = shutil.copytree(tree, tree.parent / "elsewhere")
    _provide(replace(_spec(elsewhere), id="of-another-tree"), store, said)
    (tree / "broken").write_text("")
    (image,) = store.root.glob("build/arm-*/arch/arm64/boot/Image")
    image.unlink()
    for identity in ("fails", "fails-too"):
        with pytest.raises(InfrastructureError):
            _provide(replace(_spec(tree), id=identity), store, said)
    assert not [line for line in said if "starting from" in line]


def test_what_is_no_tree_is_refused(tmp_path: Path, store: Store) -> None:
    with pytest.raises(UsageError, match="not a kernel tree"):
        _provide(_spec(tmp_path), store)


def test_shipped_fragments_are_settings_and_comments() -> None:
    paths = sorted(fragments_directory().glob("*.config"))
    assert {"no-task-io-accounting", "no-cgroup-pids", "no-bpf-jit", "preempt-rt", "no-module-btf", "ikconfig",
            "arm64-64k-pages"} <= {path.stem for path in paths}  # fmt: skip
    for path in paths:
        lines = path.read_text().splitlines()
        assert lines[0].startswith("# "), f"{path}: says what it is for"
        assert any(line.startswith("CONFIG_") or line.endswith(" is not set") for line in lines)


@pytest.mark.ondemand
@pytest.mark.skipif(platform.machine() != "x86_64", reason="builds for x86_64")
def test_a_real_tree(store: Store) -> None:
    """COREMATRIX_LINUX names a clean tree; two variants of it, half an hour each on a small machine."""
    named = os.environ.get("COREMATRIX_LINUX")
    if named is None:
        pytest.skip("COREMATRIX_LINUX names no kernel tree")
    shipped = fragments_directory()
    source = TreeSource(
        tree=Path(named), config="tinyconfig", fragments=(shipped / "guest.config",), btf_fragment=BTF
    )
    spec = KernelSpec(id="tiny", arch=ARCHITECTURES["x86_64"], variant="own", source=source)
    kernel = _provide(spec, store)
    assert kernel.btf is not None
    assert "CONFIG_TASK_IO_ACCOUNTING=y" in _config(kernel)
    without = replace(source, fragments=(*source.fragments, shipped / "no-task-io-accounting.config"))
    other = _provide(replace(spec, id="tiny-no-ioac", source=without), store)
    assert "# CONFIG_TASK_IO_ACCOUNTING is not set" in _config(other)
    assert identify.release(other.vmlinuz.read_bytes(), b"") == kernel.release  # type: ignore[union-attr]
