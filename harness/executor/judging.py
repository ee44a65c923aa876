"""The pool's services in earnest: kernels fetched, guests opened, facts judged, logs kept."""

from __future__ import annotations

import hashlib
import json
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from harness import backends, judge, kernels
from harness.apt.guest import fetch_guest
from harness.apt.repository import AptOptions
from harness.backends import execution, spare_modules
from harness.backends.execution import Command, Exit, GuestFile, OnOutput
from harness.boot import GuestPackages
from harness.errors import CacheError, CorematrixError, InfrastructureError, Interrupted
from harness.executor import functional
from harness.executor.attempts import Answer
from harness.executor.local import Guest, GuestSession, Services
from harness.executor.pairs import Pairs
from harness.guest import btf as guest_btf
from harness.model.bpf_object import ObjectFile
from harness.model.cell import Cell
from harness.model.expectation import NONE, Expectations
from harness.model.kernel import Kernel, KernelSpec
from harness.model.lock import Lock
from harness.model.result import CellResult, KernelResult, ObjectResult
from harness.model.sources import GuestPackages as WantedPackages
from harness.model.verdict import CellStatus
from harness.predict.compare import compare
from harness.predict.guards import with_protection
from harness.predict.kernels import model_from
from harness.predict.models import RULES, Model
from harness.rundir import PACKAGES, RunDirectory, file_name, logs_of
from harness.session import JudgeRequest, SessionOptions
from harness.store import Store
from harness.vm.halt import STOPPED, Halt

_CACHED = "cached-kernels"
_MODELS = "verifier-models"
_NO_PACKAGES = GuestPackages(paths=(), provenance=())


