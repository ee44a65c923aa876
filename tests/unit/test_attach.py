"""Attaching without a kernel: functions of a binary by pyelftools as the second witness, modules by an object's
sections, what is said of an errno.
"""

from __future__ import annotations

import re
import struct
import subprocess
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from elftools.elf.elffile import ELFFile

from harness.backends import spare_modules
from harness.guest import attach, attach_perf, attach_uprobe, attach_usdt
from harness.guest.attempt import Attempt, Gone, NotAttempted
from harness.guest.elf import Elf
from harness.guest.errors import GuestError
from harness.model.kernel import KernelSpec
from tests.support import cells, usdt
from tests.support.objects import OBJECTS, compile_object


def attempt(
    section: str, *, target: str | None = None, prog_type: str = "kprobe", attach_type: str = "",
    maps: tuple[str, ...] = (),
) -> Attempt:  # fmt: skip
    facts = {"section": section, "attach_target": target, "prog_type": prog_type, "expected_attach_type": attach_type}
    return Attempt(None, 3, facts, "__x64_sys_", {}, maps)  # type: ignore[arg-type]


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


@pytest.fixture(scope="module", params=["-static", "-pie"])
def tool(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with three places of two probes, as <sys/sdt.h> writes their notes."""
    return usdt.build_tool(tmp_path_factory.mktemp("usdt"), "-fPIE", request.param)


def test_the_places_of_a_probe_are_those_readelf_shows(tool: Path) -> None:
    """Addresses by `readelf -n`, made places in the file by pyelftools' segments."""
    said = subprocess.run(["readelf", "-nW", tool], capture_output=True, text=True, check=True).stdout
    shown = re.findall(r"Name: (\S+)\s+Location: (\S+), Base: \S+, Semaphore: (\S+)", said)
    with tool.open("rb") as file:
        loads = [seg.header for seg in ELFFile(file).iter_segments("PT_LOAD")]

    def in_file(address: int) -> int:
        load = next(load for load in loads if 0 <= address - load.p_vaddr < load.p_filesz)
        return int(address - load.p_vaddr + load.p_offset) if address else 0

    for name, count in (("started", 2), ("counted", 1)):
        expected = [(in_file(int(place, 0)), in_file(int(semaphore, 0)) if int(semaphore, 0) else 0)
                    for own, place, semaphore in shown if own == name]  # fmt: skip
        found = [(probe.offset, probe.semaphore) for probe in attach_usdt.probes(tool.read_bytes(), "tool", name)]
        assert found == expected and len(found) == count
    assert [tool.read_bytes()[offset] for offset, _ in found] == [0x90]  # the nop
    assert found[0][1] != 0
    assert list(attach_usdt.probes(tool.read_bytes(), "other", "started")) == []


def test_a_binary_that_was_moved_after_its_notes_were_written(tool: Path) -> None:
    """prelink(8) moves addresses and leaves notes: `.stapsdt.base` has moved by as much as everything else."""
    data = bytearray(tool.read_bytes())
    elf = Elf(bytes(data), "tool")
    notes, base = elf.section(".note.stapsdt"), elf.section(".stapsdt.base")
    assert notes is not None and base is not None
    expected = [probe.offset for probe in attach_usdt.probes(bytes(data), "tool", "started")]
    content = elf.content(notes)
    for match in re.finditer(re.escape(struct.pack("<Q", base.addr)), content):
        at = notes.offset + match.start()
        place, then = struct.unpack_from("<QQ", data, at - 8)
        struct.pack_into("<QQ", data, at - 8, place - 0x100, then - 0x100)
    assert [probe.offset for probe in attach_usdt.probes(bytes(data), "tool", "started")] == expected


def test_what_usdt_needs_is_said(tool: Path, tmp_path: Path) -> None:
    maps = ("__bpf_usdt_specs", "__bpf_usdt_ip_to_spec_id")
    (tmp_path / "text").write_text("no ELF")
    for target, given, words in (
        (f"{tool}:tool:started", (), "no maps for USDT"), (f"{tool}:tool:gone", maps, "have no tool:gone"),
        (f"{tmp_path}/text:a:b", maps, "is no ELF file"),
    ):  # fmt: skip
        with pytest.raises(Gone, match=words):
            attach_usdt.usdt(attempt("usdt/x", target=target, maps=given))
    with pytest.raises(NotAttempted, match="names no probe"):
        attach_usdt.usdt(attempt("usdt/x", target=f"{tool}:tool", maps=maps))


def test_notes_that_are_broken_raise_and_nothing_else(tool: Path) -> None:
    data = tool.read_bytes()
    notes = Elf(data, "tool").section(".note.stapsdt")
    assert notes is not None
    for at in range(notes.offset, notes.offset + notes.size):
        for value in (0, 0xFF):
            broken = data[:at] + bytes([value]) + data[at + 1 :]
            with suppress(Gone, GuestError):
                list(attach_usdt.probes(broken, "tool", "started"))


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


@pytest.mark.parametrize(("one", "option"), [
    (attempt("kprobe/x", target="do_exit"), "CONFIG_KPROBE_EVENTS"),
    (attempt("uprobe/x", target="libc.so.6:getpid"), "CONFIG_UPROBE_EVENTS"),
])  # fmt: skip
def test_a_kernel_built_without_probes_is_not_one_whose_symbol_is_gone(
    one: Attempt, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No such PMU, and a tracing file system without the file in which events are made."""
    own_library()
    monkeypatch.setattr(attach_perf, "_PMU", f"{tmp_path}/%s/type")
    monkeypatch.setattr(attach_perf, "_ROOTS", (str(tmp_path),))
    monkeypatch.setattr(attach, "is_symbol", lambda _name: True)
    (tmp_path / "events").mkdir()
    found = attach.try_attach(one)
    assert found["status"] == "refused"
    assert option in found["error"] and "gone" not in found["error"]
