"""What reports may look up about a run's kernels, in the cache and in trees: BTF, configurations, source."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from harness.guest import btf
from harness.guest.btf import Btf
from harness.kernels import function_source, tree_source
from harness.kernels.struct_source import Condition, StructSource
from harness.model.result import KernelResult
from harness.report.config_suspects import Place, Sources
from harness.report.field_path import Member
from harness.store import Store


def sources(store: Store) -> Sources:
    """The cache's contents by hash, and the trees that kernels were built from, where they still are."""

    @cache
    def btf_of(sha256: str) -> Btf | None:
        file = store.blob(sha256)
        return btf.load(str(file)) if file is not None else None

    @cache
    def config_of(sha256: str) -> str | None:
        file = store.blob(sha256)
        return file.read_text(encoding="utf-8", errors="replace") if file is not None else None

    return Sources(btf_of=btf_of, config_of=config_of, readable=_readable, places_of=_places_of)


def _readable(kernel: KernelResult) -> bool:
    tree = kernel.source.get("tree")
    return kernel.source.get("kind") == "tree" and isinstance(tree, str) and Path(tree, "Kbuild").is_file()


def _places_of(kernel: KernelResult, members: Collection[Member]) -> Mapping[Member, Sequence[Place]]:
    found: dict[tuple[str, str], tuple[Condition, ...]] = {}
    tree = kernel.source["tree"]
    with suppress(OSError):  # a tree that is being changed; the other evidence stands
        found |= {member: function_source.conditions(Path(tree), member.name) for member in members if not member.type}
        types = [member for member in members if member.type]
        found |= _structs(tree, tree_source.directory_of(kernel.arch)).conditions(types) if types else {}
    return {
        Member(*item): [Place(option=each.option, text=f"{each.file}:{each.line}") for each in conditions]
        for item, conditions in found.items()
    }


@cache
def _structs(tree: str, arch: str) -> StructSource:
    return StructSource(tree=Path(tree), arch=arch)
