"""All CO-RE relocations of one object, as libbpf makes them: the object as a whole, with its own autoload set.

libbpf gives up at the first relocation that is fatal (bpf_object__relocate_core() returns its errno). Here the object
is then relocated again without the program that holds it, so that the others can still be judged `alone`.
"""

from __future__ import annotations

from .core_relo import CoreRelo, CoreRun, Rules, Targets, relocate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .bpf_object import BpfObject, Prog
    from .errors import CoreError
    from .judge import Machine
    from .linking import Linked

_MAX_FATAL = 64


class ObjectRelos:
    """Attributes: `relos` in record order, those that are fatal included; `skipped` counts what libbpf passes over;
    `error` is where libbpf gives up: {"errno", "message", "relo" (a position in `relos`)}, or None.
    """

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self.relos: list[CoreRelo] = []
        self.skipped = 0
        self.error: dict[str, Any] | None = None
        self._index: dict[tuple[str, int, int], int] = {}
        self._broken: dict[int, CoreError] = {}  # id of a Prog -> what is fatal in it

    def relocate(self, obj: BpfObject, machine: Machine) -> None:
        """Change the instructions of every program of the object. Raises what BTF that is damaged raises."""
        pristine = {id(prog): bytes(prog.insns) for prog in obj.progs}
        autoload = {id(prog): prog.autoload for prog in obj.progs}
        fatal: list[CoreRelo] = []
        for _ in range(_MAX_FATAL):
            modules = None if machine.btf_override else lambda: [(one.name, one.btf) for one in machine.modules()]
            run = relocate(obj, Targets(machine.btf, modules), self._rules)
            if run.error is None:
                break
            fatal.append(run.relos[-1])
            self._note_fatal(run, fatal)
            for prog in obj.progs:
                prog.insns[:] = pristine[id(prog)]
            fatal[-1].prog.autoload = False
        self._take(run, fatal)
        for prog in obj.progs:
            prog.autoload = autoload[id(prog)]

    def _note_fatal(self, run: CoreRun, fatal: list[CoreRelo]) -> None:
        assert run.error is not None
        if len(fatal) == 1:
            self.skipped = run.skipped
            message = f"prog '{fatal[0].prog.name}': insn #{fatal[0].insn}: {run.error.message}"
            self.error = {"errno": run.error.errno, "message": message, "relo": len(run.relos) - 1}
        self._broken[id(fatal[-1].prog)] = run.error

    def _take(self, run: CoreRun, fatal: list[CoreRelo]) -> None:
        """All in one list: those of the run that went through, with the fatal ones in record order."""
        if not fatal:
            self.skipped = run.skipped
        self.relos = list(run.relos) if run.error is None else run.relos[:-1]
        for relo in fatal:
            where = next((i for i, r in enumerate(self.relos) if r.place > relo.place), len(self.relos))
            self.relos.insert(where, relo)
        for index, relo in enumerate(self.relos):
            self._index[(relo.prog.name, relo.prog.sec_idx, relo.insn)] = index
        if self.error is not None:
            self.error["relo"] = self.relos.index(fatal[0])

    def of(self, linked: Linked) -> list[dict[str, int]]:
        """Those in a linked program: position in `relos`, instruction in the final sequence."""
        starts = {(f.prog.name, f.prog.sec_idx): f.start for f in linked.funcs}
        return [
            {"relo": index, "insn": starts[(name, sec_idx)] + insn}
            for (name, sec_idx, insn), index in self._index.items()
            if (name, sec_idx) in starts
        ]

    def fatal_in(self, prog: Prog) -> CoreError | None:
        """What is fatal in a program or subprogram, by itself."""
        return self._broken.get(id(prog))

    def facts(self) -> list[dict[str, Any]]:
        """The `core_relos` of the answer (docs/facts.md)."""
        return [{**relo.as_dict(), "index": index} for index, relo in enumerate(self.relos)]