@dataclass(frozen=True, kw_only=True)
class Judging:
    """What all cells of a run share. `timeout` in seconds replaces the deadline of one request; `rerun` gives the
    command that runs a cell again, `attach` also attaches what was loaded, to binaries `attach_files` that guests get,
    `both` holds our loader's cells against
    libbpf's. `functional` are the tests to run, on a machine that is somebody's only if `on_machines`. Its services
    are used by many threads.
    """

    store: Store
    guest: WantedPackages
    lock: Lock | None
    expectations: Mapping[str, Expectations]
    directory: RunDirectory
    today: date
    rerun: Callable[[Cell], str]
    timeout: float | None = None
    cold: bool = False
    attach: bool = False
    attach_files: tuple[GuestFile, ...] = ()
    both: bool = False
    functional: functional.Tests = field(default_factory=dict)
    on_machines: bool = False
    apt: AptOptions = field(default_factory=AptOptions)
    _packages: dict[str, GuestPackages] = field(default_factory=dict, repr=False)
    _noted: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict, repr=False)
    _pairs: Pairs = field(default_factory=Pairs, repr=False)
    _models: dict[str, Model] = field(default_factory=dict, repr=False)
    _locks: dict[str, threading.Lock] = field(default_factory=lambda: defaultdict(threading.Lock), repr=False)
    _halt: Halt = field(default_factory=Halt, repr=False)

    def services(self) -> Services:
        """What `LocalExecutor` runs on."""
        services = Services(
            provide=self._provide, open_session=self._open, conclude=self._conclude, give_up=self._give_up,
            test=self._test,
        )  # fmt: skip
        return replace(services, first=self._pairs.first, note=self._pairs.keep) if self.both else services

    def not_applicable(self, cell: Cell) -> CellResult:
        """The result of a cell that was never to be run."""
        return replace(self._begun(cell, None, None), status=CellStatus.NOT_APPLICABLE, reason=cell.not_applicable)

    def interrupted(self, cell: Cell) -> CellResult:
        """The result of a cell that the user did not wait for."""
        return judge.lost(self._begun(cell, None, None), Interrupted(STOPPED))

    def guest_packages(self) -> dict[str, list[dict[str, Any]]]:
        """What the guests of each architecture were made of, so far; what several say once."""
        found: dict[str, list[dict[str, Any]]] = {}
        own = [(arch, packages.provenance) for arch, packages in list(self._packages.items())]
        for arch, provenance in sorted([*self._noted.items(), *own], key=lambda row: row[0]):
            kept = found.setdefault(arch, [])
            kept += [package for package in provenance if package not in kept]
        return found

    def portable(self) -> dict[str, Any]:
        """The arguments that make the same judging on another machine, but for where it keeps things there."""
        own = {"store", "directory", "rerun"}
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name not in own and item.repr}

    def provide(self, spec: KernelSpec, on_event: Callable[[str], None]) -> tuple[Kernel, GuestPackages | None]:
        """A kernel and the packages of its guests, None where it needs none; both in the cache. CorematrixError."""
        return self._provide(spec, on_event), self._packages.get(spec.arch.name)

    def halt(self) -> None:
        """End every guest for good, those that are only coming up too; from any thread. What asked one gets Interrupted
        or GuestLostError.
        """
        self._halt()

    def adopt_packages(self, arch: str, packages: GuestPackages) -> None:
        """Take packages, unless there are some, and write down what the guests are made of before any of them runs: a
        run that goes on after this one was killed keeps its results, and must still know.
        """
        if arch not in self._packages:
            self._packages[arch] = packages
            self._write_packages()

    def note_packages(self, arch: str, provenance: Iterable[dict[str, Any]]) -> None:
        """What guests of an architecture were made of, where another machine or an earlier run had them; written down
        likewise.
        """
        known = self._noted.get(arch, ())
        new = tuple(package for package in provenance if package not in known)
        if new:
            self._noted[arch] = (*known, *new)
            self._write_packages()

    def _write_packages(self) -> None:
        with suppress(InfrastructureError), self._locks[PACKAGES]:  # a full disk: the verdicts matter more
            self.directory.write(PACKAGES, json.dumps(self.guest_packages(), indent=1))

    def _provide(self, spec: KernelSpec, on_event: Callable[[str], None]) -> Kernel:
        kernel = kernels.provide(spec, self.store, self.lock, on_event, options=self.apt)
        with suppress(CacheError):
            note_cached(self.store, kernel)
        if spec.backend not in backends.NEEDS_PACKAGES:
            return kernel
        with self._locks[spec.arch.name]:
            if spec.arch.name not in self._packages:
                debs = fetch_guest(self.guest, spec.arch, self.store, self.lock, on_event, options=self.apt)
                packages = GuestPackages(paths=debs.paths, provenance=tuple(debs.provenance()))
                self.adopt_packages(spec.arch.name, packages)
        return kernel

    def _open(self, kernel: Kernel, on_event: Callable[[str], None]) -> GuestSession:
        options = SessionOptions(
            store=self.store,
            packages=self._packages.get(kernel.spec.arch.name, _NO_PACKAGES),
            cold=self.cold,
            judge_seconds=self.timeout,
            on_event=on_event,
            on_console=lambda text: self._keep_console(kernel, text),
            halt=self._halt,
        )
        rules = self._pairs.rules if self.both else lambda _cell: None
        session = backends.open_session(kernel, options)
        equip = None
        if self.attach_files and kernel.spec.backend not in backends.MACHINES:  # those have their own
            execution.put(session, self.attach_files)
        if self.attach:
            equip = lambda data: spare_modules.hand_over(session, data, self.store, on_event)  # noqa: E731
        return _OpenSession(session, equip=equip, rules=rules)

    def _keep_console(self, kernel: Kernel, text: str) -> None:
        with suppress(InfrastructureError):  # a full disk: the verdicts matter more, and writing run.json says so
            self.directory.keep_console(kernel.spec.id, text)

    def _conclude(self, cell: Cell, kernel: Kernel, session: GuestSession | None, answer: Answer) -> CellResult:
        result = self._judged(cell, kernel, session, answer)
        if not self.both:
            return result
        self._pairs.keep(cell, answer)
        return self._pairs.compared(cell, result, answer)

    def _test(
        self, cell: Cell, result: CellResult, guest: Guest, on_progress: Callable[[dict[str, Any]], None]
    ) -> CellResult:
        if self.both and cell.loader == "libbpf":  # a test loads by itself: once is enough
            return result
        unasked = cell.kernel.backend in backends.MACHINES and not self.on_machines
        refuse = "it would run on a machine that is somebody's: --yes-on-this-machine" if unasked else None
        return functional.run_tests(
            self.functional, cell, result, session=lambda: _open_session(guest), end=guest.end,
            directory=self.directory, refuse=refuse, on_progress=on_progress,
        )  # fmt: skip

    def _judged(self, cell: Cell, kernel: Kernel, session: GuestSession | None, answer: Answer) -> CellResult:
        begun = self._begun(cell, kernel, session if isinstance(session, _OpenSession) else None)
        begun = replace(begun, attempts=answer.attempts)
        if answer.facts is None:
            assert answer.lost is not None
            at = f" (at program {answer.last_prog})" if answer.last_prog else ""
            return self._with_console(judge.lost(begun, answer.lost), at)
        expectations = self.expectations.get(cell.object.name, NONE)
        result = judge.classify(answer.facts, begun, expectations, today=self.today, crashed=answer.crashed_progs)
        if result.status is CellStatus.ERROR:  # no facts, whatever came: nothing else may be read from it
            return result
        tails = list(answer.crashed_progs.values())
        result = replace(result, console_tail=tails[-1] if tails else result.console_tail)
        result = self._predicted(cell, kernel, result, answer.facts)
        try:
            return self.directory.keep_logs(result, logs_of(answer.facts))
        except InfrastructureError as error:  # a full disk: the verdict matters more
            return replace(result, notes=(*result.notes, f"its verifier logs are lost: {error.message}"))

    def _predicted(self, cell: Cell, kernel: Kernel, result: CellResult, facts: dict[str, Any]) -> CellResult:
        """With what would have been predicted, held against what the kernel showed, and what checks protect where it
        showed nothing; as it is where there is no BTF to tell the verifier by. A fault in it is written down and costs
        the cell nothing.
        """
        if kernel.btf is None:
            return result
        try:
            features = (facts.get("guest") or {}).get("features") or {}
            data, model = bytes_of(cell.object), self._model(kernel.btf, kernel.btf_sha256).asked(features)
            result = replace(result, prediction=compare(result, facts, data, model))
            return with_protection(result, facts, data, model)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            return replace(result, prediction={"rules": [], "compared": 0, "disagreements": [], "reason": reason})

    def _model(self, btf: Path, sha256: str | None) -> Model:
        """The verifier behind a BTF. The cache remembers it: reading 100,000 types for five answers takes a third of a
        second of each kernel of a run.
        """
        with self._locks[str(btf)]:
            if str(btf) not in self._models:
                name = hashlib.sha256(f"{sha256} {RULES}".encode()).hexdigest()[:32]
                known = self.store.entry(_MODELS, name) if sha256 else None
                if known is None:
                    known = {"rules": sorted(model_from(guest_btf.load(str(btf))).rules)}
                    if sha256:
                        with suppress(CacheError):
                            self.store.put_entry(_MODELS, name, known)
                self._models[str(btf)] = Model(rules=frozenset(known["rules"]))
            return self._models[str(btf)]

    def _with_console(self, result: CellResult, at: str) -> CellResult:
        if result.console_tail:
            with suppress(InfrastructureError):  # the tail is in the result as well
                self.directory.write(f"consoles/{file_name(result.id)}.log", result.console_tail)
        return replace(result, reason=f"{result.reason}{at}")

    def _give_up(self, cell: Cell, kernel: Kernel | None, error: BaseException) -> CellResult:
        begun = self._begun(cell, kernel, None)
        if isinstance(error, CorematrixError):
            return judge.lost(begun, error)
        trace = "".join(traceback.format_exception(error))
        message = f"internal error: {type(error).__name__}: {error}"
        try:
            path = self.directory.write(f"internal-errors/{file_name(str(cell.id))}.log", trace)
        except CorematrixError as full:
            return judge.lost(begun, InfrastructureError(message, remedy=f"its details are lost ({full.message})"))
        return judge.lost(begun, InfrastructureError(message, remedy=f"please report it with {path}"))

    def _begun(self, cell: Cell, kernel: Kernel | None, session: _OpenSession | None) -> CellResult:
        spec = cell.kernel
        kernel = session.kernel if session else kernel
        return CellResult.begin(
            cell.id,
            KernelResult(
                id=spec.id,
                arch=spec.arch.name,
                release=(kernel.release or None) if kernel else None,
                variant=spec.variant,
                source=kernel.source if kernel else {},
                btf_sha256=kernel.btf_sha256 if kernel else None,
                config_sha256=kernel.config_sha256 if kernel else None,
            ),
            ObjectResult(name=cell.object.name, path=str(cell.object.path), sha256=cell.object.sha256),
            substituted=kernel.substituted if kernel else None,
            rerun=self.rerun(cell),
            **(session.provenance() if session else {}),
        )


