"""BTF from elsewhere: found where it is, held against the kernel, refused when it is another's."""

from __future__ import annotations

import gzip
import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.kernels import btf_check, external_btf, provide
from harness.kernels.vmlinux import elf_section
from harness.model.arch import ARCHITECTURES
from harness.model.kernel import Kernel, KernelSpec
from harness.model.sources import BtfSource, DwarfBtf, FileBtf, PathSource, TreeBtf
from harness.store import Store
from tests.support.clang import CLANG
from tests.support.elf_modules import bzimage_of, elf_of

RELEASE = "4.19.48-test"
TYPES = "struct task_struct { long state; int pid; %s }; struct list { struct list *next; };"
USE = "struct task_struct *a; struct list *b; int f(void) { return a->pid; }"


def btf_made_of(directory: Path, more: str = "", *, target: str = "bpf") -> bytes:
    """BTF of real C declarations, by clang."""
    source, out = directory / "types.c", directory / "types.o"
    source.write_text(TYPES % more + USE)
    subprocess.run([CLANG, f"--target={target}", "-g", "-O2", "-c", source, "-o", out], check=True)
    section = elf_section(out.read_bytes(), ".BTF")
    assert section is not None
    return section


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "cache") as made:
        yield made


def kernel_with(own: bytes | None, tmp_path: Path, store: Store, btf: BtfSource | None = None) -> Kernel:
    """A kernel whose vmlinux has this BTF, or none."""
    text = {".text": f"Linux version {RELEASE} (me@here)\0".encode()}
    vmlinuz = tmp_path / "vmlinuz"
    vmlinuz.write_bytes(bzimage_of(gzip.compress(elf_of(text if own is None else {**text, ".BTF": own}))))
    source = PathSource(vmlinuz=vmlinuz)
    spec = KernelSpec(id="mine", arch=ARCHITECTURES["x86_64"], variant="own", source=source, btf=btf)
    return provide(spec, store, None, lambda _line: None)


