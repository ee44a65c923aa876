"""One guest's life: boot or restore, ask, collect, shut down. The one place where kernels, initramfs, QEMU and
transport meet.

    with Session(kernel, SessionOptions(store=store, packages=packages)) as session:
        facts = session.judge(JudgeRequest(name="task_state", loader="python"), data, on_progress)

Policy: a saved guest is restored; where there is none, the kernel is booted, saved, and what was saved is restored.
What cannot be saved or restored is booted. What comes out of a guest is untrusted: sizes, checksums, nonces and
deadlines are checked here and in `guest/wire.py`, the meaning of the facts in `judge/`.
"""

from __future__ import annotations

import json
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TextIO

from harness import boot, payload, proc
from harness.boot import Guest, GuestPackages, Recipe
from harness.errors import CacheError, CorematrixError, GuestLostError, InfrastructureError
from harness.guest.wire import WireError
from harness.model.kernel import Kernel
from harness.model.verdict import Start
from harness.store import Store
from harness.transport import ChannelClosedError, ChannelTimeoutError, question
from harness.vm import accelerator, qemu, snapshot
from harness.vm.deadlines import deadlines_on
from harness.vm.halt import Halt
from harness.vm.qmp import QmpError

_MAX_BLOB = 32 << 20


@dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """`cold`: boot although a saved guest exists, and save nothing. `accelerator` None: KVM where it works, else TCG.

    `judge_seconds` replaces the deadline of one request. `on_event` gets lines for people, `on_console` all that a
    guest's console said, once it has ended, from whatever thread ended it. `halt` ends the guest from another thread
    before there is a session. `sources` are the guest's own modules (what is in the package; tests add to them).
    """

    store: Store
    packages: GuestPackages
    cold: bool = False
    accelerator: Literal["kvm", "tcg"] | None = None
    judge_seconds: float | None = None
    on_event: Callable[[str], None] = lambda _line: None
    on_console: Callable[[str], None] = lambda _text: None
    halt: Halt = field(default_factory=Halt)
    sources: Mapping[str, bytes] = field(default_factory=payload.sources)


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """The request of docs/facts.md; `settings` are values as text."""

    name: str
    loader: str = "python"
    settings: Mapping[str, str] = field(default_factory=dict)
    progs: tuple[str, ...] | None = None
    skip_progs: tuple[str, ...] = ()
    evidence: bool = True
    attach: bool = False
    rules: str | None = None

    def message(self) -> dict[str, Any]:
        """As it travels."""
        return {
            "op": "judge", "name": self.name, "loader": self.loader, "settings": dict(self.settings),
            "progs": None if self.progs is None else list(self.progs), "skip_progs": list(self.skip_progs),
            "evidence": self.evidence, "attach": self.attach, "rules": self.rules,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How the guest came to be. `seconds` from start to its first answer; `notes` what did not go as usual, in words.
    """

    accelerator: str
    accelerator_reason: str
    qemu: str
    cpu: str
    cpus: int
    memory_mb: int
    start: Start
    seconds: float
    packages: tuple[dict[str, Any], ...]
    notes: tuple[str, ...] = ()


class Session:
    """A guest that answers. A context manager; `close` may be called from any thread, the rest from one at a time.

    Keep the thread that opens a session alive as long as the session: the guest dies with it (`proc.spawn`).
    """

    provenance: Provenance

    def __init__(self, kernel: Kernel, options: SessionOptions) -> None:
        """Start the guest and await its greeting. Raises GuestLostError when it does not come up, InfrastructureError
        when it cannot even be started.
        """
        self._kernel = kernel
        self._options = options
        self._notes: list[str] = []
        self._closed = False
        self._guest: Guest | None = None
        self._told: dict[Guest, object] = {}
        started = time.monotonic()
        self._accelerator = self._choose_accelerator()
        self._deadlines = deadlines_on(self._accelerator.name)
        self._recipe = self._make_recipe(self._accelerator.name)
        self._guest, start = self._begin()
        self._check_btf(self._guest)
        self.provenance = self._describe(start, time.monotonic() - started)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def judge(
        self, request: JudgeRequest, data: bytes, on_progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Ask for the verdict on an object's bytes; the guest's facts. `on_progress` gets each progress message.

        Raises GuestLostError: `crashed` (it died), `timeout`, or `error` (it spoke nonsense, or our code in it
        failed). The session is of no use afterwards.
        """
        if len(data) > _MAX_BLOB:
            message = f"{request.name}: {len(data)} bytes are more than an object may have ({_MAX_BLOB})"
            raise InfrastructureError(message)
        seconds = self._options.judge_seconds or self._deadlines.judge
        return self._ask(
            self._running(), request.message(), blob=data, seconds=seconds, wanted="facts", on_progress=on_progress
        )

    @property
    def console(self) -> str:
        """What the console said so far."""
        return "" if self._guest is None else self._guest.qemu.console.text()

    def close(self) -> None:
        """End the guest. Its memory is worth nothing and its disk does not exist: it is killed, not shut down."""
        self._closed = True
        guest, self._guest = self._guest, None
        if guest is not None:
            self._end(guest)

    def _end(self, guest: Guest) -> None:
        """End a guest, and hand on what its console said, once."""
        guest.end()
        mine = object()
        if self._told.setdefault(guest, mine) is mine:
            self._options.on_console(guest.qemu.console.text())

    # --- coming to be

    def _choose_accelerator(self) -> accelerator.Accelerator:
        wanted = self._options.accelerator
        if wanted is not None:
            return accelerator.Accelerator(name=wanted, reason="asked for")
        arch = self._kernel.spec.arch
        return accelerator.choose(arch, qemu.version(qemu.binary(arch)), self._options.store, self._try_kvm)

    def _try_kvm(self) -> None:
        """Boot this kernel with KVM, for `accelerator.choose`."""
        guest = self._started(boot.start_cold(self._make_recipe(accelerator.KVM), savable=False))
        try:
            self._hello(guest, accelerator.PROBE_SECONDS)
        finally:
            self._end(guest)

    def _make_recipe(self, name: str) -> Recipe:
        options = self._options
        return Recipe(
            kernel=self._kernel, packages=options.packages, store=options.store, accelerator=name,
            sources=dict(options.sources),
        )  # fmt: skip

    def _begin(self) -> tuple[Guest, Start]:
        """A guest that has said hello, and how it started."""
        if self._options.cold or not self._goes_on():
            return self._boot(savable=False), Start.COLD
        key = self._recipe.key()
        guest = self._restore(key)
        if guest is not None:
            return guest, Start.RESTORED
        with self._options.store.lock(f"guest {key}"):
            # Whoever held the lock before us may just have saved it.
            guest = self._restore(key)
            if guest is not None:
                return guest, Start.RESTORED
            obstacle = snapshot.obstacle(self._options.store, self._kernel.spec.memory_mb)
            if obstacle is None:
                self._save(key)
            else:
                self._note(f"the guest was not saved: {obstacle}")
        guest = self._restore(key)
        return (guest, Start.RESTORED) if guest is not None else (self._boot(savable=False), Start.COLD)

    def _goes_on(self) -> bool:
        """Whether a guest of this architecture would go on where it was saved."""
        return self._accelerator.name != accelerator.TCG or self._kernel.spec.arch.saved

    def _restore(self, key: str) -> Guest | None:
        """The saved guest, come up, or None where there is none or it does not come up (which is noted, and it is
        dropped).
        """
        store = self._options.store
        saved = snapshot.find(store, key)
        if saved is None:
            return None
        try:
            return self._greeted(self._started(boot.start_saved(self._recipe, saved)), self._deadlines.restore)
        except (GuestLostError, CacheError, OSError) as error:
            self._options.halt.check()
            self._note(f"the saved guest did not come up and was dropped: {error}")
            snapshot.drop(store, key)
            return None

    def _boot(self, *, savable: bool) -> Guest:
        return self._greeted(self._started(boot.start_cold(self._recipe, savable=savable)), self._deadlines.boot)

    def _started(self, guest: Guest) -> Guest:
        """A guest that runs and has not come up, so that it can be ended meanwhile."""
        try:
            self._options.halt.add(guest.qemu)
        except BaseException:
            self._end(guest)
            raise
        return guest

    def _save(self, key: str) -> None:
        """Boot a guest and save it; what cannot be saved is noted, and the caller boots cold. A kernel that dies of the
        object it is warmed with (guarded poison kills one that does not sanitise dead code) is saved without.
        """
        trouble = self._try_to_save(key, payload.WARM_ROUNDS)
        if isinstance(trouble, GuestLostError) and trouble.status == "crashed":
            self._note(f"the kernel died of the object it is warmed with, and is saved without: {trouble.message}")
            trouble = self._try_to_save(key, 0)
        if trouble is not None:
            reason = trouble.message if isinstance(trouble, CorematrixError) else str(trouble)
            self._note(f"the guest could not be saved: {reason}")

    def _try_to_save(self, key: str, rounds: int) -> CorematrixError | OSError | None:
        """Boot, warm by judging an object `rounds` times, save; what went wrong, None when nothing did. Raises what
        booting raises.
        """
        guest = self._boot(savable=True)
        try:
            warming = self._warming(rounds)
            self._ask(guest, warming, blob=payload.warm_object(), seconds=self._deadlines.boot, wanted="warm")
            guest.channel.close()
            assert guest.memory is not None
            deadline = time.monotonic() + self._deadlines.save
            about = {"kernel": self._kernel.spec.id, "release": self._kernel.release}
            snapshot.save(self._options.store, key, guest.qemu.monitor, guest.memory, deadline, about=about)
        except (CorematrixError, OSError) as error:
            return error
        finally:
            self._end(guest)
        return None

    def _greeted(self, guest: Guest, seconds: float) -> Guest:
        try:
            deadline = time.monotonic() + seconds
            guest.qemu.monitor.negotiate(deadline)
            if guest.incoming is not None:
                snapshot.load(guest.qemu.monitor, guest.incoming, deadline)
            if guest.speaks_first:
                self._await_ready(guest, seconds)
            self._hello(guest, seconds)
        except BaseException as error:
            if isinstance(error, QmpError):
                old = qemu.older_than_needed(qemu.version(self._recipe.qemu))
                what = "QEMU ended before the guest came up" + (f" ({old})" if old else "")
                lost = self._lost(guest, what, "crashed")
                raise lost from error
            self._end(guest)
            raise
        return guest

    def _hello(self, guest: Guest, seconds: float) -> dict[str, Any]:
        message = {"op": "hello", "time_ns": time.time_ns(), "entropy": secrets.token_hex(32)}
        answer = self._ask(guest, message, seconds=seconds, wanted="hello")
        known = answer.get("guest")
        if not isinstance(known, dict) or not isinstance(known.get("btf", {}), dict):
            with self._losses(guest, "hello", seconds):
                raise WireError("a greeting that does not say who it is")  # noqa: EM101
        return answer

    def _await_ready(self, guest: Guest, seconds: float) -> None:
        """On a UART nothing may be said before the guest listens: it speaks first."""
        with self._losses(guest, "ready", seconds):
            answer = guest.channel.receive(time.monotonic() + seconds)
            if answer.message.get("type") != "ready":
                raise WireError(question.unexpected(answer.message, "ready"))

    def _check_btf(self, guest: Guest) -> None:
        """A BTF from elsewhere is noted with what is known of it. UsageError when it is another kernel's."""
        if not self._kernel.btf_external:
            return
        from harness.kernels import external_btf

        try:
            known = self._hello(guest, self._deadlines.boot)["guest"].get("btf", {})
            note = external_btf.note(self._kernel, known)
        except BaseException:
            self.close()
            raise
        if note is not None:
            self._note(note)

    def _warming(self, rounds: int) -> dict[str, Any]:
        """The request that has a guest import all its modules, those for the command line and PID 1 left out, and judge
        an object so many times.
        """
        names = (name.removesuffix(".py").replace("/", ".") for name in sorted(self._options.sources))
        modules = [name for name in names if name.startswith("guest.") and not name.endswith(("__init__", "__main__"))]
        rounds = rounds if "guest.object_judge" in modules else 0  # a test's guest may have no loader
        return {**JudgeRequest(name="warm.bpf.o").message(), "op": "warm", "modules": modules, "rounds": rounds}

    def _describe(self, start: Start, seconds: float) -> Provenance:
        return Provenance(
            accelerator=self._accelerator.name, accelerator_reason=self._accelerator.reason,
            qemu=qemu.version(self._recipe.qemu), cpu=self._recipe.cpu, cpus=boot.CPUS,
            memory_mb=self._kernel.spec.memory_mb, start=start, seconds=round(seconds, 3),
            packages=self._options.packages.provenance, notes=tuple(self._notes),
        )  # fmt: skip

    def _note(self, line: str) -> None:
        self._notes.append(line)
        self._options.on_event(f"{self._kernel.spec.id}: {line}")

    # --- asking

    def _running(self) -> Guest:
        if self._guest is None:
            message = f"{self._kernel.spec.id}: the guest has been shut down"
            raise GuestLostError(message, status="error")
        return self._guest

    def _ask(
        self, guest: Guest, message: dict[str, Any], *, blob: bytes = b"", seconds: float, wanted: str,
        on_progress: Callable[[dict[str, Any]], None] = lambda _message: None,
    ) -> dict[str, Any]:  # fmt: skip
        """Send one request and take its answer of type `wanted`, whatever else the guest does in the meantime."""
        with self._losses(guest, message["op"], seconds):
            return question.ask(
                guest.channel, message, blob=blob, seconds=seconds, wanted=wanted, on_progress=on_progress
            )

    @contextmanager
    def _losses(self, guest: Guest, operation: str, seconds: float) -> Iterator[None]:
        """What can go wrong on the way, as GuestLostError."""
        what = f"during {operation!r}"
        try:
            yield
        except ChannelClosedError as error:
            raise self._lost(guest, f"the guest died {what}", "crashed") from error
        except ChannelTimeoutError as error:
            half = f" ({guest.channel.pending} bytes of an answer had come)" if guest.channel.pending else ""
            raise self._lost(guest, f"the guest did not answer {what} within {seconds:g} s{half}", "timeout") from error
        except WireError as error:
            raise self._lost(guest, f"the guest spoke nonsense {what}: {error}", "error") from error

    def _lost(self, guest: Guest, message: str, status: str) -> GuestLostError:
        """End the guest and say how it died: the kernel's own words where it had some, QEMU's where it could not
        start.
        """
        ended = guest.qemu.wait(1.0) if status == "crashed" else None  # by itself, before we kill it
        self._end(guest)
        console = guest.qemu.console
        if console.blames_us():
            status = "error"
        words = console.last_words()
        said = guest.qemu.stderr()
        killed = f"QEMU was killed by {proc.signal_name(-ended)}" if ended is not None and ended < 0 else None
        details = "; ".join(part for part in (words, killed, said and f"QEMU: {said}") if part)
        text = f"{self._kernel.spec.id}: {message}" + (f": {details}" if details else "")
        return GuestLostError(text, status=status, console_tail=console.tail())


def main(words: list[str], out: TextIO, err: TextIO) -> int:
    """`python -m harness.session KERNEL_ID OBJECT [--cold]`: this stage alone. Facts as JSON on `out`, the rest on
    `err`.
    """
    from harness import kernels
    from harness.apt.guest import fetch_guest
    from harness.kernels.__main__ import DEBIAN, GUEST
    from harness.kernels.debian import debian_spec

    if len(words) < 2:
        err.write("usage: python -m harness.session KERNEL_ID OBJECT [--cold]\n")
        return 2

    def say(line: str) -> None:
        err.write(line + "\n")

    identity, path, *rest = words
    with Store.default() as store:
        try:
            kernel = kernels.provide(debian_spec(identity, DEBIAN), store, None, say)
            debs = fetch_guest(GUEST, kernel.spec.arch, store, None, say)
            packages = GuestPackages(paths=debs.paths, provenance=tuple(debs.provenance()))
            options = SessionOptions(store=store, packages=packages, cold="--cold" in rest, on_event=say)
            with Session(kernel, options) as session:
                say(f"{session.provenance.start} in {session.provenance.seconds} s, {session.provenance.accelerator}")
                request = JudgeRequest(name=path)
                facts = session.judge(request, Path(path).read_bytes(), lambda message: say(json.dumps(message)))
        except CorematrixError as error:
            say(str(error))
            return error.exit_status
    out.write(json.dumps(facts, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdout, sys.stderr))
