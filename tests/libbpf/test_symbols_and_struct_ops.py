"""Symbols of the kernel and struct_ops under both loaders on this machine's kernel: what no object of the corpus does.

The installed libbpf judges, or the one that COREMATRIX_TEST_LIBBPF names. Each case says what a libbpf without and one with the rules of 1.3 to 1.5 is known to make
of it (None: it loads), so that a case which no longer reaches its rule fails.
"""

# One case is one line, however long: a table.
# ruff: noqa: E501

from __future__ import annotations

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness.guest import libbpf_loader
from harness.guest.judge import Machine, judge
from harness.inspection import Conditions
from harness.judge.agreement import disagreements
from harness.sweep.answers import Subject
from tests.support.clang import compile_bpf
from tests.support.real_libbpf import needs_bpf

pytestmark = needs_bpf

LIBBPF = os.environ.get("COREMATRIX_TEST_LIBBPF", libbpf_loader.DEFAULT_PATH)
NEWER = (1, 5)  # has all that is told apart here; 1.1 has nothing of it, between them a case may be either


@dataclass(frozen=True)
class Case:
    """`old` and `new`: a piece of what libbpf says when it gives the object up, None when it loads."""

    name: str
    text: str
    old: str | None
    new: str | None


def ksym(declared: str, body: str) -> str:
    return (
        '#define KSYM SEC(".ksyms")\n#define WEAK __attribute__((weak))\n'
        f"{declared}\n"
        f'SEC("tp_btf/task_newtask") int prog(u64 *ctx) {{ {body} return 0; }}'
    )


TASK = "struct task_struct { int pid; };"
ACQUIRE = "extern struct task_struct *bpf_task_acquire(struct task_struct *p"
KFUNC, MISSING = "func_proto", "not found"
# fmt: off
KSYMS = [
    Case("kfunc_incompatible", ksym(f"{TASK} {ACQUIRE}, int more) KSYM;", "bpf_task_acquire((void *)ctx[0], 1);"), KFUNC, KFUNC),
    Case("kfunc_incompatible_weak", ksym(f"{TASK} {ACQUIRE}, int more) KSYM WEAK;", "if (bpf_task_acquire) bpf_task_acquire((void *)ctx[0], 1);"), KFUNC, None),
    Case("kfunc_of_a_forward_declaration", ksym(f"struct task_struct; {ACQUIRE}) KSYM;", "bpf_task_acquire((void *)ctx[0]);"), KFUNC, KFUNC),
    Case("kfunc_missing", ksym("extern int no_such(int) KSYM;", "no_such(1);"), MISSING, MISSING),
    Case("kfunc_missing_weak", ksym("extern int no_such(int) KSYM WEAK;", "if (no_such) no_such(1);"), None, None),
    Case("kfunc_flavor", ksym(f"{TASK} extern struct task_struct *bpf_task_acquire___x(struct task_struct *p) KSYM WEAK;", "return bpf_task_acquire___x ? 1 : 2;"), None, None),
    Case("kfunc_flavor_strong", ksym(f"{TASK} extern struct task_struct *bpf_task_acquire___x(struct task_struct *p) KSYM;", "bpf_task_acquire___x((void *)ctx[0]);"), MISSING, None),
    Case("kfunc_that_is_a_variable", ksym("extern int bpf_prog_active(void) KSYM WEAK;", "return bpf_prog_active ? 1 : 2;"), None, None),
    Case("variable", ksym("extern int bpf_prog_active KSYM;", "return (u64)&bpf_prog_active != 0;"), None, None),
    Case("variable_incompatible", ksym("struct rq; extern struct rq *bpf_prog_active KSYM;", "return (u64)&bpf_prog_active;"), "incompatible types", "incompatible types"),
    Case("variable_incompatible_weak", ksym("struct rq; extern struct rq *bpf_prog_active KSYM WEAK;", "return (u64)&bpf_prog_active;"), "incompatible types", "incompatible types"),
    Case("variable_flavor", ksym("extern int bpf_prog_active___x KSYM WEAK;", "return (u64)&bpf_prog_active___x != 0;"), None, None),
    Case("variable_missing", ksym("extern int no_such KSYM;", "return (u64)&no_such;"), MISSING, MISSING),
    Case("variable_missing_weak", ksym("extern int no_such KSYM WEAK;", "return (u64)&no_such;"), None, None),
    Case("typeless", ksym("extern void bpf_prog_active KSYM;", "return (u64)&bpf_prog_active != 0;"), None, None),
    Case("typeless_missing", ksym("extern void no_such KSYM;", "return (u64)&no_such;"), "not resolved", "not resolved"),
    Case("typeless_missing_weak", ksym("extern void no_such KSYM WEAK;", "return (u64)&no_such;"), None, None),
]

