"""The cache: whole or absent, shared, alive after SIGKILL, bounded, clear about full and read-only disks."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from harness.errors import CacheError
from harness.store import Store

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def _python(code: str, store: Store) -> subprocess.Popen[bytes]:
    """Another process on the same cache: `store` is bound; it writes a line when told to in `code`."""
    head = (
        "import sys, time, os\nfrom pathlib import Path\nfrom harness.store import Store\n"
        f"store = Store(Path({str(store.root)!r}))\n"
    )
    return subprocess.Popen(
        [sys.executable, "-c", head + code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_blobs_are_named_by_what_they_hold(store: Store) -> None:
    digest = store.put_bytes(b"hello")
    path = store.blob(digest)
    assert digest == hashlib.sha256(b"hello").hexdigest()
    assert path is not None
    assert path.read_bytes() == b"hello"
    assert path.stat().st_mode & 0o222 == 0
    assert store.put_bytes(b"hello") == digest
    assert store.blob("0" * 64) is None


def test_a_file_is_moved_in(store: Store) -> None:
    with store.scratch() as scratch:
        (scratch / "x").write_bytes(b"data")
        digest = store.put_file(scratch / "x")
        assert not (scratch / "x").exists()
    path = store.blob(digest)
    assert path is not None
    assert path.read_bytes() == b"data"


def test_trees_are_names_for_blobs(store: Store) -> None:
    files = {"vmlinuz": store.put_bytes(b"kernel"), "modules/a.ko": store.put_bytes(b"module")}
    assert store.tree("kernel", "k") is None
    tree = store.put_tree("kernel", "k", files)
    assert (tree / "modules/a.ko").read_bytes() == b"module"
    blob = store.blob(files["vmlinuz"])
    assert blob is not None
    assert (tree / "vmlinuz").samefile(blob)
    assert store.put_tree("kernel", "k", {"other": files["vmlinuz"]}) == tree
    assert sorted(path.name for path in tree.iterdir()) == ["modules", "vmlinuz"]


def test_an_empty_tree(store: Store) -> None:
    assert list(store.put_tree("modules", "none", {}).iterdir()) == []


def test_a_derived_file_is_moved_and_is_no_blob(store):
    with store.scratch() as directory:
        (directory / "made").write_bytes(b"index")
        tree = store.put_derived("index", "k", {"index": directory / "made"})
        assert list(directory.iterdir()) == []
        (directory / "made").write_bytes(b"another")
        assert store.put_derived("index", "k", {"index": directory / "made"}) == tree
    assert (tree / "index").read_bytes() == b"index"
    assert (tree / "index").stat().st_mode & 0o777 == 0o444
    with store.scratch() as directory:
        (directory / "made").write_bytes(b"memory")
        tree = store.put_derived("guests", "k", {"memory": directory / "made"}, mode=0o640)
        assert (tree / "memory").stat().st_mode & 0o777 == 0o640
        store.drop_tree("guests", "k")
    assert not (store.root / "blobs").exists()
    assert store.prune(cap_bytes=0).removed == ("trees/index/k",)


def test_a_dropped_tree_is_gone_and_stays_with_who_has_it_open(store):
    tree = store.put_tree("kernel", "k", {"x": store.put_bytes(b"x")})
    with (tree / "x").open("rb") as file:
        store.drop_tree("kernel", "k")
        assert file.read() == b"x"
    assert store.tree("kernel", "k") is None
    store.drop_tree("kernel", "k")


def test_a_tree_on_a_file_system_without_hard_links(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    digest = store.put_bytes(b"kernel")
    monkeypatch.setattr(os, "link", refuse)
    assert (store.put_tree("kernel", "k", {"vmlinuz": digest}) / "vmlinuz").read_bytes() == b"kernel"


def test_entries(store: Store) -> None:
    assert store.entry("kernel", "k") is None
    store.put_entry("kernel", "k", {"a": 1})
    store.put_entry("kernel", "k", {"a": 2})
    assert store.entry("kernel", "k") == {"a": 2}
    store.drop_entry("kernel", "k")
    assert store.entry("kernel", "k") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_damaged_entry_is_no_entry(store: Store, damage: bytes) -> None:
    store.put_entry("kernel", "k", {"a": 1})
    (store.root / "entries/kernel/k.json").write_bytes(damage)
    assert store.entry("kernel", "k") is None


def test_where_the_cache_is() -> None:
    assert Store.default({"COREMATRIX_CACHE": "/a", "XDG_CACHE_HOME": "/b"}).root == Path("/a")
    assert Store.default({"XDG_CACHE_HOME": "/b"}).root == Path("/b/corematrix")
    assert Store.default({"HOME": "/ignored, expanduser reads the real one"}).root.parts[-2:] == (
        ".cache",
        "corematrix",
    )


def test_scratch_goes(store: Store) -> None:
    with store.scratch() as first, store.scratch() as second:
        assert first != second
        (first / "x").write_bytes(b"x")
    assert not first.exists()
    store.close()
    assert list((store.root / "tmp").iterdir()) == []


def test_scratch_of_the_dead_is_swept(store: Store) -> None:
    code = (
        "with store.scratch() as scratch:\n"
        "    (scratch / 'half').write_bytes(b'x' * 1000)\n"
        "    print(scratch, flush=True)\n    time.sleep(60)\n"
    )
    other = _python(code, store)
    assert other.stdout is not None
    left = Path(other.stdout.readline().decode().strip())
    with store.scratch():
        assert (left / "half").exists(), "the living keep theirs"
    store.close()
    other.kill()
    other.communicate()
    assert (left / "half").exists()
    with store.scratch():
        assert not left.exists()
    store.close()


def test_threads_share_a_store(store: Store) -> None:
    def work(number: int) -> str:
        with store.lock("one at a time"), store.scratch() as scratch:
            (scratch / "x").write_bytes(b"%d" % number)
        return store.put_bytes(b"%d" % number)

    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(work, range(64)))
    assert all(store.blob(digest) is not None for digest in digests)
    store.close()
    assert list((store.root / "tmp").iterdir()) == []


def test_a_lock_excludes_and_dies_with_its_holder(store: Store) -> None:
    other = _python("with store.lock('kernel'):\n    print('held', flush=True)\n    time.sleep(60)\n", store)
    assert other.stdout is not None
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(CacheError, match="locked by another run"), store.lock("kernel", timeout=0.1):
        pass
    with store.lock("another", timeout=0.1):
        pass
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with store.lock("kernel", timeout=10):
        pass


def test_without_locks_on_the_file_system(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with store.lock("kernel"):
        digest = store.put_bytes(b"x")
    assert store.blob(digest) is not None


def test_a_blob_replaced_while_it_is_linked_is_linked_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What test_ten_processes_make_the_same_things meets once in some hundred times."""
    link, refused = os.link, [FileNotFoundError(errno.ENOENT, "No such file or directory")]

    def replaced_once(source: Path, target: Path) -> None:
        if refused:
            raise refused.pop()
        link(source, target)

    monkeypatch.setattr(os, "link", replaced_once)
    tree = store.put_tree("kernel", "a", {"name": store.put_bytes(b"data")})
    assert (tree / "name").read_bytes() == b"data"
    assert not refused