def packed(data: bytes, name: str = "some.btf") -> bytes:
    """One file in a .tar.xz, as BTFHub has them."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:xz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def test_a_file_takes_the_place_of_the_kernels_own(tmp_path: Path, store: Store) -> None:
    data = btf_made_of(tmp_path)
    file = tmp_path / "mine.btf"
    file.write_bytes(data)
    kernel = kernel_with(data, tmp_path, store, FileBtf(file=file))
    assert kernel.btf_external
    assert kernel.btf is not None
    assert kernel.btf.read_bytes() == data
    assert kernel.source["btf"]["verified"]
    assert external_btf.note(replace(kernel, btf_external=False), {}) is None


def test_without_anything_to_compare_it_is_unverified(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "mine.btf"
    file.write_bytes(btf_made_of(tmp_path))
    kernel = kernel_with(None, tmp_path, store, FileBtf(file=file))
    assert not kernel.source["btf"]["verified"]
    note = external_btf.note(kernel, {"kallsyms": None})
    assert note is not None
    assert "unverified: nothing to compare it with" in note


def test_the_symbol_table_proves_it_or_refuses_it(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "mine.btf"
    file.write_bytes(btf_made_of(tmp_path))
    kernel = kernel_with(None, tmp_path, store, FileBtf(file=file))
    assert ": verified: all its 1000" in str(external_btf.note(kernel, {"kallsyms": {"functions": 1000, "missing": 0}}))
    doubtful = external_btf.note(kernel, {"kallsyms": {"functions": 1000, "missing": 5}})
    assert ": unverified: 5 of its 1000 functions" in str(doubtful)
    with pytest.raises(UsageError, match="of another kernel: 6 of its 1000 functions"):
        external_btf.note(kernel, {"kallsyms": {"functions": 1000, "missing": 6}})


def test_other_layouts_than_the_kernels_own_are_refused(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "mine.btf"
    file.write_bytes(btf_made_of(tmp_path, "int more;"))
    with pytest.raises(UsageError, match=r"1 of 2 structures .* \(task_struct\)"):
        kernel_with(btf_made_of(tmp_path), tmp_path, store, FileBtf(file=file))


def test_the_same_types_made_otherwise_agree(tmp_path: Path, store: Store) -> None:
    """More types and other ids, the layouts the same: by names, not by bytes."""
    file = tmp_path / "mine.btf"
    file.write_bytes(btf_made_of(tmp_path, "};  enum extra { ONE }; union other { enum extra e; } *c; struct spare {"))
    kernel = kernel_with(btf_made_of(tmp_path), tmp_path, store, FileBtf(file=file))
    assert kernel.source["btf"]["findings"] == ["2 structures are laid out as in the kernel's own BTF"]


def test_another_release_in_the_files_name_is_refused(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "4.19.90-24.4.x86_64.btf.tar.xz"
    file.write_bytes(packed(btf_made_of(tmp_path)))
    with pytest.raises(UsageError, match=rf"BTF of 4\.19\.90-24\.4\.x86_64, the kernel is {RELEASE}"):
        kernel_with(None, tmp_path, store, FileBtf(file=file))


def test_another_byte_order_and_nonsense_are_refused(tmp_path: Path, store: Store) -> None:
    file = tmp_path / "mine.btf"
    file.write_bytes(btf_made_of(tmp_path, target="bpfeb"))
    with pytest.raises(UsageError, match="big-endian BTF for a little-endian kernel"):
        kernel_with(None, tmp_path, store, FileBtf(file=file))
    file.write_bytes(b"nonsense" * 9)
    with pytest.raises(UsageError, match="invalid magic"):
        kernel_with(None, tmp_path, store, FileBtf(file=file))
    file.write_bytes(packed(b"x")[:-20])
    with pytest.raises(UsageError, match="not a readable archive"):
        kernel_with(None, tmp_path, store, FileBtf(file=file))


def test_a_tree_is_searched_by_release_and_architecture(tmp_path: Path, store: Store) -> None:
    data = btf_made_of(tmp_path)
    tree = tmp_path / "tree"
    for place in ("ubuntu/18.04/x86_64", "ubuntu/18.04/arm64"):
        (tree / place).mkdir(parents=True)
        (tree / place / f"{RELEASE}.btf.tar.xz").write_bytes(packed(data))
    kernel = kernel_with(None, tmp_path, store, TreeBtf(tree=tree))
    assert kernel.source["btf"]["name"] == str(tree / f"ubuntu/18.04/x86_64/{RELEASE}.btf.tar.xz")
    assert kernel.source["btf"]["findings"] == [f"its name says {RELEASE}"]
    assert not kernel.source["btf"]["verified"]
    (tree / "debian/9/x86_64").mkdir(parents=True)
    (tree / f"debian/9/x86_64/{RELEASE}.btf.tar.xz").write_bytes(packed(data))
    with pytest.raises(UsageError, match="several BTF of"):
        kernel_with(None, tmp_path, store, TreeBtf(tree=tree))
    assert kernel_with(None, tmp_path, store, TreeBtf(tree=tree, distro="debian")).btf_external
    with pytest.raises(UsageError, match="no BTF of"):
        kernel_with(None, tmp_path, store, TreeBtf(tree=tree, version="20.04"))


def test_the_shared_tree_holds_kernels_of_4_19(shared: Path, tmp_path: Path) -> None:
    """The real BTFHub layout: each file opens, and none is taken for another."""
    files = sorted((shared / "btf").glob("kylin/V10/aarch64/*.btf.tar.xz"))
    if len(files) < 2:
        pytest.skip("no BTF of several kernels in the shared material")
    opened = [
        btf_check.open_btf(external_btf._raw_btf(path.read_bytes(), str(path)), path.name, "little")
        for path in files[:2]
    ]
    assert btf_check.by_own_btf(opened[0], opened[0]).proves
    with pytest.raises(UsageError, match="task_struct"):
        btf_check.by_own_btf(opened[0], opened[1])


@pytest.mark.skipif(shutil.which("pahole") is None, reason="pahole is not installed")
@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_pahole_makes_it_from_dwarf(tmp_path: Path, store: Store) -> None:
    source, debug = tmp_path / "v.c", tmp_path / "vmlinux"
    source.write_text(TYPES % "" + USE + "int main(void) { return f(); }")
    subprocess.run(["cc", "-g", "-gdwarf-4", "-O1", "-Wl,--build-id=none", "-o", debug, source], check=True)
    said: list[str] = []
    kernel = kernel_with(btf_made_of(tmp_path), tmp_path, store, DwarfBtf(dwarf=debug))
    assert kernel.source["btf"]["findings"] == ["2 structures are laid out as in the kernel's own BTF"]
    assert external_btf.attach(kernel, DwarfBtf(dwarf=debug), store, said.append).btf_sha256 == kernel.btf_sha256
    assert said == []  # made once
    source.write_text(TYPES % "int more;" + USE + "int main(void) { return f(); }")
    subprocess.run(["cc", "-g", "-gdwarf-4", "-O1", "-Wl,--build-id=none", "-o", debug, source], check=True)
    with pytest.raises(UsageError, match="task_struct"):
        kernel_with(btf_made_of(tmp_path), tmp_path, store, DwarfBtf(dwarf=debug))


def test_a_build_id_that_differs_is_refused() -> None:
    assert btf_check.by_build_id("aa", None, "x") is None
    assert btf_check.by_build_id("aa", "aa", "x") is not None
    with pytest.raises(UsageError, match="build aa, the kernel is build bb"):
        btf_check.by_build_id("aa", "bb", "x")