FIELDS = "u32 (*ssthresh)(void *sk); u32 (*undo_cwnd)(void *sk); void (*cong_avoid)(void *sk, u32 ack, u32 acked); char name[16];"
VALUES = '.ssthresh = (void *)ssthresh, .undo_cwnd = (void *)undo, .cong_avoid = (void *)avoid, .name = "cmx",'
PROGS = 'SEC("struct_ops/a") u32 ssthresh(u64 *ctx) { return 2; }\nSEC("struct_ops/b") u32 undo(u64 *ctx) { return 2; }\nSEC("struct_ops/c") void avoid(u64 *ctx) {}\n'
UNUSED = 'SEC("struct_ops/d") u32 more(u64 *ctx) { return 3; }\n'


def ops(fields: str = FIELDS, values: str = VALUES, name: str = "tcp_congestion_ops", section: str = ".struct_ops", more: str = "") -> str:
    return f'{PROGS}{more}struct {name} {{ {fields} }};\nSEC("{section}") struct {name} ops = {{ {values} }};'


NO_MEMBER, NO_STRUCT = "Cannot find member", "is not found in kernel BTF"
STRUCT_OPS = [
    Case("plain", ops(), None, None),
    Case("two_of_one_program", ops() + 'SEC(".struct_ops") struct tcp_congestion_ops second = { .name = "b", .ssthresh = (void *)ssthresh };', None, None),
    Case("program_in_no_map", ops(more=UNUSED), None, None),
    Case("program_for_two_members", ops() + 'SEC(".struct_ops") struct tcp_congestion_ops second = { .name = "b", .undo_cwnd = (void *)ssthresh };', "cannot use prog", "invalid reuse"),
    Case("flavor_of_the_struct", ops(name="tcp_congestion_ops___x"), NO_STRUCT, None),
    Case("flavor_of_a_member", ops(FIELDS.replace("undo_cwnd", "undo_cwnd___x"), VALUES.replace("undo_cwnd", "undo_cwnd___x")), NO_MEMBER, NO_MEMBER),
    Case("member_of_ours_zero", ops(FIELDS + "int not_there;"), NO_MEMBER, None),
    Case("member_of_ours_set", ops(FIELDS + "int not_there;", VALUES + ".not_there = 3,"), NO_MEMBER, NO_MEMBER),
    Case("function_of_ours_null", ops(FIELDS + "u32 (*not_there)(void *);"), NO_MEMBER, None),
    Case("function_of_ours_set", ops(FIELDS + "u32 (*not_there)(void *);", VALUES + ".not_there = (void *)more,", more=UNUSED), NO_MEMBER, NO_MEMBER),
    Case("member_longer", ops(FIELDS.replace("16", "32")), "Error in size", "Error in size"),
    Case("member_of_another_kind", ops(FIELDS.replace("char name[16]", "long name"), VALUES.replace('.name = "cmx",', "")), "Unmatched member type", "Unmatched member type"),
    Case("member_is_no_function_pointer", ops(FIELDS.replace("u32 (*ssthresh)(void *sk)", "void *ssthresh")), "non func ptr", "non func ptr"),
    Case("struct_the_kernel_lacks", ops(name="corematrix_no_such_ops"), NO_STRUCT, NO_STRUCT),
    Case("struct_that_is_no_ops", ops("int pid;", ".pid = 1", "task_struct"), NO_STRUCT, NO_STRUCT),
    Case("section_link", ops(section=".struct_ops.link"), None, None),
    Case("section_optional", ops(section="?.struct_ops"), None, None),
]

KCONFIG_TEXT = "CONFIG_A=y\nCONFIG_B=m\nCONFIG_C=70000\nCONFIG_D=\"words\"\nCONFIG_E=-3\n"
def extern(declared: str) -> str:
    name = declared.replace("[", " ").split()[-1 - declared.count("[")]
    return f'extern {declared} SEC(".kconfig");\nSEC("socket") int prog(void *ctx) {{ return (u64)&{name}; }}'