def test_a_blob_that_is_gone_is_no_tree(store: Store) -> None:
    with pytest.raises(CacheError, match="No such file"):
        store.put_tree("kernel", "a", {"name": "0" * 64})


def test_ten_processes_make_the_same_things(store: Store) -> None:
    code = (
        "for i in range(30):\n"
        "    files = {f'{n}': store.put_bytes(b'%d %d' % (i, n) * 1000) for n in range(3)}\n"
        "    tree = store.put_tree('kernel', str(i), files)\n"
        "    store.put_entry('kernel', str(i), files)\n"
        "    for name, digest in files.items():\n"
        "        assert (tree / name).read_bytes() == store.blob(digest).read_bytes()\n"
        "    assert store.entry('kernel', str(i)) == files\n"
        "store.close()\n"
    )
    others = [_python(code, store) for _ in range(10)]
    assert [other.wait(60) for other in others] == [0] * 10
    for other in others:
        other.communicate()
    assert len(list(store.root.glob("trees/kernel/*"))) == 30
    assert list((store.root / "tmp").iterdir()) == []
    for path in store.root.glob("blobs/??/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


@pytest.mark.parametrize("step", range(12))
def test_killed_at_each_step_the_next_run_comes_to_the_same(store: Store, step: int) -> None:
    """SIGKILL just before the n-th call that changes the disk; then the same work again, whole."""
    work = (
        "def work():\n"
        "    files = {'vmlinuz': store.put_bytes(b'kernel' * 1000), 'modules/a.ko': store.put_bytes(b'module')}\n"
        "    tree = store.tree('kernel', 'k') or store.put_tree('kernel', 'k', files)\n"
        "    if store.entry('kernel', 'k') is None: store.put_entry('kernel', 'k', files)\n"
    )
    trap = (
        f"import signal\nleft = [{step}]\n"
        "def hook(event, args):\n"
        "    writes = event == 'open' and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)\n"
        "    if writes or event in ('os.rename', 'os.link', 'os.mkdir', 'os.chmod', 'os.remove', 'os.rmdir'):\n"
        "        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        left[0] -= 1\n"
        "sys.addaudithook(hook)\n"
    )
    killed = _python(work + trap + "work()\n", store)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    again = _python(work + "work(); store.close()\n", store)
    again.communicate()
    assert again.returncode == 0
    tree = store.tree("kernel", "k")
    assert tree is not None
    assert {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()} == {
        "vmlinuz": b"kernel" * 1000,
        "modules/a.ko": b"module",
    }
    assert list((store.root / "tmp").iterdir()) == []
    store.close()


_WRITING = """
import signal
old, new = {"date": "1", "more": "x" * 5000}, {"date": "2", "more": "y" * 5000}
data, blob = bytes(range(256)) * 400, "BLOB"
files = {"one": store.put_bytes(b"1" * 5000), "more/two": store.put_bytes(b"2" * 5000)}

def killed_at(step):
    left = [step]
    def hook(frame, event, argument):
        if event == "c_call":
            if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
    with Store(store.root) as mine:
        sys.setprofile(hook)
        WORK
        sys.setprofile(None)

found = set()
for step in range(5000):
    with Store(store.root) as mine:
        BEFORE
    if (child := os.fork()) == 0:
        killed_at(step)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with Store(store.root) as mine:
        now = LOOK
    assert now in STATES, (step, now)
    found.add((status, STATES.index(now)))
    if status == 0: break
print(step, sorted(found))
"""
_WRITES = {
    "blob": (
        "mine._blob_path(blob).unlink(missing_ok=True)",
        "mine.put_bytes(data)",
        "(path := mine.blob(blob)) and (path.read_bytes(), path.stat().st_mode & 0o777)",
        "(None, (data, 0o444))",
    ),
    "tree": (
        "mine.drop_tree('kernel', 'k')",
        "mine.put_tree('kernel', 'k', files)",
        "(tree := mine.tree('kernel', 'k')) and [(tree / name).read_bytes()[:1] for name in files]",
        "(None, [b'1', b'2'])",
    ),
    # The newest Release that was seen must never be forgotten, nor be an older one again.
    "entry": (
        "mine.put_entry('release', 'seen', old)",
        "mine.put_entry('release', 'seen', new)",
        "mine.entry('release', 'seen')",
        "(old, new)",
    ),
}


@pytest.mark.parametrize("kind", _WRITES)
def test_killed_anywhere_while_it_writes_all_of_it_is_there_or_nothing(store: Store, kind: str) -> None:
    """SIGKILL before each call of C code, so also between a file's making and its filling."""
    before, work, look, states = _WRITES[kind]
    digest = hashlib.sha256(bytes(range(256)) * 400).hexdigest()
    code = _WRITING.replace("BEFORE", before).replace("WORK", work).replace("LOOK", look).replace("STATES", states)
    process = _python(code.replace("BLOB", digest), store)
    said, _ = process.communicate()
    assert process.returncode == 0
    steps, _, found = said.decode().partition(" ")
    assert int(steps) > 20
    assert found == "[(-9, 0), (-9, 1), (0, 1)]\n"


@pytest.mark.parametrize(
    "removal", ["store.drop_tree('k', 'a')", "store.trim('k', cap_bytes=0)", "store.prune(cap_bytes=0)"]
)
def test_killed_while_it_removes_a_tree_no_half_one_is_left(store: Store, removal: str) -> None:
    """SIGKILL before each call that changes the disk, until it comes through: whole all the time, or not there."""
    code = (
        "import signal\n"
        "def hook(event, args):\n"
        "    if event in ('os.rename', 'os.mkdir', 'os.remove', 'os.rmdir', 'shutil.rmtree'):\n"
        "        if left[0] == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
        "        left[0] -= 1\n"
        "files = {name: store.put_bytes(name.encode() * 5000) for name in ('x', 'y', 'z')}\n"
        "store.put_tree('k', 'a', files)\n"
        f"left = [int(sys.argv[1])]\nsys.addaudithook(hook)\n{removal}\n"
    )
    for step in range(20):
        killed = _python(code.replace("int(sys.argv[1])", str(step)), store)
        killed.communicate()
        tree = store.tree("k", "a")
        assert tree is None or sorted(path.name for path in tree.iterdir()) == ["x", "y", "z"]
        store.close()
        if killed.returncode == 0:
            break
        assert killed.returncode == -signal.SIGKILL
    assert killed.returncode == 0
    assert step > 3
    with store.scratch():
        assert list(store.root.glob("tmp/gone/*")) == []


def _full(*_args: object, **_keywords: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "somewhere")


@pytest.mark.parametrize("call", ["pathlib.Path.write_bytes", "pathlib.Path.replace", "os.fsync", "pathlib.Path.mkdir"])
def test_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with store.scratch():
        pass
    monkeypatch.setattr(call, _full)
    with pytest.raises(CacheError, match="No space left") as caught:
        store.put_bytes(b"x")
    assert "corematrix kernels prune" in str(caught.value)
    monkeypatch.undo()
    assert store.blob(hashlib.sha256(b"x").hexdigest()) is None


@pytest.mark.skipif(not Path("/proc/self/ns/user").exists() or shutil.which("unshare") is None, reason="needs unshare")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount read-only")
def test_a_read_only_cache_can_be_read(store: Store) -> None:
    digest = store.put_bytes(b"kernel")
    store.put_tree("kernel", "k", {"vmlinuz": digest})
    store.put_entry("kernel", "k", {"a": 1})
    store.close()
    code = (
        "import sys\nfrom pathlib import Path\nfrom harness.store import Store\nfrom harness.errors import CacheError\n"
        f"store = Store(Path({str(store.root)!r}))\n"
        f"assert store.blob({digest!r}) and store.entry('kernel', 'k') == {{'a': 1}}\n"
        "assert (store.tree('kernel', 'k') / 'vmlinuz').read_bytes() == b'kernel'\n"
        "with store.lock('x'): pass\n"
        "try: store.put_bytes(b'new')\n"
        "except CacheError as error: assert 'COREMATRIX_CACHE' in str(error); print('refused')\n"
    )
    root = store.root
    mount = f'mount --bind {root} {root} && mount -o remount,bind,ro {root} && exec {sys.executable} -c "$0"'
    result = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, code],
        check=False,
        capture_output=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    if b"mount:" in result.stderr or b"unshare:" in result.stderr:
        pytest.skip("this machine does not let us mount")
    assert result.stdout == b"refused\n", result.stderr.decode()


