"""YAML files -> model objects: kernels.yaml here, and the file beside an object for `harness.judge`. The one home of
yaml.

Whatever is wrong in a file is a ConfigError before anything runs: unknown and repeated keys, bad globs, two kernels
of one identity.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from harness.errors import ConfigError, UsageError
from harness.machine_config import machine_row, names_machine
from harness.matrix import check_glob
from harness.model.arch import ARCHITECTURES
from harness.model.kernel import KernelSource, KernelSpec
from harness.model.lock import Lock
from harness.model.sources import AptRepository, AptSource, GuestPackages
from harness.source_config import btf_source, kernel_source
from harness.yaml_node import Node

MATRIX_FILE = "kernels.yaml"
# What an identity may hold: it becomes file names, selectors and the first part of a cell's name.
_IDENTITY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_KERNEL_KEYS = (
    "id", "arch", "variant", "suites", "package", "source", "btf", "tags", "cpu", "memory_mb", "kernel_args",
    "backend", "root",
)  # fmt: skip
_GUEST_BACKENDS = ("qemu", "virtme-ng")
_GUEST_KEYS = ("suites", "packages")
_REPOSITORY_KEYS = ("uri", "keyring", "components", "suites")
_SCHEMES = ("http://", "https://", "file:///")
# Below this a Debian kernel with its initramfs does not start; QEMU would only say that it hangs.
_LEAST_MEMORY_MB = 96


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A kernels.yaml: its kernels in order, the guest's packages, cells to leave out, and the lock file beside it."""

    file: str
    kernels: tuple[KernelSpec, ...]
    guest: GuestPackages
    exclude: tuple[str, ...] = ()
    lock: Lock | None = None


def matrix_path(given: Path | None) -> Path:
    """The matrix to use: the one given, ./kernels.yaml, or the one that is built in."""
    if given is not None:
        return given
    own = Path(MATRIX_FILE)
    return own if own.is_file() else builtin_matrix()


def builtin_matrix() -> Path:
    """The matrix that comes with the package; in a source tree it is the repository's own."""
    inside = Path(__file__).with_name(MATRIX_FILE)
    return inside if inside.is_file() else Path(__file__).parents[1] / MATRIX_FILE


def lock_path(matrix: Path) -> Path:
    """Where the lock of a matrix lies: beside it."""
    return matrix.with_suffix(".lock")


def load_matrix(given: Path | None = None) -> Matrix:
    """Read the matrix and its lock. ConfigError names the file and the path to whatever is wrong."""
    path = matrix_path(given)
    return matrix_from(load_yaml(path), str(path), lock=_load_lock(lock_path(path)))


def matrix_from(data: Any, file: str, *, lock: Lock | None = None) -> Matrix:
    """The same from what YAML gave."""
    top = Node(value=data, file=file).mapping(
        ("repositories", "guest", "kernels", "exclude"), required=("repositories", "guest", "kernels")
    )
    repositories = tuple(_repository(name, node) for name, node in top["repositories"].named().items())
    kernels: dict[str, KernelSpec] = {}
    for node in top["kernels"].sequence():
        kernel = machine_row(node, _identity) if names_machine(node) else _kernel(node, repositories)
        if kernel.id in kernels:
            node.fail(f"two kernels have the identity {kernel.id!r}", remedy="every id must be one of a kind")
        kernels[kernel.id] = kernel
    exclude = tuple(_glob(node) for node in top["exclude"].sequence()) if "exclude" in top else ()
    return Matrix(
        file=file, kernels=tuple(kernels.values()), guest=_guest(top["guest"], repositories), exclude=exclude, lock=lock
    )


def _repository(name: str, node: Node) -> AptRepository:
    entries = node.mapping(_REPOSITORY_KEYS, required=("uri", "keyring", "suites"))
    uri = entries["uri"].text()
    if not uri.startswith(_SCHEMES):
        entries["uri"].fail(f"{uri!r} is none of http://, https:// and file:///")
    components = entries["components"].texts() if "components" in entries else ("main",)
    return AptRepository(
        name=name, uri=uri.rstrip("/"), keyring=entries["keyring"].text(), components=components,
        suites=entries["suites"].texts(),
    )  # fmt: skip


