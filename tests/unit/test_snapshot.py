"""Saved guests as files: keys, sparse copies, finding and dropping."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import CacheError
from harness.session import Session
from harness.store import Store
from harness.vm import accelerator, snapshot
from harness.vm.devices import RESULT_CHARDEV
from harness.vm.qmp import Qmp
from tests.support import cells, forked

PAGE = 4096


def test_the_key_depends_on_every_fact_and_not_on_their_order() -> None:
    facts = {"vmlinuz": "a", "cpus": 2, "modules": ["x"]}
    assert snapshot.key(facts) == snapshot.key(dict(reversed(facts.items())))
    assert len({snapshot.key({**facts, name: "other"}) for name in facts} | {snapshot.key(facts)}) == 4


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 600), st.binary(min_size=1, max_size=PAGE * 2)), max_size=6))
def test_a_sparse_copy_holds_the_same_bytes_and_no_zero_pages(writes: list[tuple[int, bytes]]) -> None:
    source = os.memfd_create("source")
    try:
        os.ftruncate(source, 700 * PAGE)
        for page, data in writes:
            os.pwrite(source, data, page * PAGE)
        expected = os.pread(source, 700 * PAGE, 0)
        target = os.memfd_create("target")
        snapshot.copy_sparse(source, target)
        assert os.pread(target, 701 * PAGE, 0) == expected
        touched = sum(any(expected[place : place + PAGE]) for place in range(0, len(expected), PAGE))
        assert os.fstat(target).st_blocks * 512 <= touched * PAGE
        os.close(target)
    finally:
        os.close(source)


def _saved(store: Store, memory: bytes = b"m" * 5000, state: bytes = b"s") -> snapshot.SavedGuest:
    with store.scratch() as scratch:
        made = snapshot.SavedGuest(tree=scratch)
        made.memory.write_bytes(memory)
        made.state.write_bytes(state)
        made.sums.write_text(f"{hashlib.sha256(state).hexdigest()}  state\n")
        store.put_derived("guests", "k", {path.name: path for path in scratch.iterdir()}, mode=0o644)
    saved = snapshot.find(store, "k")
    assert saved is not None
    return saved


def test_a_saved_guest_is_found_until_it_is_dropped(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        assert snapshot.find(store, "k") is None
        saved = _saved(store)
        assert saved.memory.read_bytes() == b"m" * 5000
        assert saved.bytes >= 5000
        snapshot.drop(store, "k")
        assert snapshot.find(store, "k") is None


def test_half_a_saved_guest_is_none(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.put_tree("guests", "k", {"memory": store.put_bytes(b"m")})
        assert snapshot.find(store, "k") is None


def test_a_saved_guest_that_has_changed_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        saved = _saved(store, bytes(1 << 20), b"state")
        snapshot.check(saved, 1)
        with pytest.raises(CacheError, match="not as large"):
            snapshot.check(saved, 2)
        for damaged in (b"stat", b"stbte", b""):
            saved.state.write_bytes(damaged)
            with pytest.raises(CacheError, match="not what was saved"):
                snapshot.check(saved, 1)
        saved.state.write_bytes(b"state")
        saved.sums.write_bytes(b"\xff")
        with pytest.raises(CacheError, match="not what was saved"):
            snapshot.check(saved, 1)
        saved.sums.unlink()
        with pytest.raises(OSError, match="sha256sums"):
            snapshot.check(saved, 1)


def test_what_is_in_the_way_of_saving_is_known_before(tmp_path: Path) -> None:
    with Store(tmp_path / "cache") as store:
        assert snapshot.obstacle(store, 1) is None
        assert "may be needed" in str(snapshot.obstacle(store, 1 << 40))
    (tmp_path / "file").write_bytes(b"")
    assert "cannot be written" in str(snapshot.obstacle(Store(tmp_path / "file"), 1))


class Monitor:
    """A QEMU that does as it is told."""

    def execute(self, command: str, *, deadline: float, descriptor: int = -1, **_arguments: Any) -> Any:
        if command == "getfd":
            self.stream = os.dup(descriptor)
        if command == "migrate":
            os.write(self.stream, b"state")
        return [{"label": RESULT_CHARDEV, "filename": "disconnected:fd"}]

    def await_event(self, _name: str, _deadline: float) -> dict[str, str]:
        return {"status": "completed"}


_CHANGES = ("os.rename", "os.link", "os.mkdir", "os.chmod", "os.remove", "os.rmdir", "os.truncate")


def _save_unless_killed(words: list[str]) -> int:
    """In a process of its own: save a guest in the cache words[0], killed before change number words[1] of the disk."""
    root, left = words[0], [int(words[1])]

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in _CHANGES:
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1

    memory = os.memfd_create("guest")
    os.ftruncate(memory, 1 << 20)
    os.pwrite(memory, b"memory", 5 * PAGE)
    sys.addaudithook(hook)
    with Store(Path(root)) as store:
        if snapshot.find(store, "k") is None:
            snapshot.save(store, "k", cast(Qmp, Monitor()), memory, 1e12, about={"kernel": "x"})
    return 0


def test_killed_at_each_step_of_saving_there_is_a_whole_guest_or_none(tmp_path: Path) -> None:
    """SIGKILL before each call that changes the disk; then once more, whole."""

    def save(root: Path, step: int) -> int:
        return forked.run(_save_unless_killed, [str(root), str(step)], cwd=tmp_path, env=os.environ).returncode

    ends = []
    for step in range(60):
        root = tmp_path / str(step)
        ends.append(save(root, step))
        with Store(root) as store:
            found = snapshot.find(store, "k")
            if found is not None:
                snapshot.check(found, 1)
        assert save(root, -1) == 0
        with Store(root) as store, store.scratch():
            saved = snapshot.find(store, "k")
            assert saved is not None
            snapshot.check(saved, 1)
            assert saved.memory.read_bytes() == (bytes(5 * PAGE) + b"memory").ljust(1 << 20, b"\0")
            assert not list(root.glob("blobs/*")), "nothing that only `prune` would find"
            assert len(list(root.glob("tmp/*.lock"))) == 1, "what the killed one had begun is gone"
        if ends[-1] == 0:
            break
    assert set(ends) == {-signal.SIGKILL, 0}
    assert len(ends) > 10


@pytest.mark.parametrize(
    ("arch", "name", "expected"),
    [("ppc64le", "tcg", False), ("ppc64le", "kvm", True), ("x86_64", "tcg", True), ("s390x", "tcg", True)],
)
def test_a_guest_is_saved_only_where_it_goes_on(arch: str, name: str, expected: bool) -> None:
    """Seen with QEMU 7.2: a restored ppc64le guest's second processor is locked up for good."""
    session = Session.__new__(Session)
    session._kernel = cells.kernel(cells.kernel_spec(arch=arch))
    session._accelerator = accelerator.Accelerator(name=name, reason="")
    assert session._goes_on() is expected
