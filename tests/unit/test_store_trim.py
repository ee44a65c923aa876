"""Trees of one kind within a cap: what was used longest ago goes, with the blobs that only it held."""

from __future__ import annotations

import os
from pathlib import Path

from harness.store import Store

_MIB = 1 << 20


def _tree(store: Store, key: str, byte: bytes, used: int, shared: str | None = None) -> None:
    files = {"memory": store.put_bytes(byte * _MIB), **({"state": shared} if shared else {})}
    os.utime(store.put_tree("guests", key, files), (used, used))


def test_the_oldest_go_and_what_others_hold_stays(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        shared = store.put_bytes(b"s" * 4096)
        _tree(store, "old", b"a", 1000, shared)
        _tree(store, "new", b"b", 3000, shared)
        _tree(store, "middle", b"c", 2000)
        other = store.put_tree("kernels", "k", {"vmlinuz": shared})
        assert store.trim("guests", cap_bytes=100 * _MIB) == ()
        assert store.trim("guests", cap_bytes=_MIB + 65536) == ("old", "middle")
        assert [path.name for path in tmp_path.glob("trees/guests/*")] == ["new"]
        assert store.blob(shared) is not None
        assert other.is_dir()
        held = [path for path in tmp_path.glob("blobs/??/*") if path.stat().st_size == _MIB]
        assert [path.read_bytes()[:1] for path in held] == [b"b"]
