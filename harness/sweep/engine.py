"""The sweep itself: each BTF opened once, every object relocated against it, in parallel processes.

A process takes a few BTFs at a time, makes the index of those that have none in the cache, and answers with what
became of each relocation; the answers are small. The parent only puts them together (harness.sweep.result).
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from pathlib import Path

from harness.errors import CacheError, InfrastructureError, UsageError
from harness.guest.errors import GuestError
from harness.inspection import Conditions
from harness.model.arch import ARCHITECTURES
from harness.model.bpf_object import ObjectFile
from harness.predict.kernels import model_from
from harness.predict.models import Model
from harness.store import Store
from harness.sweep.answers import Answer, Described, Subject
from harness.sweep.archive import ARCHIVE_SUFFIXES, digest_of, read_btf
from harness.sweep.index import FORMAT, IndexedBtf, write_index
from harness.sweep.targets import Target

_CHUNK = 4  # BTFs a process takes at a time
_KIND, _DIGESTS = "btf-index", "btf-digest"
_SETTLED_SECONDS = 5.0
# Bytes of a file from which its BTF takes several times the usual memory: of an archive, of anything else.
_LARGE_ARCHIVE, _LARGE_FILE = 2 << 20, 16 << 20


@dataclass(frozen=True, kw_only=True)
class Job:
    """One object to sweep, with values for its .rodata variables."""

    object: ObjectFile
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Answered:
    """What one BTF said. `answers` by the job's index; `described` likewise, what is the same on all kernels of the
    relocations that this process saw for the first time; `sections` of programs by name; `error` when the BTF cannot
    be used.
    """

    target: int
    types: int | None = None
    rules: tuple[str, ...] = ()
    indexed: bool = False
    error: str | None = None
    answers: Mapping[int, Answer] = field(default_factory=dict)
    described: Mapping[int, Mapping[int, Described]] = field(default_factory=dict)
    notes: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    sections: Mapping[int, Mapping[str, str]] = field(default_factory=dict)


def suits(job: Job, target: Target) -> bool:
    """Whether the BTF's architecture is the object's, as far as both are known."""
    return job.object.arch is None or target.arch is None or job.object.arch == target.arch


def answers(
    jobs: Sequence[Job],
    targets: Sequence[Target],
    store: Store,
    *,
    processes: int | None = None,
    rules: str | None = None,
    detailed: bool = False,
    on_answer: Callable[[Answered], None] = lambda _answered: None,
) -> list[Answered]:
    """Every job against every target it suits, by target. `rules` is the libbpf version to follow; `detailed` answers
    have `Answer.detail`.

    UsageError for an object that cannot be used, CacheError, InfrastructureError when a process dies.
    """
    for job in jobs:
        _subject(job, None)
    count = min(processes or _cpus() + 1, max(1, (len(targets) + _CHUNK - 1) // _CHUNK))
    found: list[Answered] = []
    for batch in _batches(_Worker(tuple(jobs), tuple(targets), store.root, rules, detailed), count):
        for answered in batch:
            on_answer(answered)
            found.append(answered)
    return sorted(found, key=lambda answered: answered.target)


def problem(job: Job) -> str | None:
    """Why an object cannot be swept; None when it can."""
    try:
        _subject(job, None)
    except UsageError as error:
        return error.message
    return None


def _cpus() -> int:
    """Cores. One process more keeps them busy while another waits for the disk."""
    return len(os.sched_getaffinity(0))


def _batches(worker: _Worker, processes: int) -> Iterator[list[Answered]]:
    chunks = _chunks(_largest_first(worker.targets), processes)
    if processes == 1:
        yield from map(worker.work, chunks)
        return
    # Forked: the objects and the modules are there already, and nothing of ours runs threads at this point.
    context = multiprocessing.get_context("fork")
    worker.turns = context.BoundedSemaphore(max(2, processes // 2))
    pool = ProcessPoolExecutor(processes, context, initializer=_begin, initargs=(worker,))
    try:
        pending: list[Future[list[Answered]]] = [pool.submit(_work, chunk) for chunk in chunks]
        for done in as_completed(pending):
            yield done.result()
    except BrokenProcessPool as error:
        message = "a process of the sweep died (out of memory?)"
        raise InfrastructureError(message, remedy="try again with --jobs 1") from error
    except BaseException:  # Ctrl-C
        _abandon(worker)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _abandon(worker: _Worker) -> None:
    """End the processes without waiting for the kernels they have begun, and remove what those left in the cache."""
    processes = multiprocessing.active_children()
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
    worker.sweep_up()


def _largest_first(targets: Sequence[Target]) -> list[int]:
    """So that nobody begins the 27 MB of CentOS when the others have nothing left to do. What cannot be seen comes
    last, and is said when its turn comes.
    """

    def size(index: int) -> int:
        with suppress(UsageError):
            return _seen(targets[index].path)[0]
        return 0

    return sorted(range(len(targets)), key=size, reverse=True)


def _chunks(order: Sequence[int], processes: int) -> list[Sequence[int]]:
    """Shares of the targets, and the last of them one by one: nobody is to wait long for the slowest process."""
    cut = max(0, len(order) - processes * _CHUNK)
    return [order[at : min(at + _CHUNK, cut)] for at in range(0, cut, _CHUNK)] + [
        order[at : at + 1] for at in range(cut, len(order))
    ]


def _subject(job: Job, byteorder: str | None) -> Subject:
    """The object, opened. UsageError."""
    path = job.object.path
    try:
        return Subject(path.read_bytes(), str(path), job.object.name, job.settings, byteorder)
    except OSError as error:
        message = f"{path}: cannot read this object: {error.strerror}"
        raise UsageError(message) from error
    except GuestError as error:
        raise UsageError(error.message, remedy="compile it with `clang --target=bpf -g -O2 -c`") from error


class _Worker:
    """What a process needs for its share."""

    def __init__(
        self, jobs: tuple[Job, ...], targets: tuple[Target, ...], root: Path, rules: str | None, detailed: bool
    ) -> None:
        self.jobs = jobs
        self.targets = targets
        self._store = Store(root)
        self._rules = rules
        self._rules_number = Conditions(rules=rules).rules_number
        self._detailed = detailed
        self._subjects: dict[int, Subject] = {}
        self._told: set[tuple[int, int]] = set()
        self.turns: AbstractContextManager[object] | None = None

    def close(self) -> None:
        self._store.close()

    def sweep_up(self) -> None:
        """The first scratch of a store removes that of the dead."""
        with suppress(CacheError), self._store, self._store.scratch():
            pass

    def work(self, chunk: Sequence[int]) -> list[Answered]:
        return [self._answered(index) for index in chunk]

    def _answered(self, index: int) -> Answered:
        target = self.targets[index]
        jobs = [number for number, job in enumerate(self.jobs) if suits(job, target)]
        try:
            opened, indexed = self._opened(target, all_kinds=any(self._of(number).needs_all_kinds for number in jobs))
            with opened as btf:
                model = model_from(btf)
                found = {number: self._one(number, btf, target, model) for number in jobs}
                return Answered(
                    target=index, types=btf.count - 1, rules=tuple(sorted(model.rules)), indexed=indexed,
                    answers=found, described=self._new(jobs), notes={number: self._of(number).notes for number in jobs},
                    sections={number: self._of(number).sections for number in jobs},
                )  # fmt: skip
        except (UsageError, GuestError) as error:
            return Answered(target=index, error=error.message)

    def _of(self, number: int) -> Subject:
        if number not in self._subjects:
            self._subjects[number] = _subject(self.jobs[number], None)
        return self._subjects[number]

    def _one(self, number: int, btf: IndexedBtf, target: Target, model: Model) -> Answer:
        subject = self._of(number)
        arch = ARCHITECTURES.get(target.arch or "")
        conditions = Conditions(
            rules=self._rules,
            kconfig=_text(target.kconfig) if target.kconfig is not None and subject.has_kconfig else None,
            release=target.version_by(self._rules_number),
            byteorder=subject.obj.byteorder,
            syscall_prefix=arch.syscall_prefix if arch else "x64",
        )
        return subject.against(btf, conditions, model, btf.has_functions, detailed=self._detailed)

    def _new(self, jobs: Sequence[int]) -> dict[int, dict[int, Described]]:
        """Descriptions not yet sent to the parent."""
        found: dict[int, dict[int, Described]] = {}
        for number in jobs:
            for index, described in self._of(number).described.items():
                if (number, index) not in self._told and described.local_spec is not None:
                    self._told.add((number, index))
                    found.setdefault(number, {})[index] = described
        return found

    def _opened(self, target: Target, *, all_kinds: bool) -> tuple[IndexedBtf, bool]:
        """The BTF by its index in the cache, and whether that had to be made: it was not there, or is damaged."""
        key, seen = (target.digest, None) if target.digest is not None else self._digest(target.path)
        name = f"{key}-{FORMAT}"
        tree = self._store.tree(_KIND, name)
        if tree is not None:
            try:
                return IndexedBtf(tree / "index", target.id, all_kinds=all_kinds), False
            except (UsageError, OSError):
                self._store.drop_tree(_KIND, name)
        with self._turn(target.path):
            return self._indexed(target, name, seen, all_kinds=all_kinds), True

    def _turn(self, path: Path) -> AbstractContextManager[object]:
        """Of large BTFs only half of the processes make an index at a time."""
        least = _LARGE_ARCHIVE if path.name.endswith(ARCHIVE_SUFFIXES) else _LARGE_FILE
        return self.turns if self.turns is not None and _seen(path)[0] >= least else nullcontext()

    def _indexed(self, target: Target, name: str, seen: _Seen | None, *, all_kinds: bool) -> IndexedBtf:
        data = read_btf(target.path)
        if seen is not None and _seen(target.path) != seen:
            message = f"{target.path}: it is being written"
            raise UsageError(message, remedy="sweep again when it is complete")
        with self._store.scratch() as directory:
            write_index(data, directory / "index", target.id)
            del data
            made = IndexedBtf(directory / "index", target.id, all_kinds=all_kinds)  # mapped: wherever it moves
            self._store.put_derived(_KIND, name, {"index": directory / "index"})
        return made

    def _digest(self, path: Path) -> tuple[str, _Seen]:
        """SHA-256 of a file, and what it looked like before it was read; remembered for as long as it looks so. A file
        written just now is not believed: another write may leave all of that as it is.
        """
        seen = _seen(path)
        name = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()
        entry = self._store.entry(_DIGESTS, name)
        if entry is not None and entry.get("seen") == seen:
            return str(entry["sha256"]), seen
        digest = digest_of(path)
        if time.time_ns() - seen[1] > _SETTLED_SECONDS * 1e9 and _seen(path) == seen:
            self._store.put_entry(_DIGESTS, name, {"seen": seen, "sha256": digest})
        return digest, seen


_Seen = list[int]


def _seen(path: Path) -> _Seen:
    """By what a file is known again: size, times, inode. UsageError when it is none: a pipe would never end."""
    try:
        found = path.stat()
    except OSError as error:
        message = f"{path}: cannot be read: {error.strerror}"
        raise UsageError(message) from error
    if not stat.S_ISREG(found.st_mode):
        message = f"{path}: not a regular file"
        raise UsageError(message)
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


@cache
def _text(path: Path) -> str:
    return path.read_text("utf-8", "surrogateescape")


_mine: list[_Worker] = []


def _begin(worker: _Worker) -> None:
    """In a new process: an interrupt is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Finalize(worker, worker.close, exitpriority=0)  # its scratch
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    gc.freeze()  # what came with the fork is never garbage, and looking at it would copy it
    _mine.append(worker)


def _end_with_parent() -> None:
    """A parent killed by SIGKILL says nothing to its pool, whose processes would wait for work ever after."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGKILL)


def _work(chunk: Sequence[int]) -> list[Answered]:
    return _mine[0].work(chunk)