TRISTATE = "enum libbpf_tristate { TRI_NO, TRI_YES, TRI_MODULE };"
KCONFIG = [
    Case("bool", extern("bool CONFIG_A"), None, None),
    Case("tristate", TRISTATE + extern("enum libbpf_tristate CONFIG_B"), None, None),
    Case("module_is_no_bool", extern("bool CONFIG_B"), "tristate or char", "tristate or char"),
    Case("number_is_no_bool", extern("bool CONFIG_C"), "implies", "implies"),
    Case("number_too_large", extern("short CONFIG_C"), "doesn't fit", "doesn't fit"),
    Case("number", extern("int CONFIG_C"), None, None),
    Case("number_negative", extern("int CONFIG_E"), None, None),
    Case("words", extern("char CONFIG_D[4]"), None, None),
    Case("words_are_no_number", extern("int CONFIG_D"), "implies", "implies"),
    Case("missing", extern("int CONFIG_Z"), "not resolved", "not resolved"),
    Case("missing_weak", extern("int __attribute__((weak)) CONFIG_Z"), None, None),
    Case("virtual_unknown", extern("int LINUX_NO_SUCH"), "unrecognized virtual", "unrecognized virtual"),
]
# fmt: on


@functools.cache
def _machine(kconfig: str | None = None) -> Machine:
    return Machine.survey(kconfig_path=kconfig)


def _both(case: Case, on: Machine) -> None:
    data, version = compile_bpf(case.text), libbpf_loader.version(LIBBPF)
    assert version is not None
    ask = {"name": "object", "rules": version, "evidence": False, "libbpf": LIBBPF}
    theirs, ours = (judge(on, data, {**ask, "loader": one}, lambda _message: None) for one in ("libbpf", "python"))
    error: Any = theirs["object_error"]
    said = None if error is None else str(error["message"])
    numbers = tuple(int(word) for word in version.split(".")[:2])
    if numbers < (1, 2) or numbers >= NEWER:
        expected = case.new if numbers >= NEWER else case.old
        assert (said is None) == (expected is None) and (expected or "") in (said or ""), said
    assert disagreements(ours, theirs) == []
    if error is None:
        assert _externs(theirs) == _externs(ours)


def _externs(facts: dict[str, Any]) -> list[list[object]]:
    """All but the reason, which is in each loader's own words."""
    words = ("name", "kind", "type", "value", "weak", "outcome")
    return [[type(row["value"]), *(row[word] for word in words)] for row in facts["externs"]]


@pytest.mark.parametrize("case", KSYMS, ids=lambda case: case.name)
def test_symbols(case: Case) -> None:
    on = _machine()
    if on.btf is None or on.btf.find("bpf_task_acquire", 12) is None:
        pytest.skip("this kernel has no bpf_task_acquire()")
    _both(case, on)


@pytest.mark.parametrize("rules", ["1.1.2", None])
@pytest.mark.parametrize("case", [case for case in KSYMS if "typeless" not in case.name], ids=lambda case: case.name)
def test_a_sweep_foretells_symbols_by_the_rules_of_either(case: Case, rules: str | None) -> None:
    """Whoever has no kernel at hand, but its BTF, must hear the same."""
    on = _machine()
    if on.btf is None or on.btf.find("bpf_task_acquire", 12) is None:
        pytest.skip("this kernel has no bpf_task_acquire()")
    subject = Subject(compile_bpf(case.text), "object.bpf.o", "object", {}, None)
    fate = subject.against(on.btf, Conditions(rules=rules), None, has_functions=True).progs["prog"]
    refused = fate.outcome == "refused" and (fate.reason or "").startswith("externs: ")
    assert refused == ((case.old if rules else case.new) is not None), fate


@pytest.mark.parametrize("case", STRUCT_OPS, ids=lambda case: case.name)
def test_struct_ops(case: Case) -> None:
    on = _machine()
    if on.btf is None or on.btf.find("bpf_struct_ops_tcp_congestion_ops", 4) is None:
        pytest.skip("this kernel has no struct_ops for TCP")
    _both(case, on)


@pytest.mark.parametrize("case", KCONFIG, ids=lambda case: case.name)
def test_kconfig(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    path: Path = tmp_path_factory.getbasetemp() / "config"
    path.write_text(KCONFIG_TEXT)
    _both(case, _machine(str(path)))
