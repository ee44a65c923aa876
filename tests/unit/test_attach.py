"""Attaching without a kernel: functions of a binary by pyelftools as the second witness, modules by an object's
sections, what is said of an errno.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from harness.backends import spare_modules
from harness.guest import attach, attach_uprobe
from harness.guest.attempt import Attempt, Gone, NotAttempted
from harness.model.kernel import KernelSpec
from tests.support import cells
from tests.support.objects import OBJECTS, compile_object


def attempt(section: str, *, target: str | None = None, prog_type: str = "kprobe", attach_type: str = "") -> Attempt:
    facts = {"section": section, "attach_target": target, "prog_type": prog_type, "expected_attach_type": attach_type}
    return Attempt(None, 3, facts, "__x64_sys_", {})  # type: ignore[arg-type]


def own_library() -> Path:
    path = attach_uprobe._c_library()
    if path is None:
        pytest.skip("this Python has no C library in a file")
    return Path(path)


def test_offsets_of_functions_are_those_pyelftools_finds() -> None:
    """By segments, where ours goes by sections: st_value lies in a PT_LOAD, whose place in the file is known."""
    path = own_library()
    with path.open("rb") as file:
        elf = ELFFile(file)
        loads = [(seg["p_vaddr"], seg["p_filesz"], seg["p_offset"]) for seg in elf.iter_segments("PT_LOAD")]
        dynsym = elf.get_section_by_name(".dynsym")
        expected = set()
        for symbol in dynsym.iter_symbols():
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] != "SHN_UNDEF":
                value = symbol["st_value"]
                start, _, offset = next(load for load in loads if load[0] <= value < load[0] + load[1])
                expected.add((symbol.name, value - start + offset))
    found = set(attach_uprobe.functions(str(path)))
    assert len(expected) > 1000
    assert expected <= found


def test_what_is_no_elf_has_no_functions(tmp_path: Path) -> None:
    (tmp_path / "script").write_text("#!/bin/sh\n")
    assert list(attach_uprobe.functions(str(tmp_path / "script"))) == []


def test_a_section_is_read_as_libbpf_reads_it() -> None:
    path = own_library()
    by_name = dict(attach_uprobe.functions(str(path)))
    for text, offset in (
        ("getpid", by_name["getpid"]), ("getpid+4", by_name["getpid"] + 4), ("getpid@GLIBC_2.2.5", by_name["getpid"]),
        ("0x1234", 0x1234),
    ):  # fmt: skip
        assert attach_uprobe._place(attempt("uprobe/x", target=f"{path}:{text}")) == (str(path), [offset])
    many = attach_uprobe._place(attempt("uprobe.multi/x", target=f"{path.name}:getp?id"))
    assert (many[0], set(many[1])) == (str(path), {by_name["getppid"], by_name["getpgid"]})
    with pytest.raises(Gone, match="has no function no_such"):
        attach_uprobe._place(attempt("uprobe/x", target=f"{path}:no_such"))


@pytest.mark.parametrize("target", [None, "", "/no/such/tool:main"])
def test_a_binary_that_is_not_here_has_a_stand_in_and_it_is_said(target: str | None) -> None:
    path = own_library()
    one = attempt("uprobe", target=target)
    assert attach_uprobe._place(one)[0] == str(path)
    assert one.stand_in is not None
    assert "tried on getpid()" in one.stand_in


def test_usdt_is_left_to_libbpf() -> None:
    with pytest.raises(NotAttempted, match="--loader libbpf"):
        attach_uprobe.usdt(attempt("usdt/x"))


@pytest.mark.parametrize(
    ("one", "errno", "words"),
    [
        (attempt("uprobe.multi.s/x"), 22, "no uprobe.multi links"), (attempt("kprobe.multi/x"), 22, "no kprobe.multi"),
        (attempt("uprobe/x", target="a:b"), 22, "Invalid argument"),
        (attempt("kprobe/x", target="f"), 22, "f is there and cannot be probed"),
        (attempt("tcx/ingress", prog_type="sched_cls", attach_type="tcx_ingress"), 22, "no tcx links"),
        (attempt("tc", prog_type="sched_cls"), 22, "Invalid argument"),
    ],
)  # fmt: skip
def test_an_errno_is_explained_by_what_was_asked(one: Attempt, errno: int, words: str) -> None:
    assert words in attach._explained(one, errno, OSError(errno, "Invalid argument"))


def test_modules_follow_from_the_sections(tmp_path: Path) -> None:
    everything = compile_object(OBJECTS / "attach.bpf.c", tmp_path / "attach.o").read_bytes()
    assert spare_modules.wanted(everything) == ("sch_ingress", "cls_bpf", "act_bpf")
    (tmp_path / "tcx.bpf.c").write_text(
        '__attribute__((section("tcx/ingress"))) int f(void *c) { return 0; }\n'
        '__attribute__((section("kprobe/do_exit"))) int g(void *c) { return 0; }\n'
    )
    assert spare_modules.wanted(compile_object(tmp_path / "tcx.bpf.c", tmp_path / "tcx.o").read_bytes()) == ()
    assert spare_modules.wanted(b"no ELF") == ()


def test_a_machine_of_somebodys_gets_no_modules(tmp_path: Path) -> None:
    data = compile_object(OBJECTS / "attach.bpf.c", tmp_path / "attach.o").read_bytes()
    spec: KernelSpec = cells.kernel_spec()
    asked: list[Any] = []
    session = SimpleNamespace(
        kernel=SimpleNamespace(spec=SimpleNamespace(backend="ssh", id=spec.id)), request=asked.append
    )
    spare_modules.hand_over(session, data, None, print)  # type: ignore[arg-type]
    assert asked == []
