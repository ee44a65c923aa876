"""What a test may claim of a judged object, and a failure that explains: the ledger of what was found instead.

    judged = kernel.load("build/task_state.bpf.o")          # harness.pytest_plugin
    judged.assert_guarded("task_struct.__state", program="state_each")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from harness import ci_log
from harness.judge.explain import why
from harness.model.reading import matches
from harness.model.result import CellResult, ProgResult, Relocation
from harness.model.verdict import Evidence, Liveness, Outcome, Verdict
from harness.report import untrusted
from harness.report.junit import state
from harness.report.ledger import relation_of

_Placed = tuple[ProgResult, Relocation]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One object on one kernel. `cell` is the whole result, as in the run's JSON."""

    cell: CellResult

    @property
    def progs(self) -> dict[str, ProgResult]:
        """The programs by name."""
        return {prog.name: prog for prog in self.cell.progs}

    def assert_loaded(self, program: str = "*") -> None:
        """Every program that the glob matches was accepted by the kernel."""
        __tracebackhide__ = True
        self._verdict(program, "loaded", lambda prog: prog.verdict is Verdict.LOADED)

    def assert_rejected(self, program: str = "*", *, stage: str | None = None) -> None:
        """Every program that the glob matches was refused (at that stage: open, externs, core, maps, ...)."""
        __tracebackhide__ = True
        wanted = f"rejected at {stage}" if stage else "rejected"
        self._verdict(
            program, wanted, lambda prog: prog.verdict is Verdict.REJECTED and stage in {None, str(prog.stage)}
        )

    def assert_as_expected(self) -> None:
        """Everything that the expectations file beside the object says (docs/expectations.md), or that all load."""
        __tracebackhide__ = True
        broken = [f"{prog.name}: {text}" for prog in self.cell.progs for text in prog.unmet]
        if self.cell.status != "passed":
            self._fail(f"{self.cell.status}: {self.cell.reason or 'no reason recorded'}", broken)

    def assert_resolved(self, field: str, *, program: str = "*", kind: str | None = None) -> None:
        """Every relocation of the field found its target, and the verifier reaches it."""
        __tracebackhide__ = True
        self._relocations(field, program, kind, "resolved and live", _is_resolved)

    def assert_poisoned(self, field: str, *, program: str = "*", kind: str | None = None) -> None:
        """Every relocation of the field has no target here, and the verifier reaches it: the program is broken."""
        __tracebackhide__ = True
        self._relocations(field, program, kind, "poisoned and live", _is_poisoned)

    def assert_guarded(self, field: str, *, program: str = "*", kind: str | None = None) -> None:
        """Every relocation of the field lives or dies by an existence check: none is poisoned and reached, and the
        kernel showed which check decides.
        """
        __tracebackhide__ = True
        self._relocations(field, program, kind, "guarded by an existence check", _is_guarded)

    def _verdict(self, program: str, wanted: str, holds: Callable[[ProgResult], bool]) -> None:
        __tracebackhide__ = True
        chosen = [prog for prog in self.cell.progs if matches((program,), prog.name)]
        if not chosen:
            names = ", ".join(self.progs) or "none"
            self._fail(f"no program {program!r} in {self.cell.object.name}; there are: {names}")
        broken = [prog for prog in chosen if not holds(prog)]
        if broken:
            names = ", ".join(prog.name for prog in broken)
            self._fail(f"{names}: expected {wanted}", (line for prog in broken for line in _of_program(prog)))

    def _relocations(
        self, field: str, program: str, kind: str | None, wanted: str, holds: Callable[[Relocation], bool]
    ) -> None:
        __tracebackhide__ = True
        chosen = [
            (prog, relo) for prog in self.cell.progs if matches((program,), prog.name) for relo in prog.core_relos
            if matches((field,), relo.field) and (relo.kind == kind if kind else not relo.is_guard)
        ]  # fmt: skip
        if not chosen:
            self._fail(f"no relocation of {field} ({kind or 'other than a check'}) in {program}", self._fields())
        broken = [(prog, relo) for prog, relo in chosen if not holds(relo)]
        if broken:
            self._fail(f"{field}: expected to be {wanted}", self._ledger(broken))

    def _fields(self) -> Iterator[str]:
        """What there is, for who misspelt a field."""
        fields = dict.fromkeys(f"{relo.field} ({relo.kind})" for prog in self.cell.progs for relo in prog.core_relos)
        yield "there are: " + (", ".join(fields) or "no relocations at all")

    def _ledger(self, broken: Iterable[_Placed]) -> Iterator[str]:
        progs: dict[str, ProgResult] = {}
        for prog, relo in broken:
            progs[prog.name] = prog
            place = f"{relo.source.file}:{relo.source.line}: {relo.source.text}" if relo.source else "(no source line)"
            yield f"{prog.name}: {relo.field} {relo.kind} is {state(relo)}"
            yield f"    {place}"
            yield from (f"    {text}" for text in (why(relo), relation_of(relo)) if text)
        for prog in progs.values():
            yield from _of_program(prog)

    def _fail(self, what: str, lines: Iterable[str] = ()) -> None:
        __tracebackhide__ = True
        release = f" ({self.cell.kernel.release})" if self.cell.kernel.release else ""
        text = [f"{self.cell.id}{release}: {what}", *(f"  {line}" for line in lines), f"  rerun: {self.cell.rerun}"]
        raise AssertionError(ci_log.plain(untrusted.lines("\n".join(text))))


def _is_resolved(relo: Relocation) -> bool:
    return relo.outcome is Outcome.RESOLVED and relo.liveness is Liveness.LIVE


def _is_poisoned(relo: Relocation) -> bool:
    return relo.outcome is Outcome.POISONED and relo.liveness is Liveness.LIVE


def _is_guarded(relo: Relocation) -> bool:
    proven = any(ref.evidence is not Evidence.PREDICTED for ref in relo.guarded_by)
    return proven and not relo.is_broken and relo.liveness in {Liveness.LIVE, Liveness.ELIMINATED}


def _of_program(prog: ProgResult) -> Iterator[str]:
    at = f" at {prog.stage}" if prog.stage else ""
    yield f"{prog.name} is {prog.verdict}{at}{f': {prog.error}' if prog.error else ''}"
    yield from (f"    {text}" for text in prog.explanation)
    excerpt = prog.verifier.log_excerpt if prog.verifier else None
    yield from (f"    │ {line}" for line in (excerpt or "").splitlines())
