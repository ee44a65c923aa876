"""CO-RE relocation of a whole object, as libbpf does it: the one engine of guest and host (bpf_object__relocate_core).

    targets = Targets(btf.load("/sys/kernel/btf/vmlinux"), modules=lambda: [("nf_tables", split_btf), ...])
    run = relocate(BpfObject(data), targets)      # patches Prog.insns in place
    for relo in run.relos: relo.as_dict()         # a line of `inspect --format jsonl`
    run.error                                     # CoreError when libbpf would give up on the object, else None

Relocations depend on earlier ones: candidates that did not match are dropped for the rest of the object.
"""

from __future__ import annotations

from .btf import Btf
from .core_match import Matcher, find_candidates
from .core_patch import held_value, patch
from .core_spec import (
    BPF_CORE_TYPE_ID_LOCAL,
    FIELD_KINDS,
    Spec,
    format_spec,
    kind_word,
    parse_spec,
    path_text,
    type_text,
)
from .core_value import Result, Value, calc, describe
from .errors import EINVAL, ESRCH, CoreError, GuestError, MalformedBtf
from .insn import INSN_SIZE, LDIMM64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from .bpf_object import BpfObject, Prog

# What changed in libbpf, by the first release that has it; 1.8.0 stands for the development tree of July 2026.
_SINCE = {"array_element_size": (1, 6), "negative_index_refused": (1, 8)}
NEWEST_RULES = "1.8.0"


class Rules:
    """libbpf's rules at a version ("1.5.0"; None: the newest). ValueError for what is no version.

    `array_element_size`: loads from an array member are sized by the element; `negative_index_refused`: in access
    strings.
    """

    __slots__ = ("array_element_size", "negative_index_refused", "version")

    def __init__(self, version: str | None = None) -> None:
        self.version = version or NEWEST_RULES
        number = tuple(int(word) for word in self.version.split(".")[:2])
        self.array_element_size = number >= _SINCE["array_element_size"]
        self.negative_index_refused = number >= _SINCE["negative_index_refused"]


class Targets:
    """Where target types come from: `main` (vmlinux, or the BTF given instead), and `modules`, a function that returns
    (name, split Btf) pairs in BPF_BTF_GET_NEXT_ID order, called only when `main` has no candidate. None: a BTF was
    given explicitly, libbpf then looks at no modules.
    """

    def __init__(self, main: Btf | None, modules: Callable[[], list[tuple[str, Btf]]] | None = None) -> None:
        self.main = main
        self._modules = modules
        self._loaded: list[tuple[str, Btf]] | None = None

    def candidates(self, local_btf: Btf, local_id: int) -> list[tuple[Btf, int, str | None]]:
        """(BTF, type id, module name or None) for all a local type may be (bpf_core_find_cands)."""
        assert self.main is not None
        local = local_btf.type(local_id)
        found: list[tuple[Btf, int, str | None]] = [(self.main, id_, None) for id_ in find_candidates(local, self.main)]
        if found or self._modules is None:
            return found
        if self._loaded is None:
            self._loaded = self._modules()
        return [(btf, id_, name) for name, btf in self._loaded for id_ in find_candidates(local, btf)]


class CoreRelo:
    """What became of one relocation record; `prog` is the Prog that holds the instruction, `insn` counts within it.

    Other attributes are the keys of contract.md's line: `kind`, `local_spec`, `target_spec`, `outcome`, `orig_value`,
    `new_value`, `before`, `after` (bytes), `reason`, `local`, `target`, `candidates`, `source`.
    """

    __slots__ = (
        "after", "before", "candidates", "insn", "kind", "local", "local_spec", "new_value",
        "orig_value", "outcome", "prog", "reason",
        "source", "target", "target_spec",
    )  # fmt: skip

    def __init__(self, prog: Prog, insn: int, kind: int) -> None:
        self.prog = prog
        self.insn = insn
        self.kind = kind_word(kind)
        self.local_spec: str | None = None
        self.target_spec: str | None = None
        self.outcome = "error"
        self.orig_value: int | None = None
        self.new_value: int | None = None
        self.before = b""
        self.after = b""
        self.reason: str | None = None
        self.local: dict[str, object] | None = None
        self.target: dict[str, object] | None = None
        self.candidates: list[dict[str, object]] = []
        self.source: dict[str, object] | None = None

    @property
    def place(self) -> tuple[int, int]:
        """Where its instruction stands in the object: section and instruction."""
        return self.prog.sec_idx, self.prog.sec_insn_off + self.insn

    def as_dict(self) -> dict[str, object]:
        """The line of contract.md."""
        return {
            "type": "core_relo",
            "prog": self.prog.name,
            "section": self.prog.section,
            "insn": self.insn,
            "kind": self.kind,
            "local_spec": self.local_spec,
            "target_spec": self.target_spec,
            "outcome": self.outcome,
            "orig_value": self.orig_value,
            "new_value": self.new_value,
            "before": self.before.hex(),
            "after": self.after.hex(),
            "reason": self.reason,
            "local": self.local,
            "target": self.target,
            "candidates": self.candidates,
            "source": self.source,
        }


