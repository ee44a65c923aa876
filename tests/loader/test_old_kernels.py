"""Kernels with less, made from this one by denying what old ones lack, as seen on booted ones, below the loader's bpf(2)."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from typing import Any

import pytest

from harness.guest import insn, refusals, syscall
from harness.guest.judge import Machine
from harness.guest.prog_types import PROG_TYPES
from harness.judge.explain import Case, explain
from tests.loader.test_witnesses import SEC, TYPES
from tests.support.clang import compile_bpf
from tests.support.this_kernel import DenyingBpf, code_of, facts_of, machine, numbers, prog_of

E2BIG, EINVAL, EPERM = 7, 22, 1
RINGBUF = 27  # BPF_MAP_TYPE_RINGBUF
TRACING = PROG_TYPES.index("tracing")
# What bpf(BPF_PROG_LOAD) is known to answer (kernel/bpf/syscall.c, verifier.c, trampoline.c, core.c).
KNOWN = frozenset(
    {errno.EPERM, errno.ENOENT, errno.EINTR, errno.E2BIG, errno.EAGAIN, errno.ENOMEM, errno.EACCES, errno.EFAULT,
     errno.EBUSY, errno.EINVAL, errno.ENOSPC, errno.ENOSYS, errno.EOPNOTSUPP, 524}
)  # fmt: skip
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
    return lambda command, attr: next((found for deny in denials if (found := deny(command, attr))), 0)


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


def always(number: int) -> Deny:
    """Programs are refused with one errno and no word, unless they are the smallest there is."""
    return lambda command, attr: number if command == syscall.PROG_LOAD and len(_insns(attr)) > 2 else 0


def no_trampolines(command: int, attr: bytes) -> int:
    """Without CONFIG_BPF_JIT bpf_trampoline_get() is a stub that gives NULL, and check_attach_btf_id() says ENOMEM."""
    return errno.ENOMEM if command == syscall.PROG_LOAD and _u32(attr, 0) == TRACING and _u32(attr, 108) else 0


def test_trampolines_without_a_jit_are_no_lack_of_memory() -> None:
    facts = judged('SEC("fentry/vfs_read") int f(void *ctx) { return 0; }\n' + READ.replace("int f", "int g"), no_trampolines)
    prog = prog_of(facts, "f")
    assert (prog["stage"], prog["errno"], prog["unsupported"]) == ("pre_verifier", errno.ENOMEM, "attach_type")
    assert "CONFIG_BPF_JIT is off" in prog["error"]
    assert prog_of(facts, "g")["loaded"]


def test_a_lack_of_memory_is_called_one() -> None:
    prog = prog_of(judged(READ, always(errno.ENOMEM)), "f")
    assert "out of memory" in prog["error"] and "memory_mb" in prog["error"]


@pytest.mark.parametrize("number", sorted({*errno.errorcode, 524}))
def test_no_errno_stands_alone(number: int) -> None:
    """Whatever a kernel answers to a program of a type it knows, words stand beside it: the guest's, else the judge's."""
    facts = judged(READ, always(number))
    prog = prog_of(facts, "f")
    assert (prog["loaded"], prog["stage"], prog["errno"]) == (False, "pre_verifier", number)
    said = " ".join([prog["error"], *explain(Case.of(facts, prog, ()))])
    if number in KNOWN:
        assert "does not say why" not in said or "empty log" in said, said
    assert prog["error"].startswith("refused before the verifier: ")


def test_a_kernel_without_bpf() -> None:
    blind = kernel()
    assert isinstance(blind.bpf, DenyingBpf)
    blind.bpf._deny = lambda _command, _attr: errno.ENOSYS
    facts = facts_of(compile_bpf(TYPES + READ, cpu="v1"), blind)
    prog = prog_of(facts, "f")
    assert not prog["loaded"]
    assert "CONFIG_BPF_SYSCALL" in prog["error"]


MAP = f"""
struct {{ int (*type)[{RINGBUF}]; int (*max_entries)[4096]; }} events SEC(".maps");
static void *(*reserve)(void *, u64, u64) = (void *)131;
static void (*discard)(void *, u64) = (void *)133;
{SEC}int f(void *ctx) {{ void *p = reserve(&events, 8, 0); if (p) discard(p, 0); return 0; }}
"""


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.EINVAL, "does not know its type"), (errno.EPERM, "RLIMIT_MEMLOCK"), (errno.ENOMEM, "memory_mb"),
     (errno.E2BIG, "too large or too many"), (524, "knows the map's type"), (errno.ENOSYS, "CONFIG_BPF_SYSCALL")],
)  # fmt: skip
def test_a_map_that_is_refused_is_explained(number: int, words: str) -> None:
    """A map has no log at all."""
    facts = judged(MAP, lambda command, attr: number if command == syscall.MAP_CREATE and attr[0] == RINGBUF else 0)
    prog = prog_of(facts, "f")
    assert (prog["stage"], prog["errno"]) == ("maps", number)
    assert words in " ".join(explain(Case.of(facts, prog, ())))


def test_a_kernel_that_was_built_as_another_version_than_it_says() -> None:
    """Before 5.0 a kprobe program must name the version its kernel was built as; a vendor's `uname -r` may say another."""
    kprobe, built = PROG_TYPES.index("kprobe"), 4 << 16 | 9 << 8 | 130

    def deny(command: int, attr: bytes) -> int:
        wrong = command == syscall.PROG_LOAD and _u32(attr, 0) == kprobe and _u32(attr, 40) != built
        return EINVAL if wrong else 0

    on = kernel(deny)
    load = syscall.ProgLoad(kprobe, insn.native(0xB7) + insn.native(insn.EXIT))
    load.kern_version = 4 << 16 | 9 << 8
    text, unsupported = refusals.explain(on.bpf, on.features, load, EINVAL)
    assert unsupported is None
    assert "told 4.9.0, it takes 4.9.130" in text
    load.kern_version = 4 << 16 | 4 << 8
    assert refusals.explain(on.bpf, on.features, load, EINVAL)[1] == "prog_type"


@pytest.mark.parametrize(("limit", "count", "blamed"), [(4095, 4096, True), (4096, 4096, False), (4096, 4097, True)])
def test_the_size_is_blamed_where_the_kernel_refuses_it(limit: int, count: int, blamed: bool) -> None:
    """Until 4.14 4096 instructions were already too many: what a plain program of that length comes to decides."""
    on = kernel(lambda command, attr: EINVAL if command == syscall.PROG_LOAD and _u32(attr, 4) > limit else 0)
    load = syscall.ProgLoad(1, insn.native(0xB7) * (count - 1) + insn.native(insn.EXIT))
    found = refusals.explain(on.bpf, on.features, load, EINVAL)
    assert (found[1] == "program_size") == blamed, found


def test_a_log_of_one_byte_is_none() -> None:
    """Kernels before 4.15 copy one byte, never written, of a log that has no length."""
    buffer = syscall.Buffer(4096)
    buffer.map[0:4] = b"\xa5old"
    buffer.clear()
    buffer.map[0:1] = b"\xa5"
    buffer.drop_stray()
    assert buffer.text() == b""
    buffer.map[0:3] = b"R0\0"
    buffer.drop_stray()
    assert buffer.text() == b"R0"
