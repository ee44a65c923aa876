"""Kernels with less, made from this one by denying what old ones lack (shared/old_kernels.md) below the loader's bpf(2)."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable
from typing import Any

from harness.guest import insn, syscall
from harness.guest.judge import Machine
from tests.loader.test_witnesses import SEC, TYPES
from tests.support.clang import compile_bpf
from tests.support.this_kernel import DenyingBpf, code_of, facts_of, machine, numbers, prog_of

E2BIG, EINVAL, EPERM = 7, 22, 1
Deny = Callable[[int, bytes], int]


def _u32(attr: bytes, offset: int) -> int:
    return int(struct.unpack_from("=I", attr, offset)[0])


def _insns(attr: bytes) -> list[tuple[int, int, int, int, int]]:
    count, address = struct.unpack_from("=IQ", attr, 4)
    code = ctypes.string_at(address, 8 * count)
    return [insn.read(code, at) for at in range(count)]


def no_names(command: int, attr: bytes) -> int:
    if command == syscall.PROG_LOAD and any(attr[48:64]):
        return E2BIG
    return EINVAL if command == syscall.MAP_CREATE and any(attr[28:44]) else 0


def no_btf(command: int, attr: bytes) -> int:
    if command == syscall.BTF_LOAD:
        return EINVAL
    return E2BIG if command == syscall.PROG_LOAD and _u32(attr, 72) else 0


def no_global_data(command: int, attr: bytes) -> int:
    if command == syscall.PROG_LOAD and any(op == insn.LDIMM64 and src == 2 for op, _, src, _, _ in _insns(attr)):
        return EINVAL
    if command == syscall.MAP_CREATE and _u32(attr, 16) & 0x480:
        return EINVAL
    return EINVAL if command == syscall.MAP_FREEZE else 0


def no_probe_read_kernel(command: int, attr: bytes) -> int:
    if command != syscall.PROG_LOAD:
        return 0
    return (
        EINVAL
        if any(op == insn.CALL and not src and imm in range(112, 116) for op, _, src, _, imm in _insns(attr))
        else 0
    )


def no_object_info(command: int, attr: bytes) -> int:
    return EINVAL if command in (syscall.OBJ_GET_INFO_BY_FD, syscall.PROG_GET_NEXT_ID, syscall.MAP_GET_NEXT_ID) else 0


def no_attach_type(command: int, attr: bytes) -> int:
    return E2BIG if command == syscall.PROG_LOAD and _u32(attr, 68) else 0


def without_type(number: int) -> Deny:
    return lambda command, attr: EINVAL if command == syscall.PROG_LOAD and _u32(attr, 0) == number else 0


def all_of(*denials: Deny) -> Deny:
    return lambda command, attr: next((errno for deny in denials if (errno := deny(command, attr))), 0)


def kernel(*denials: Deny) -> Machine:
    machine()
    return Machine.survey(bpf=DenyingBpf(all_of(*denials)))


def judged(text: str, *denials: Deny, cpu: str = "v1", **request: Any) -> dict[str, Any]:
    return facts_of(compile_bpf(TYPES + text, cpu=cpu), kernel(*denials), **request)


def adaptations(prog: dict[str, Any]) -> dict[str, bool]:
    return {item["name"]: item["libbpf"] for item in prog["adaptations"]}


READ = SEC + ("int f(struct task_struct *ctx) { int pid = 0; probe_read_kernel(&pid, 4, (void *)get_current_task()"
              " + offset_of(task_struct, pid)); return pid & 1; }\n")  # fmt: skip


def test_probes_see_what_is_denied() -> None:
    names = {"prog_name": no_names, "btf_load": no_btf, "global_data": no_global_data,
             "probe_read_kern": no_probe_read_kernel, "exp_attach_type": no_attach_type}  # fmt: skip
    complete = machine().features
    for feature, deny in names.items():
        found = kernel(deny).features
        assert complete[feature]
        assert not found[feature], feature
        assert found["bpf_cookie"], "denying one thing must not lose another"


def test_without_names() -> None:
    facts = judged(READ, no_names)
    prog = prog_of(facts, "f")
    assert prog["loaded"], prog["error"]
    assert adaptations(prog) == {"no_prog_name": True}


def test_without_btf_the_log_is_the_evidence() -> None:
    facts = judged(READ, no_btf)
    prog = prog_of(facts, "f")
    assert prog["loaded"], prog["error"]
    assert adaptations(prog) == {"no_btf_load": True}
    found = prog["evidence"]
    assert not found["line_info"]["loaded"]
    assert found["line_info"]["reason"]
    assert prog["relos"][0]["insn"] in numbers(found["verdict_log_visited"])


def test_helpers_of_5_5_are_rewritten() -> None:
    facts = judged(READ, no_probe_read_kernel)
    prog = prog_of(facts, "f")
    assert prog["loaded"], prog["error"]
    assert adaptations(prog) == {"no_probe_read_kernel": True}
    code = code_of(prog)
    calls = {insn.read(code, at)[4] for at in range(len(code) // 8) if code[8 * at] == insn.CALL}
    assert 4 in calls
    assert not calls & set(range(112, 116))


def test_without_ids_and_info() -> None:
    prog = prog_of(judged(READ, no_object_info), "f")
    assert prog["loaded"], prog["error"]


def test_everything_missing_at_once() -> None:
    denials = (no_names, no_btf, no_global_data, no_probe_read_kernel, no_object_info, no_attach_type)
    prog = prog_of(judged(READ, *denials), "f")
    assert prog["loaded"], prog["error"]
    assert set(adaptations(prog)) == {"no_prog_name", "no_btf_load", "no_probe_read_kernel"}


def test_read_only_data_becomes_constants() -> None:
    text = (
        "const volatile u32 chosen = 7;\n"
        + SEC
        + ("int f(void *ctx) { u64 v = 1; if (chosen == 3) v = offset_of(task_struct, tgid); return v & 1; }\n")
    )
    for value, live in (("3", True), ("4", False)):
        facts = judged(text, no_global_data, settings={"chosen": value})
        prog = prog_of(facts, "f")
        assert prog["loaded"], prog["error"]
        assert adaptations(prog) == {"no_global_data": True, "constants_folded": False}
        survived = numbers(prog["evidence"]["line_info"]["survived"])
        assert (prog["relos"][0]["insn"] in survived) == live


def test_data_that_is_written_cannot_be_folded() -> None:
    facts = judged("int count;\n" + SEC + "int f(void *ctx) { return count++ & 1; }\n", no_global_data)
    prog = prog_of(facts, "f")
    assert not prog["loaded"]
    assert prog["stage"] == "verifier"
    assert "constants_folded" not in adaptations(prog)


def test_an_unknown_program_type_is_said_to_be_one() -> None:
    facts = judged('SEC("tp/sched/sched_process_exec") int f(void *ctx) { return 0; }\n', without_type(5))
    prog = prog_of(facts, "f")
    assert (prog["loaded"], prog["stage"], prog["errno"], prog["unsupported"]) == (
        False,
        "pre_verifier",
        EINVAL,
        "prog_type",
    )
    assert "program type tracepoint is unknown to this kernel" in prog["error"]


def test_an_unknown_attach_type_is_said_to_be_one() -> None:
    facts = judged('SEC("kprobe.multi/vfs_read") int f(void *ctx) { return 0; }\n', no_attach_type)
    prog = prog_of(facts, "f")
    assert (prog["stage"], prog["errno"], prog["unsupported"]) == ("pre_verifier", E2BIG, "attach_type")
    assert "trace_kprobe_multi" in prog["error"]


def test_an_optional_attach_type_is_left_out() -> None:
    facts = judged('SEC("cgroup/dev") int f(void *ctx) { return 0; }\n', no_attach_type)
    prog = prog_of(facts, "f")
    assert prog["loaded"], prog["error"]
    assert adaptations(prog) == {"no_expected_attach_type": True}


def test_a_refusal_for_lack_of_rights_is_never_a_bare_errno() -> None:
    everything = kernel()
    assert isinstance(everything.bpf, DenyingBpf)
    everything.bpf._deny = lambda command, _attr: EPERM if command == syscall.PROG_LOAD else 0
    prog = prog_of(facts_of(compile_bpf(TYPES + READ, cpu="v1"), everything), "f")
    assert (prog["stage"], prog["errno"]) == ("pre_verifier", EPERM)
    assert "not permitted" in prog["error"]
