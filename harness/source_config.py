"""`source:` and `btf:` of a kernel in kernels.yaml -> `harness.model.sources`; docs/kernels.md has the keys.

Relative paths count from the directory of kernels.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from harness.model.kernel import KernelSource
from harness.model.sources import (
    BtfSource,
    DwarfBtf,
    FileBtf,
    MainlineSource,
    PathSource,
    RemoteBtf,
    RemoteFile,
    TreeBtf,
    TreeSource,
    UrlSource,
)  # fmt: skip
from harness.yaml_node import Node

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAINLINE = re.compile(r"v\d+\.\d+(?:\.\d+)?(?:-rc\d+)?")
_TARGET = re.compile(r"[a-z0-9_+.-]*config")
_BTF_KINDS = ("file", "tree", "dwarf", "url")
FRAGMENTS = "kernels.d"


def kernel_source(node: Node) -> KernelSource:
    """What `source:` says; its `kind` chooses the other keys. ConfigError."""
    kinds: Mapping[str, Callable[[Node], KernelSource]] = {
        "path": _path_source, "url": _url_source, "tree": _tree_source, "mainline": _mainline_source,
    }  # fmt: skip
    if not isinstance(node.value, dict) or "kind" not in node.value:
        node.fail("`kind` is required", remedy=f"one of {', '.join(kinds)}")
    kind = node.named()["kind"].choice(kinds)
    return kinds[kind](node)


def btf_source(node: Node) -> BtfSource:
    """What `btf:` says: a file's path, or a mapping with exactly one of `file`, `tree`, `dwarf`, `url`. ConfigError."""
    if isinstance(node.value, str):
        return FileBtf(file=_path(node))
    entries = node.mapping(("file", "tree", "distro", "version", "dwarf", "url", "sha256"))
    kinds = [kind for kind in _BTF_KINDS if kind in entries]
    if len(kinds) != 1:
        node.fail(f"exactly one of {', '.join(_BTF_KINDS)} is needed")
    makers: Mapping[str, Callable[[Mapping[str, Node]], BtfSource]] = {
        "file": lambda found: FileBtf(file=_path(found["file"])),
        "dwarf": lambda found: DwarfBtf(dwarf=_path(found["dwarf"])),
        "tree": _tree_btf,
        "url": lambda _found: RemoteBtf(remote=remote_file(node)),
    }
    further = {"tree": {"distro", "version"}, "url": {"sha256"}}.get(kinds[0], set())
    for key in entries.keys() - {kinds[0]} - further:
        entries[key].fail(f"does not go with `{kinds[0]}`")
    return makers[kinds[0]](entries)


def remote_file(node: Node) -> RemoteFile:
    """`url` and the `sha256` it must have. ConfigError."""
    entries = node.mapping(("url", "sha256"), required=("url", "sha256"))
    url, sha256 = entries["url"].text(), entries["sha256"].text().lower()
    if urlsplit(url).scheme not in ("http", "https", "file"):
        entries["url"].fail(f"{url!r} is none of http://, https:// and file:///")
    if not _SHA256.fullmatch(sha256):
        entries["sha256"].fail("not a SHA-256: 64 hexadecimal digits")
    return RemoteFile(url=url, sha256=sha256)


def _path_source(node: Node) -> PathSource:
    entries = node.mapping(("kind", "vmlinuz", "config", "modules", "packages"))
    _either(node, entries)
    paths = {key: _path(entries[key]) for key in ("vmlinuz", "config", "modules") if key in entries}
    return PathSource(packages=_paths(entries.get("packages")), **paths)


def _url_source(node: Node) -> UrlSource:
    entries = node.mapping(("kind", "vmlinuz", "config", "packages"))
    _either(node, entries)
    files = {key: remote_file(entries[key]) for key in ("vmlinuz", "config") if key in entries}
    packages = tuple(remote_file(item) for item in entries["packages"].sequence()) if "packages" in entries else ()
    return UrlSource(packages=packages, **files)


def _either(node: Node, entries: Mapping[str, Node]) -> None:
    """A kernel is a vmlinuz with what belongs to it, or packages that hold all of it."""
    if ("packages" in entries) == ("vmlinuz" in entries):
        node.fail("either `vmlinuz` or `packages` is needed, and not both")
    if "packages" in entries:
        for key in ("config", "modules"):
            if key in entries:
                entries[key].fail("comes out of `packages`")


def _mainline_source(node: Node) -> MainlineSource:
    version = node.mapping(("kind", "version"), required=("version",))["version"]
    if not _MAINLINE.fullmatch(version.text()):
        version.fail("a version as vng takes it is wanted: v6.12, v6.12.3, v6.13-rc2")
    return MainlineSource(version=version.text())


def _tree_source(node: Node) -> TreeSource:
    entries = node.mapping(("kind", "tree", "config", "fragments"), required=("tree", "config"))
    config: Path | str = entries["config"].text()
    if not _TARGET.fullmatch(str(config)):
        config = _path(entries["config"])
    fragments = entries.get("fragments")
    names = () if fragments is None else _items(fragments)
    return TreeSource(
        tree=_path(entries["tree"]), config=config, fragments=tuple(map(_fragment, names)),
        btf_fragment=fragments_directory() / "btf.config",
    )  # fmt: skip


def _fragment(node: Node) -> Path:
    """A fragment's file; a bare name is one of those that are shipped."""
    name = node.text()
    if "/" in name or name.endswith(".config"):
        return _path(node)
    shipped = {path.stem: path for path in fragments_directory().glob("*.config")}
    return shipped[node.choice(shipped)]


def fragments_directory() -> Path:
    """Where the shipped fragments lie: in the package, or in the source tree beside it."""
    inside = Path(__file__).with_name(FRAGMENTS)
    return inside if inside.is_dir() else Path(__file__).parents[1] / FRAGMENTS


def _tree_btf(entries: Mapping[str, Node]) -> TreeBtf:
    narrow = {key: entries[key].text() for key in ("distro", "version") if key in entries}
    return TreeBtf(tree=_path(entries["tree"]), **narrow)


def _paths(node: Node | None) -> tuple[Path, ...]:
    return () if node is None else tuple(_path(item) for item in _items(node))


def _items(node: Node) -> tuple[Node, ...]:
    return (node,) if isinstance(node.value, str) else tuple(node.sequence())


def _path(node: Node) -> Path:
    return (Path(node.file).parent / Path(node.text()).expanduser()).absolute()
