"""Objects under test: found below what the command line names, opened once on this machine before anything boots."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from harness.errors import UsageError
from harness.guest.bpf_object import BpfObject
from harness.guest.elf import STT_OBJECT, Elf
from harness.guest.errors import MalformedElf, NotBpf, NotElf, ObjectError, WrongEndian
from harness.model.arch import ARCHITECTURES
from harness.model.bpf_object import ObjectFile
from harness.model.expectation import Expectations, expectations_from

SUFFIX = ".bpf.o"
# Faults of the file itself. What libbpf refuses although the file is sound (legacy maps, ...) is a finding, for the
# guest.
_BROKEN_FILE = (NotElf, NotBpf, WrongEndian, MalformedElf)


def find_objects(paths: Iterable[Path]) -> tuple[ObjectFile, ...]:
    """The objects named: files as they are, directories with every `*.bpf.o` below them, in order.

    UsageError for a path that does not exist, cannot be read, or is a directory without objects.
    """
    return tuple(found for path in paths for found in _below(path))


def _below(path: Path) -> Iterator[ObjectFile]:
    if not path.is_dir():
        yield _object_file(path, path.name)
        return
    files = sorted(path.rglob(f"*{SUFFIX}"))
    if not files:
        message = f"{path}: no {SUFFIX} file in this directory"
        raise UsageError(message, remedy="compile the objects first (make -C programs), or name the files")
    for file in files:
        yield _object_file(file, str(file.relative_to(path)))


def _object_file(path: Path, relative: str) -> ObjectFile:
    stem = relative.removesuffix(SUFFIX).removesuffix(".o")
    name, _, last = stem.rpartition(".")
    arch = last if name and last in ARCHITECTURES else None
    digest, size, byteorder = hashlib.sha256(), 0, "little"
    try:
        with path.open("rb") as file:
            # e_ident[EI_DATA]: ELFDATA2MSB is 2
            byteorder = "big" if file.read(6)[5:] == b"\2" else "little"
            file.seek(0)
            while block := file.read(1 << 20):
                digest.update(block)
                size += len(block)
    except OSError as error:
        message = f"{path}: cannot read this object: {error.strerror}"
        raise UsageError(message) from error
    return ObjectFile(
        name=name if arch else stem, path=path, sha256=digest.hexdigest(), size=size, arch=arch,
        byteorder=byteorder,
    )  # fmt: skip


def check_objects(objects: Sequence[ObjectFile], byteorders: Iterable[str]) -> None:
    """Open each as the guest will. UsageError when one is no ELF, no BPF object, or truncated, or when all are of a
    byte order that no kernel has.
    """
    orders = set(byteorders)
    order = orders.pop() if len(orders) == 1 and orders.isdisjoint(file.byteorder for file in objects) else None
    for candidate in objects:
        try:
            BpfObject(candidate.path.read_bytes(), str(candidate.path), order)
        except _BROKEN_FILE as error:
            raise UsageError(error.message, remedy="compile it with `clang --target=bpf -g -O2 -c`") from error
        except ObjectError:
            pass


def programs(candidate: ObjectFile) -> tuple[str, ...]:
    """Names of the entry programs; none for an object that libbpf would not open either."""
    try:
        obj = BpfObject(candidate.path.read_bytes(), str(candidate.path), None)
    except ObjectError:
        return ()
    return tuple(prog.name for prog in obj.entry_progs)


def rodata_variables(candidate: ObjectFile) -> frozenset[str]:
    """Names of the variables in .rodata and .rodata.*, by the symbol table: what `--set` can change."""
    elf = Elf(candidate.path.read_bytes(), str(candidate.path))
    rodata = {section.index for section in elf.sections if section.name.split(".")[:2] == ["", "rodata"]}
    return frozenset(symbol.name for symbol in elf.symbols if symbol.type == STT_OBJECT and symbol.shndx in rodata)


def find_expectations(objects: Iterable[ObjectFile], load: Callable[[Path], object]) -> dict[str, Expectations]:
    """By object name: what `NAME.yaml` beside the object says, or, for an object in a `build` directory, beside that.

    `load` reads a YAML file (`harness.config.load_yaml`). Names without a file are left out. ConfigError.
    """
    found: dict[str, Expectations] = {}
    for candidate in objects:
        path = next((path for path in _expectation_paths(candidate) if path.is_file()), None)
        if path is not None:
            data = load(path)
            found[candidate.name] = expectations_from(data, str(path))  # type: ignore[arg-type]  # it checks the shape
    return found


def _expectation_paths(candidate: ObjectFile) -> Iterator[Path]:
    directory = candidate.path.parent
    file = f"{candidate.name.rpartition('/')[2]}.yaml"
    yield directory / file
    if directory.name == "build":
        yield directory.parent / file
    elif not directory.name and directory.absolute().name == "build":
        yield Path("..") / file