def _guest(node: Node, repositories: tuple[AptRepository, ...]) -> GuestPackages:
    entries = node.mapping((*_GUEST_KEYS, "arches"), required=_GUEST_KEYS)
    arches = {}
    for name, other in entries["arches"].named().items() if "arches" in entries else ():
        replace(other, value=name).choice(ARCHITECTURES)
        arches[name] = _guest_packages(other.mapping(_GUEST_KEYS, required=_GUEST_KEYS), repositories)
    return replace(_guest_packages(entries, repositories), arches=arches)


def _guest_packages(entries: Mapping[str, Node], repositories: tuple[AptRepository, ...]) -> GuestPackages:
    return GuestPackages(
        repositories=repositories, suites=_suites(entries, repositories), packages=entries["packages"].texts()
    )


def _kernel(node: Node, repositories: tuple[AptRepository, ...]) -> KernelSpec:
    elsewhere = isinstance(node.value, dict) and "source" in node.value
    entries = node.mapping(
        _KERNEL_KEYS, required=("id", "arch", "variant", *(() if elsewhere else ("suites", "package")))
    )
    return KernelSpec(
        id=_identity(entries["id"]),
        arch=ARCHITECTURES[entries["arch"].choice(ARCHITECTURES)],
        variant=entries["variant"].text(),
        source=_source(entries, repositories),
        tags=frozenset(entries["tags"].texts()) if "tags" in entries else frozenset(),
        cpu=entries["cpu"].text() if "cpu" in entries else None,
        memory_mb=entries["memory_mb"].integer(least=_LEAST_MEMORY_MB) if "memory_mb" in entries else 256,
        kernel_args=entries["kernel_args"].texts() if "kernel_args" in entries else (),
        backend=entries["backend"].choice(_GUEST_BACKENDS) if "backend" in entries else "qemu",
        btf=btf_source(entries["btf"]) if "btf" in entries else None,
        root=_root(entries) if "root" in entries else None,
    )


def _root(entries: Mapping[str, Node]) -> Path:
    """The root file system of a virtme-ng guest; relative to the directory of kernels.yaml."""
    node = entries["root"]
    if "backend" not in entries or entries["backend"].text() != "virtme-ng":
        node.fail("goes with `backend: virtme-ng` only")
    return (Path(node.file).parent / Path(node.text()).expanduser()).absolute()


def _identity(node: Node) -> str:
    if not _IDENTITY.fullmatch(node.text()):
        node.fail(f"{node.text()!r} cannot be an identity", remedy="letters, digits and . _ + - only")
    return node.text()


def _source(entries: Mapping[str, Node], repositories: tuple[AptRepository, ...]) -> KernelSource:
    """An apt package by `suites` and `package`, or what `source` says."""
    if "source" not in entries:
        return AptSource(
            repositories=repositories, suites=_suites(entries, repositories), package=_glob(entries["package"])
        )
    for key in ("suites", "package"):
        if key in entries:
            entries[key].fail("does not go with `source`")
    return kernel_source(entries["source"])


def _suites(entries: Mapping[str, Node], repositories: tuple[AptRepository, ...]) -> tuple[str, ...]:
    served = {suite for repository in repositories for suite in repository.suites}
    node = entries["suites"]
    if isinstance(node.value, str):
        return (node.choice(served),)
    return tuple(item.choice(served) for item in node.sequence())


def _glob(node: Node) -> str:
    glob = node.text()
    try:
        check_glob(glob)
    except UsageError as error:
        node.fail(error.message, remedy=error.remedy)
    return glob


def _load_lock(path: Path) -> Lock | None:
    try:
        return Lock.from_json(path.read_bytes(), str(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise ConfigError(message) from error


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with the same key twice (YAML 1.2, section 3.2.1.3: keys are unique)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            name = getattr(key, "value", None)
            if isinstance(name, str) and name in seen:
                problem = f"key {name!r} stands here twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(str(name))
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """What a YAML file holds. ConfigError with file, line and column when it cannot be read or is not YAML."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise ConfigError(message) from error
    except UnicodeDecodeError as error:
        message = f"{path}: not UTF-8: {error.reason} at byte {error.start}"
        raise ConfigError(message) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, file: str) -> Any:
    """The same from text; `file` is what messages call it."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        message = f"{file}{place}: {error.problem or error.context or 'not YAML'}"
        raise ConfigError(message) from error
    except (yaml.YAMLError, RecursionError) as error:
        message = f"{file}: not YAML: {error}"
        raise ConfigError(message) from error
