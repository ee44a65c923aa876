"""What libbpf decided, read from what it says: the messages of libbpf_set_print() at debug level.

The sentences are those of libbpf.c (bpf_object__relocate_core, bpf_object__resolve_externs) and relo_core.c
(bpf_core_calc_relo_insn, bpf_core_patch_insn), the same from 1.0 to 1.7; only errno is spelled as a name since 1.6.
"""

from __future__ import annotations

import errno as _errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

LEVEL_WARN, LEVEL_INFO, LEVEL_DEBUG = 0, 1, 2
_ERROR_TEXT_MAX = 4000


class Decision:
    """What libbpf made of one CO-RE record.

    `prog` is the function's name, `local_spec` and `target_spec` libbpf's text, `candidates` a list of (number, text,
    matching), `insn` counts in the function. `patched` maps "imm", "off" or "imm64" to (before, after) and "mem_sz" to
    the sizes; `poisoned` is true for the invalid call, `why` libbpf's reason for it, `fatal` the message it gave up
    with.
    """

    __slots__ = (
        "candidates",
        "fatal",
        "fatal_errno",
        "insn",
        "local_spec",
        "patched",
        "poisoned",
        "prog",
        "target_spec",
        "why",
    )

    def __init__(self, prog: str) -> None:
        self.prog = prog
        self.insn: int | None = None
        self.local_spec: str | None = None
        self.target_spec: str | None = None
        self.candidates: list[tuple[int, str, bool]] = []
        self.patched: dict[str, tuple[int, int]] = {}
        self.poisoned = False
        self.why: str | None = None
        self.fatal: str | None = None
        self.fatal_errno: int | None = None


class DebugLog:
    """Feed it every message; read the attributes when the load is over.

    `decisions` has a Decision for each (section name, number of the record in its section), `found` the candidates by
    local type id as (id, name, where), `externs` what was said of each extern by name, `warnings` the texts of level
    warn, `appended` the subprograms behind each entry program as (name, instructions) in order, `refused` the program
    whose load libbpf gave up before asking the kernel as (name, errno).
    """

    def __init__(self) -> None:
        self.decisions: dict[tuple[str, int], Decision] = {}
        self.found: dict[int, list[tuple[int, str, str]]] = {}
        self.externs: dict[str, dict[str, Any]] = {}
        self.warnings: list[str] = []
        self.appended: dict[str, list[tuple[str, int]]] = {}
        self.refused: tuple[str, int | None] | None = None
        self._section = ""

    def feed(self, level: int, text: str) -> None:
        """One message, as the print callback got it: "libbpf: ...\\n"."""
        text = text.removeprefix("libbpf: ").rstrip()
        if level == LEVEL_WARN:
            self.warnings.append(text[:_ERROR_TEXT_MAX])
        for opening, reader in _READERS:
            if text.startswith(opening):
                reader(self, text, level)
                return

    # sec 'raw_tp/x': found 4 CO-RE relocations
    def _on_section(self, text: str, _level: int) -> None:
        name, _, rest = text[5:].rpartition("': ")
        if rest.endswith("CO-RE relocations"):
            self._section = name

    # CO-RE relocating [13] struct task_struct: found target candidate [114] struct task_struct in [vmlinux]
    def _on_candidate(self, text: str, _level: int) -> None:
        local, _, target = text.partition(": found target candidate [")
        if not target:
            return
        number, _, rest = target.partition("] ")
        name, _, where = rest.rpartition(" in [")
        self.found.setdefault(int(_between(local, "[", "]")), []).append((int(number), name, where.rstrip("]")))

    # prog 'a': relo #0: ...   and   prog 'a': failed to prepare load attributes: -3
    def _on_prog(self, text: str, level: int) -> None:
        name, _, rest = text[6:].partition("': ")
        if rest.startswith("relo #"):
            number, _, what = rest[6:].partition(": ")
            self._on_relo(name, int(number), what, level)
        elif rest.startswith("added ") and " insns from sub-prog '" in rest:
            self.appended.setdefault(name, []).append((_between(rest, "'", "'"), int(rest.split(" ", 2)[1])))
        elif rest.startswith(_REFUSALS):
            _, _, number = rest.partition("attributes: ")
            self.refused = (name, parse_errno(number) if number else _errno.EINVAL)

    def _on_relo(self, prog: str, number: int, what: str, level: int) -> None:
        key = (self._section, number)
        decision = self.decisions.get(key)
        if decision is None:
            decision = self.decisions[key] = Decision(prog)
        if what.startswith(("matching candidate #", "non-matching candidate #")):
            matching = what[0] == "m"
            index, _, spec = what.partition("#")[2].partition(" ")
            decision.candidates.append((int(index), spec, matching))
            if matching and decision.target_spec is None:
                decision.target_spec = spec
        elif what.startswith("patched insn #"):
            _note_patch(decision, what)
        elif what.startswith("substituting insn #"):
            decision.poisoned = True
            decision.insn = int(_between(what, "#", " "))  # ldimm64 names its second slot first: the last one counts
        elif what.startswith("no matching targets found"):
            decision.why = what
        elif level == LEVEL_WARN:
            _note_complaint(decision, what)
        elif what.startswith("<"):
            decision.local_spec = what

    # extern (kcfg) #0: symbol 18, off 0, name CONFIG_HZ
    # extern (kcfg) 'CONFIG_HZ': set to 0xfa
    # extern 'x' (weak): not resolved, defaulting to zero
    def _on_extern(self, text: str, level: int) -> None:
        numbered = ") #" in text[:20]
        name = text.rpartition(", name ")[2] if numbered else _between(text, "'", "'")
        unknown = dict.fromkeys(("kind", "outcome", "value", "reason", "weak", "off"))
        entry = self.externs.setdefault(name, unknown)
        if numbered and ", off " in text:
            entry["off"] = int(_between(text, ", off ", ","))
        if "(" in text[:8]:
            entry["kind"] = _EXTERN_KINDS.get(_between(text, "(", ")"))
        said = text.partition("': ")[2]
        if text.startswith("extern '"):
            entry["weak"] = "(weak)" in text
            entry["outcome"] = "missing"
        elif said.startswith("set to "):
            entry["outcome"], entry["value"] = "resolved", said[7:]
        elif said.startswith("resolved to "):
            entry["outcome"], entry["value"] = "resolved", said[12:]
        elif level == LEVEL_WARN:
            entry["outcome"], entry["reason"] = "error", said


