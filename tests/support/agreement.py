"""One object through both engines, libbpf's and ours, and everything compared: decisions, texts, values,
instructions.
"""

from __future__ import annotations

from collections.abc import Collection

from harness.guest.bpf_object import BpfObject
from harness.guest.btf import Btf
from harness.guest.core_relo import CoreRelo, CoreRun, Rules, Targets, relocate
from harness.guest.elf import Elf, is_elf
from harness.guest.insn import INSN_SIZE, LDIMM64
from tests.support.libbpf_judge import Decision, Judgement, judge, libbpf_version


def read_btf(data: bytes) -> Btf:
    """A target BTF from raw bytes or an ELF, as harness.guest.btf.load() reads a file."""
    if not is_elf(data):
        return Btf(data, "target")
    elf = Elf(data, "target")
    section = elf.section(".BTF")
    assert section is not None
    return Btf(elf.content(section), "target", pointer_size=8 if elf.is64 else 4)


def compare(data: bytes, target: bytes | str, *, btf: Btf | None = None) -> tuple[CoreRun, Judgement]:
    """Run both and assert that they agree in everything; returns both sides for further claims of the test."""
    judged = judge(data, target=target)
    obj = BpfObject(data, "object")
    if btf is None:
        assert isinstance(target, bytes)
        btf = read_btf(target)
    run = relocate(obj, Targets(btf), Rules(libbpf_version()))
    differences = difference(obj, run, judged)
    assert not differences, "\n".join(differences)
    return run, judged


def difference(obj: BpfObject, run: CoreRun, judged: Judgement, skip: Collection[str] = ()) -> list[str]:
    """What the two disagree on, as lines; empty when nothing. The code of programs in `skip` is not looked at."""
    found = []
    if (run.error is None) != judged.relocated:
        found.append(f"fatal: ours {run.error}, libbpf relocated {judged.relocated}: {judged.log[-4:]}")
    silent = int(run.error is not None and run.error.reason == "bad_record")  # libbpf says nothing of the record itself
    if len(run.relos) - silent != len(judged.decisions):
        found.append(f"records: ours {len(run.relos)}, libbpf {len(judged.decisions)}")
    for ours, theirs in zip(run.relos, judged.decisions, strict=False):
        found += _decision_difference(ours, theirs)
    if not found and run.error is None and judged.relocated:
        found += _code_difference(obj, judged, skip)
    return found


def _decision_difference(ours: CoreRelo, theirs: Decision) -> list[str]:
    pairs = {
        "prog": (ours.prog.name, theirs.prog),
        "outcome": (ours.outcome, theirs.outcome),
    }
    if theirs.local_spec is not None or ours.outcome != "error":  # libbpf can give up before it prints the spec
        pairs["local_spec"] = (_cut(ours.local_spec), _cut(theirs.local_spec))
    if ours.outcome != "error":
        pairs["target_spec"] = (_cut(ours.target_spec), _cut(theirs.target_spec))
    if ours.outcome == "resolved":
        pairs["orig_value"] = (ours.orig_value, theirs.orig_value)
        pairs["new_value"] = (ours.new_value, theirs.new_value)
    where = f"{ours.prog.name} insn {ours.insn} {ours.local_spec}"
    return [
        f"{where}: {name}: ours {mine!r}, libbpf {other!r}" for name, (mine, other) in pairs.items() if mine != other
    ]


def _code_difference(obj: BpfObject, judged: Judgement, skip: Collection[str]) -> list[str]:
    """Instructions of entry programs and of the subprograms behind them; those with ELF relocations are the loader's
    business.
    """
    found = []
    subprogs = {prog.name: prog for prog in obj.progs if prog.is_subprog}
    for prog in obj.entry_progs:
        if prog.name in skip or not prog.autoload:
            continue
        code, at = judged.insns[prog.name], 0
        parts = [prog] + [subprogs[name] for name, _ in judged.appended.get(prog.name, [])]
        for part in parts:
            calls = {reloc.insn for reloc in part.elf_relocs}
            for index in range(part.insn_count):
                mine = bytes(part.insns[index * INSN_SIZE : (index + 1) * INSN_SIZE])
                other = code[(at + index) * INSN_SIZE : (at + index + 1) * INSN_SIZE]
                second = index and index - 1 in calls and part.insns[(index - 1) * INSN_SIZE] == LDIMM64
                pseudo = mine[0] == 0x85 and mine[1] >> 4 == 1
                if mine != other and index not in calls and not second and not pseudo:
                    found.append(f"{prog.name}/{part.name} insn {index}: ours {mine.hex()}, libbpf {other.hex()}")
            at += part.insn_count
    return found


def _cut(spec: str | None) -> str | None:
    """libbpf has room for 255 characters of a spec (spec_buf of bpf_core_calc_relo_insn())."""
    return None if spec is None else spec[:255]
