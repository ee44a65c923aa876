"""Finding objects and their expectations. What is wrong inside a file is in test_cli.py and the guest's tests."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from harness import objects
from harness.config import load_yaml
from harness.errors import ConfigError, UsageError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def build(tmp_path: Path) -> Path:
    directory = tmp_path / "my programs" / "build"
    (directory / "net").mkdir(parents=True)
    for name in ("b.bpf.o", "a.x86_64.bpf.o", "a.arm64.bpf.o", "net/tcp.v2.bpf.o", "not-an-object.o"):
        (directory / name).write_bytes(name.encode())
    return directory


def test_a_directory_gives_every_object_below_it(build: Path) -> None:
    found = objects.find_objects([build])
    assert [(item.name, item.arch) for item in found] == [
        ("a", "arm64"), ("a", "x86_64"), ("b", None), ("net/tcp.v2", None),
    ]  # fmt: skip
    assert found[2].sha256 == hashlib.sha256(b"b.bpf.o").hexdigest()
    assert found[2].size == len("b.bpf.o")


def test_files_are_named_by_themselves_with_any_suffix(build: Path) -> None:
    found = objects.find_objects([build / "net" / "tcp.v2.bpf.o", build / "not-an-object.o"])
    assert [item.name for item in found] == ["tcp.v2", "not-an-object"]


def test_expectations_lie_beside_the_object_or_beside_build(build: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (build.parent / "a.yaml").write_text("arches: [x86_64]\n")
    (build / "b.yaml").write_text("settings: [{x: 1}]\n")
    (build.parent / "b.yaml").write_text("arches: [arm64]\n")
    found = objects.find_expectations(objects.find_objects([build]), load_yaml)
    assert set(found) == {"a", "b"}
    assert found["a"].arches == ("x86_64",)
    assert found["b"].settings == ((("x", "1"),),)
    monkeypatch.chdir(build)
    beside = objects.find_objects([Path("b.bpf.o"), Path("a.arm64.bpf.o")])
    assert set(objects.find_expectations(beside, load_yaml)) == {
        "a", "b",
    }  # fmt: skip


def test_a_broken_expectation_stops_everything(build: Path) -> None:
    (build / "b.yaml").write_text("rules:\n  - verdct: loaded\n")
    with pytest.raises(ConfigError, match=r"b\.yaml: rules\[0\]\.verdct"):
        objects.find_expectations(objects.find_objects([build]), load_yaml)


def compiled(name: str) -> Path:
    path = ROOT / "programs" / "build" / f"{name}.bpf.o"
    if not path.is_file():
        pytest.skip("programs/ is not built (make -C programs)")
    return path


def test_the_programs_of_this_repository_open() -> None:
    compiled("task_state")
    found = objects.find_objects([ROOT / "programs" / "build"])
    objects.check_objects(found, {"little"})
    assert {"task_state", "fancy_helper", "thread_fsbase"} <= {item.name for item in found}


def test_code_of_the_other_byte_order_is_refused() -> None:
    found = objects.find_objects([compiled("task_state")])
    with pytest.raises(UsageError, match="little-endian, big-endian expected"):
        objects.check_objects(found, {"big"})


@pytest.mark.parametrize("keep", [100, 1000, -64, -1])
def test_truncated_objects_are_refused(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.bpf.o"
    path.write_bytes(compiled("task_state").read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"cut\.bpf\.o"):
        objects.check_objects(objects.find_objects([path]), {"little"})


def test_variables_of_rodata_are_known_before_any_boot() -> None:
    path = compiled("fancy_helper")
    with path.open("rb") as file:
        elf = ELFFile(file)
        rodata = elf.get_section_index(".rodata")
        symbols = elf.get_section_by_name(".symtab").iter_symbols()
        expected = {item.name for item in symbols if item["st_shndx"] == rodata and item.name}
    (fancy,) = objects.find_objects([path])
    assert "use_fancy_helper" in expected
    assert objects.rodata_variables(fancy) == expected