# What libbpf says of a program that it does not even ask the kernel for.
_REFUSALS = (
    "failed to prepare load attributes: ", "missing BPF prog type", 'SEC("struct_ops") program isn\'t referenced'
)  # fmt: skip

_EXTERN_KINDS = {"kcfg": "kconfig", "ksym": "ksym", "var ksym": "ksym", "func ksym": "kfunc"}

_READERS = (
    ("prog '", DebugLog._on_prog),
    ("sec '", DebugLog._on_section),
    ("CO-RE relocating [", DebugLog._on_candidate),
    ("extern ", DebugLog._on_extern),
)


def _between(text: str, left: str, right: str) -> str:
    return text.partition(left)[2].partition(right)[0]


def parse_errno(text: str) -> int | None:
    """-3 or -ESRCH (errstr() of 1.6 and later), as a positive number; None when it is neither."""
    text = text.strip().lstrip("-")
    if text.isdigit():
        return int(text)
    return getattr(_errno, text, None)


def _note_patch(decision: Decision, what: str) -> None:
    """`patched insn #14 (ALU/ALU64) imm 0 -> 1264`: values are unsigned 64-bit as libbpf prints them."""
    head, _, rest = what.partition(") ")
    field, _, values = rest.partition(" ")
    before, _, after = values.partition(" -> ")
    decision.insn = int(_between(head, "#", " "))
    decision.patched[field] = (int(before), int(after))


def _note_complaint(decision: Decision, what: str) -> None:
    """A warning: an unsafe access is followed by the poison, everything else by `failed to relocate` or `failed to
    patch`.
    """
    if "accesses field incorrectly" in what:
        decision.why = what
    elif what.startswith(("failed to relocate", "failed to patch insn")):
        decision.fatal = decision.fatal or what
        decision.fatal_errno = parse_errno(what.rpartition(": ")[2])
    else:
        decision.fatal = what