def _age(path: Path, seconds: float) -> None:
    os.utime(path, (time.time() - seconds,) * 2)


def test_prune_takes_the_longest_unused_first(store: Store) -> None:
    shared = store.put_bytes(b"s" * 100_000)
    for number in range(4):
        files = {"own": store.put_bytes(bytes([number]) * 100_000), "shared": shared}
        _age(store.put_tree("kernel", str(number), files), 1000 * (10 - number))
    lone = store.put_bytes(b"l" * 100_000)
    store.put_entry("release", "seen", {"date": "2026"})
    for path in store.root.glob("blobs/??/*"):
        _age(path, 5)
    result = store.prune(cap_bytes=450_000)
    assert [name for name in result.removed if name.startswith("trees")] == ["trees/kernel/0", "trees/kernel/1"]
    assert result.left <= 450_000
    assert result.freed >= 200_000
    assert (store.root / "trees/kernel/3/shared").stat().st_size == 100_000
    assert store.blob(shared) is not None
    assert store.blob(lone) is not None
    assert store.entry("release", "seen") == {"date": "2026"}


def test_prune_takes_lone_blobs_by_age_too(store: Store) -> None:
    old, new = store.put_bytes(b"o" * 100_000), store.put_bytes(b"n" * 100_000)
    _age(store.root / "blobs" / old[:2] / old, 10_000)
    store.prune(cap_bytes=150_000)
    assert store.blob(old) is None
    assert store.blob(new) is not None


def test_use_is_noted(store: Store) -> None:
    tree = store.put_tree("kernel", "k", {"x": store.put_bytes(b"x")})
    _age(tree, 100_000)
    assert store.tree("kernel", "k") == tree
    assert time.time() - tree.stat().st_mtime < 100


def test_nothing_to_prune(store: Store) -> None:
    assert store.prune().removed == ()


def test_prune_waits_for_nobody(store: Store) -> None:
    other = _python("store.blob('0' * 64)\nprint('using', flush=True)\ntime.sleep(60)\n", store)
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(CacheError, match="in use by another run"):
        store.prune(cap_bytes=0)
    other.kill()
    other.communicate()
    store.prune(cap_bytes=0)
