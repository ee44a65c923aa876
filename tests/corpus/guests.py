"""The corpus in guests: for each kernel one session asked for both loaders' facts, object by object.

A guest that is lost is booted again; the object it was lost at is noted and not asked for a second time.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness import config, kernels, matrix
from harness.apt.guest import fetch_guest
from harness.boot import GuestPackages
from harness.errors import CorematrixError, GuestLostError
from harness.model.kernel import Kernel, KernelSpec
from harness.session import JudgeRequest, Session, SessionOptions
from harness.store import Store
from tests.corpus.compared import Compared, compare

Objects = Sequence[tuple[str, Path]]


def run_guests(objects: Objects, globs: Sequence[str], store: Store) -> Iterator[Compared]:
    """Both loaders on all objects in a guest of each kernel that a glob of `kernels.yaml` ids names."""
    loaded = config.load_matrix()
    for spec in matrix.select_kernels(loaded.kernels, matrix.KernelSelector(globs=tuple(globs))):
        try:
            kernel = kernels.provide(spec, store, loaded.lock, _say)
            debs = fetch_guest(loaded.guest, spec.arch, store, loaded.lock, _say)
        except CorematrixError as error:
            yield from (Compared(name=name, kernel=spec.id, trouble=str(error)) for name, _ in objects)
            continue
        packages = GuestPackages(paths=debs.paths, provenance=tuple(debs.provenance()))
        yield from _OneKernel(kernel, spec, SessionOptions(store=store, packages=packages, on_event=_say)).run(objects)


class _OneKernel:
    """The session of one kernel, opened when it is needed."""

    def __init__(self, kernel: Kernel, spec: KernelSpec, options: SessionOptions) -> None:
        self._kernel = kernel
        self._spec = spec
        self._options = options
        self._session: Session | None = None

    def run(self, objects: Objects) -> Iterator[Compared]:
        try:
            for number, (name, path) in enumerate(objects):
                yield self._one(name, path.read_bytes())
                _say(f"{self._spec.id}: {number + 1} of {len(objects)}: {name}")
        finally:
            self._close()

    def _one(self, name: str, data: bytes) -> Compared:
        try:
            libbpf = self._ask(name, data, "libbpf", None)
            python = self._ask(name, data, "python", libbpf["rules"])
        except GuestLostError as error:
            self._close()
            return Compared(name=name, kernel=self._spec.id, trouble=f"{error.status}: {error}\n{error.console_tail}")
        return compare(name, self._spec.id, python, libbpf)

    def _ask(self, name: str, data: bytes, loader: str, rules: str | None) -> dict[str, Any]:
        if self._session is None:
            self._session = Session(self._kernel, self._options)
        request = JudgeRequest(name=plain_name(name), loader=loader, evidence=False, rules=rules)
        return self._session.judge(request, data, lambda _message: None)

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None


def plain_name(name: str) -> str:
    """The object's name as a request has it: the last part, without what no map name may hold."""
    return Path(name).name.replace("#", "_")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