class CoreRun:
    """All relocations of an object: `relos` (CoreRelo, in record order), `skipped` (records of programs that are not
    loaded or do not exist), `error` (CoreError or None; it belongs to the last of `relos`, or to none of them when a
    record names no instruction).
    """

    def __init__(self) -> None:
        self.relos: list[CoreRelo] = []
        self.skipped = 0
        self.error: CoreError | None = None


def relocate(obj: BpfObject, targets: Targets, rules: Rules | None = None) -> CoreRun:
    """Relocate all autoloaded programs and all subprograms of `obj` in place; stops at the first fatal relocation.

    Raises nothing for a bad relocation (see CoreRun.error); MalformedBtf when the target BTF is broken where it is
    needed.
    """
    return _Relocator(obj, targets, rules or Rules()).run()


class _Relocator:
    def __init__(self, obj: BpfObject, targets: Targets, rules: Rules) -> None:
        self.obj = obj
        self.targets = targets
        self.rules = rules
        self.cache: dict[int, list[tuple[Btf, int, str | None]]] = {}  # by LOCAL type id, pruned as relocations pass
        self.matchers: dict[int, Matcher] = {}
        self.lines = SourceLines(obj)
        self.result = CoreRun()

    def run(self) -> CoreRun:
        obj, run = self.obj, self.result
        if obj.btf is None or obj.btf_ext is None:
            return run
        for info in obj.btf_ext.core_relos:
            name = _section_name(obj.btf, info.sec_name_off)
            if not name:
                self._fail(None, CoreError("records of a section without a name", EINVAL, "bad_section"))
                return run
            section = obj.elf.section(name)
            sec_idx = section.index if section is not None else 0
            for record in info.records:
                if not self._record_done(sec_idx, record):
                    return run
        return run

    def _record_done(self, sec_idx: int, record: tuple[int, ...]) -> bool:
        """One record; False when it is fatal."""
        prog = self.obj.find_prog(sec_idx, record[0] // INSN_SIZE)
        aligned = record[0] % INSN_SIZE == 0
        if aligned and (prog is None or not prog.autoload):
            self.result.skipped += 1
            return True
        relo = None
        try:
            if prog is not None:
                relo = CoreRelo(prog, record[0] // INSN_SIZE - prog.sec_insn_off, record[3])
                self.result.relos.append(relo)
            if relo is None or not aligned:  # checked before libbpf looks for the program
                raise CoreError(f"instruction offset {record[0]} is no multiple of {INSN_SIZE}", EINVAL, "bad_record")
            self._relocate(relo, record)
        except CoreError as error:
            self._fail(relo, error)
        except MalformedBtf as error:  # the record names a type that does not exist
            self._fail(relo, CoreError(error.message, EINVAL, "malformed_btf"))
        return self.result.error is None

    def _fail(self, relo: CoreRelo | None, error: CoreError) -> None:
        self.result.error = error
        if relo is None:
            return
        relo.outcome = "error"
        relo.new_value = None
        relo.after = relo.before
        relo.reason = f"{error.reason}: {error.message}"

    def _relocate(self, relo: CoreRelo, record: tuple[int, ...]) -> None:
        insn_off, type_id, access_off, kind = record
        btf, prog = self.obj.btf, relo.prog
        assert btf is not None
        relo.source = self.lines.at(prog.sec_idx, insn_off)
        relo.before = relo.after = _insn_bytes(prog.insns, relo.insn)
        relo.orig_value = held_value(prog.insns, relo.insn, self.obj.byteorder)
        if self.targets.main is None:
            raise CoreError("the kernel has no BTF (and none was given)", ESRCH, "no_target_btf")
        local = parse_spec(btf, type_id, btf.string(access_off), kind, not self.rules.negative_index_refused)
        relo.local_spec = format_spec(local)
        relo.source = self.lines.naming(prog.sec_idx, insn_off, relo.local_spec)
        relo.local = describe(local)
        result, target = self._resolve(relo, local)
        poisoned = patch(prog.insns, relo.insn, result, self.obj.byteorder)
        self._record(relo, local, target, result, poisoned)

    def _record(self, relo: CoreRelo, local: Spec, target: Spec | None, result: Result, poisoned: str | None) -> None:
        relo.after = _insn_bytes(relo.prog.insns, relo.insn, len(relo.before))
        if relo.orig_value is None:
            relo.orig_value = result.orig
        if target is not None:
            relo.target_spec = format_spec(target)
            relo.target = describe(target)
        if poisoned is None:
            relo.outcome, relo.new_value = "resolved", result.new
        else:
            relo.outcome = "poisoned"
        if poisoned:
            relo.reason = poisoned
        elif target is None and local.kind != BPF_CORE_TYPE_ID_LOCAL:
            relo.reason = _why_nothing(local, relo.candidates)

    # -- one record (bpf_core_resolve_relo, bpf_core_calc_relo_insn)

    def _resolve(self, relo: CoreRelo, local: Spec) -> tuple[Result, Spec | None]:
        """The result and the first matching candidate's spec; prunes the candidate list of the local root type."""
        if local.kind == BPF_CORE_TYPE_ID_LOCAL:
            id_ = local.root_id
            return Result(Value(id_, validate=False), Value(id_)), None
        if not local.btf.type(local.root_id).name:
            raise CoreError("relocation doesn't support anonymous types", EINVAL, "anonymous")
        candidates = self.cache.get(local.root_id)
        if candidates is None:
            candidates = self.cache[local.root_id] = self.targets.candidates(local.btf, local.root_id)
        good, first, first_spec = [], None, None
        for candidate in candidates:
            spec = self._match(relo, local, candidate)
            if spec is None:
                continue
            result = self._calc(local, spec)
            if first is None or first_spec is None:
                first, first_spec = result, spec
            else:
                _check_ambiguity(first, first_spec, result, spec)
            good.append(candidate)
        if good:
            self.cache[local.root_id] = good
        return first or self._calc(local, None), first_spec

    def _calc(self, local: Spec, target: Spec | None) -> Result:
        return calc(local, target, self.rules.array_element_size, self.obj.byteorder == "big")

    def _match(self, relo: CoreRelo, local: Spec, candidate: tuple[Btf, int, str | None]) -> Spec | None:
        btf, id_, module = candidate
        matcher = self.matchers.get(id(btf))
        if matcher is None:
            matcher = self.matchers[id(btf)] = Matcher(local.btf, btf)
        matcher.why = None
        entry: dict[str, object] = {"name": type_text(btf, id_), "id": id_, "why_not": None}
        if module is not None:
            entry["module"] = module
        relo.candidates.append(entry)
        spec = matcher.match(local, id_)
        if spec is None:
            entry["why_not"] = matcher.why or "does not match"
        return spec


def _section_name(btf: Btf, offset: int) -> str:
    """Empty also where it lies outside the strings, as libbpf has it (str_is_empty(btf__name_by_offset()))."""
    try:
        return btf.string(offset)
    except MalformedBtf:
        return ""


def _check_ambiguity(first: Result, first_spec: Spec, result: Result, spec: Spec) -> None:
    """All candidates that match must lead to the same place and the same decision."""
    where = f"candidates [{first_spec.root_id}] and [{spec.root_id}]"
    if spec.bit_offset != first_spec.bit_offset:
        raise CoreError(
            f"field offset ambiguity: {spec.bit_offset} != {first_spec.bit_offset} ({where})", EINVAL, "ambiguous"
        )
    if (result.poison, result.new) != (first.poison, first.new):
        words = [f"{'failure' if one.poison else 'success'} {one.new}" for one in (result, first)]
        raise CoreError(f"relocation decision ambiguity: {words[0]} != {words[1]} ({where})", EINVAL, "ambiguous")


def _why_nothing(local: Spec, candidates: list[dict[str, object]]) -> str:
    """For people: why nothing in the target is what the program means. The nearest candidate is the first."""
    wanted = type_text(local.btf, local.root_id)
    if not candidates:
        return f"target has no {wanted}"
    nearest = candidates[0]
    others = f" (and {len(candidates) - 1} more candidates)" if len(candidates) > 1 else ""
    path = f" for {wanted}{path_text(local)}" if local.kind in FIELD_KINDS else ""
    return f"{nearest['name']} [{nearest['id']}] {nearest['why_not']}{path}{others}"


def _insn_bytes(code: bytearray, index: int, length: int = 0) -> bytes:
    """The instruction's bytes, both slots of an ldimm64."""
    start = index * INSN_SIZE
    return bytes(code[start : start + (length or (2 * INSN_SIZE if code[start] == LDIMM64 else INSN_SIZE))])


class SourceLines:
    """Source lines by instruction, from the object's line_info."""

    def __init__(self, obj: BpfObject) -> None:
        self.obj = obj
        self._by_section: dict[int, tuple[list[int], list[tuple[int, ...]]]] | None = None

    def _index(self) -> dict[int, tuple[list[int], list[tuple[int, ...]]]]:
        index: dict[int, tuple[list[int], list[tuple[int, ...]]]] = {}
        obj = self.obj
        if obj.btf is not None and obj.btf_ext is not None:
            for info in obj.btf_ext.line_info:
                section = obj.elf.section(obj.btf.string(info.sec_name_off))
                if section is not None:
                    records = sorted(info.records)
                    index[section.index] = ([record[0] for record in records], records)
        return index

    def at(self, sec_idx: int, insn_off: int) -> dict[str, object] | None:
        """{"file", "line", "text"} of the instruction at byte `insn_off` of a section, None when unknown."""
        _, records, at = self._find(sec_idx, insn_off)
        return self._line(records[at]) if at >= 0 else None

    def naming(self, sec_idx: int, insn_off: int, local_spec: str) -> dict[str, object] | None:
        """The line of a relocation: that of its instruction, or a line just after it that names what is relocated.

        clang gives the constant of an existence check (and often the offset of a read) no line of its own, so it would
        count to the statement before; the record that follows is the right one. Looked at only when the instruction
        has no record and its line does not name the member.
        """
        offsets, records, at = self._find(sec_idx, insn_off)
        if at < 0:
            return None
        line = self._line(records[at])
        word = _last_word(local_spec)
        if offsets[at] == insn_off or line is None or not word or _has_word(str(line["text"]), word):
            return line
        for near in range(at + 1, min(at + 4, len(offsets))):
            other = self._line(records[near]) if offsets[near] - insn_off <= _NEAR_INSNS * INSN_SIZE else None
            if other is not None and _has_word(str(other["text"]), word):
                return other
        return line

    def _find(self, sec_idx: int, insn_off: int) -> tuple[list[int], list[tuple[int, ...]], int]:
        if self._by_section is None:
            self._by_section = self._index()
        offsets, records = self._by_section.get(sec_idx, ([], []))
        low, high = 0, len(offsets)
        while low < high:
            middle = (low + high) // 2
            if offsets[middle] <= insn_off:
                low = middle + 1
            else:
                high = middle
        return offsets, records, low - 1

    def _line(self, record: tuple[int, ...]) -> dict[str, object] | None:
        _, file_off, line_off, line_col = record
        if self.obj.btf is None:
            return None
        try:
            file, text = self.obj.btf.string(file_off), self.obj.btf.string(line_off)
        except GuestError:
            return None
        return {"file": file.rsplit("/", 1)[-1], "line": line_col >> 10, "text": text.strip()}


_NEAR_INSNS = 16


def _last_word(local_spec: str) -> str:
    """`fs` of `<byte_off> [5] struct thread_struct.fs (0:2 @ offset 8)`: what a source line calls it."""
    path = local_spec.partition("] ")[2].partition(" (")[0].partition(" = ")[0]
    return path.rpartition(" ")[2].rpartition("::")[2].rpartition(".")[2].partition("[")[0].partition("___")[0]


_BEFORE_A_NAME = ("->", ".", ",", "(", "struct", "union", "enum")


def _has_word(text: str, word: str) -> bool:
    """Does the line name a member, enumerator or type `word`? A variable (`&fsbase`) does not count."""
    at = text.find(word)
    while at >= 0:
        beside = text[at - 1 : at] + text[at + len(word) : at + len(word) + 1]
        alone = not any(char.isalnum() or char == "_" for char in beside)
        if alone and text[:at].rstrip().endswith(_BEFORE_A_NAME):
            return True
        at = text.find(word, at + 1)
    return False
