"""The corpus in guests: for each kernel one session asked for both loaders' facts, object by object; our loader's with
evidence, against which each relocation's liveness is foretold.

A guest that is lost is booted again. An object that a guest has too little memory for (ENOMEM under one loader may be
chance under the other) or at which it was lost is asked for once more in a larger guest, and what comes of it there
counts.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness import config, kernels, matrix, payload
from harness.apt.guest import fetch_guest
from harness.boot import GuestPackages
from harness.errors import CorematrixError, GuestLostError
from harness.model.kernel import Kernel, KernelSpec
from harness.session import JudgeRequest, Session, SessionOptions
from harness.store import Store
from tests.corpus.compared import Compared, compare, plain_name
from tests.corpus.foretold import held_against, model_of

Objects = Sequence[tuple[str, Path]]

LARGE_MB = 1536
# For one object in a guest of the usual size; half a minute is the most seen, on a busy machine. One that is short of
# memory may hang.
USUAL_SECONDS = 90.0


def run_guests(
    objects: Objects,
    globs: Sequence[str],
    store: Store,
    wanted: Callable[[str, str], bool] = lambda _kernel, _name: True,
    *,
    large: Sequence[str] = (),
    deadline: float = USUAL_SECONDS,
) -> Iterator[Compared]:
    """Both loaders on all objects in a guest of each kernel that a glob of `kernels.yaml` ids names; only where
    `wanted` says so of kernel and object, when its turn comes. Objects that a glob of `large` names are known to need
    a larger guest: a small one that runs out of memory may hang until its `deadline` (seconds, for one loader).
    """
    loaded = config.load_matrix()
    for spec in matrix.select_kernels(loaded.kernels, matrix.KernelSelector(globs=tuple(globs))):
        rest = [(name, path) for name, path in objects if wanted(spec.id, name)]
        if not rest:
            continue
        try:
            kernel = kernels.provide(spec, store, loaded.lock, _say)
            debs = fetch_guest(loaded.guest, spec.arch, store, loaded.lock, _say)
        except CorematrixError as error:
            yield from (Compared(name=name, kernel=spec.id, trouble=str(error)) for name, _ in rest)
            continue
        packages = GuestPackages(paths=debs.paths, provenance=tuple(debs.provenance()))
        options = SessionOptions(store=store, packages=packages, on_event=_say)
        yield from _OneKernel(kernel, spec, options, large, deadline).run(rest, wanted)


class _OneKernel:
    """The guests of one kernel, each opened when it is needed: of the size its row says, and a large one."""

    def __init__(
        self, kernel: Kernel, spec: KernelSpec, options: SessionOptions, large: Sequence[str], deadline: float
    ) -> None:
        self._kernel = kernel
        self._spec = spec
        self._options = options
        self._large = large
        self._deadline = deadline
        self._sessions: dict[int, Session] = {}
        assert kernel.btf is not None, "every kernel of the gate has BTF"
        self._model = model_of(kernel.btf)
        self._guest_code = payload.fingerprint(dict(options.sources))[:12]

    def run(self, objects: Objects, wanted: Callable[[str, str], bool]) -> Iterator[Compared]:
        try:
            for number, (name, path) in enumerate(objects):
                if not wanted(self._spec.id, name):
                    return
                started = time.monotonic()
                one = self._one(name, path.read_bytes())
                seconds = round(time.monotonic() - started, 2)
                yield replace(
                    one, release=self._kernel.release, guest_code=self._guest_code, seconds=seconds,
                    when=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                )  # fmt: skip
                _say(f"{self._spec.id}: {number + 1} of {len(objects)}: {name}: {seconds} s")
        finally:
            for size in list(self._sessions):
                self._close(size)

    def _one(self, name: str, data: bytes) -> Compared:
        usual = self._spec.memory_mb
        one, short = None, "known to need it"
        if not any(fnmatchcase(name, glob) for glob in self._large):
            try:
                one, short = self._pair(name, data, usual)
            except GuestLostError as error:
                short = f"lost: {error}"
        if one is not None and short is None:
            return one
        try:
            one, _ = self._pair(name, data, max(LARGE_MB, usual))
        except GuestLostError as error:
            return Compared(name=name, kernel=self._spec.id, trouble=f"{error.status}: {error}\n{error.console_tail}")
        return replace(one, memory_mb=max(LARGE_MB, usual), why_more=short)

    def _pair(self, name: str, data: bytes, size: int) -> tuple[Compared, str | None]:
        """What came of both loaders in a guest of `size` MB, and where memory did not suffice."""
        try:
            libbpf = self._ask(name, data, size, "libbpf", None)
            python = self._ask(name, data, size, "python", libbpf["rules"])
        except GuestLostError:
            self._close(size)
            raise
        short = short_of_memory(libbpf) or short_of_memory(python)
        told = held_against(python, data, plain_name(name), self._model)
        return replace(compare(name, self._spec.id, python, libbpf), **told), short

    def _ask(self, name: str, data: bytes, size: int, loader: str, rules: str | None) -> dict[str, Any]:
        if size not in self._sessions:
            sized = replace(self._kernel, spec=replace(self._spec, memory_mb=size))
            usual = size == self._spec.memory_mb
            options = replace(self._options, judge_seconds=self._deadline) if usual else self._options
            self._sessions[size] = Session(sized, options)
        request = JudgeRequest(name=plain_name(name), loader=loader, evidence=loader == "python", rules=rules)
        return self._sessions[size].judge(request, data, lambda _message: None)

    def _close(self, size: int) -> None:
        session = self._sessions.pop(size, None)
        if session is not None:
            session.close()


def short_of_memory(facts: Mapping[str, Any]) -> str | None:
    """What the kernel refused with ENOMEM: the map, program or object by name; None when nothing."""
    for what, rows in (("map", facts["maps"]), ("program", facts["progs"])):
        for row in rows:
            if row["errno"] == errno.ENOMEM:
                return f"{facts['loader']}: {what} {row['name']}: ENOMEM"
    error = facts["object_error"]
    return f"{facts['loader']}: {error['message']}" if error and error["errno"] == errno.ENOMEM else None


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