def _open_session(guest: Guest) -> _OpenSession:
    session = guest.opened()
    assert isinstance(session, _OpenSession)
    return session


def note_cached(store: Store, kernel: Kernel) -> None:
    """Remember that this cache has a kernel: a hint, for who hands out work."""
    known = {"vmlinuz": kernel.vmlinuz_sha256}
    if store.entry(_CACHED, kernel.spec.id) != known:
        with suppress(CacheError):
            store.put_entry(_CACHED, kernel.spec.id, known)


def cached_kernels(store: Store) -> set[str]:
    """Ids of the kernels this cache is known to have."""
    names = {path.stem for path in (store.root / "entries" / _CACHED).glob("*.json")}
    noted = {name: store.entry(_CACHED, name) or {} for name in names}
    return {name for name, entry in noted.items() if store.blob(str(entry.get("vmlinuz"))) is not None}


def bytes_of(candidate: ObjectFile) -> bytes:
    """The object's bytes, if they are still those the run began with: a build under way must not pass for what it
    was.
    """
    data = candidate.path.read_bytes()
    if hashlib.sha256(data).hexdigest() != candidate.sha256:
        message = f"{candidate.path} has changed since the run began"
        raise InfrastructureError(message, remedy="run again when it is built")
    return data


class _OpenSession:
    """A `Backend` as the pool knows it. The object's bytes are read when they are sent and kept by nobody."""

    def __init__(
        self,
        session: backends.Backend,
        *,
        equip: Callable[[bytes], None] | None,
        rules: Callable[[Cell], str | None],
    ) -> None:
        """`equip`: what to do before an object is judged and attached; None: not attached."""
        self._session = session
        self._equip = equip
        self._rules = rules
        self._boot_seconds = session.provenance.seconds
        self._load_seconds = 0.0

    def ask(
        self,
        cell: Cell,
        *,
        progs: tuple[str, ...] | None,
        skip_progs: tuple[str, ...],
        on_progress: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        started = time.monotonic()
        request = JudgeRequest(
            name=cell.object.name, loader=cell.loader, settings=dict(cell.settings), progs=progs, skip_progs=skip_progs,
            attach=self._equip is not None, rules=self._rules(cell),
        )  # fmt: skip
        data = bytes_of(cell.object)
        try:
            if self._equip is not None:
                self._equip(data)
            return self._session.judge(request, data, on_progress)
        finally:
            self._load_seconds = time.monotonic() - started

    def execute(self, command: Command, *, seconds: float, on_output: OnOutput) -> Exit:
        """A command in it."""
        return execution.run(self._session, command, seconds=seconds, on_output=on_output)

    def close(self) -> None:
        self._session.close()

    @property
    def kernel(self) -> Kernel:
        return self._session.kernel

    def provenance(self) -> dict[str, Any]:
        """For the result just asked for. A boot's seconds count once: for the first cell it served."""
        found = self._session.provenance
        boot, self._boot_seconds = self._boot_seconds, 0.0
        seconds = {"boot": boot, "load": self._load_seconds, "total": boot + self._load_seconds}
        return {
            "accelerator": found.accelerator,
            "cpus": found.cpus,
            "qemu": found.qemu,
            "start": found.start,
            "notes": found.notes,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
