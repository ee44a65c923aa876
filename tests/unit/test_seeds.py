"""docs/seeds.md: what it says of the documents' wrong examples, observed on the compiler, libbpf and this kernel.

`tests/objects/seeds/NAME.bpf.c` is the example, made just complete enough to be compiled.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from tests.support.objects import OBJECTS, PROGRAMS, clang_run, compile_object, disassembly, target_btf, tool
from tests.support.real_libbpf import Libbpf, needs_bpf

SEEDS = OBJECTS / "seeds"
DOES_NOT_COMPILE = {
    "bitfield_three_arguments": "too many arguments provided to function-like macro invocation",
    "enum_preserved": "too few arguments to function call, expected 2, have 1",
    "flavor_assigned_back": "no member named 'experimental' in 'struct task_struct'",
    "missing_parenthesis": r"expected '\)'",
    "read_field_builtin": "use of unknown builtin '__builtin_bpf_read_field'",
}
COMPILES = sorted({path.name.removesuffix(".bpf.c") for path in SEEDS.glob("*.bpf.c")} - set(DOES_NOT_COMPILE))
BTFHUB = Path("/work/shared/btf")
DOCUMENTS = Path("/work/shared/seeds")


def seed(name: str, tmp_path: Path) -> Path:
    return compile_object(SEEDS / f"{name}.bpf.c", tmp_path / f"{name}.bpf.o")


@pytest.fixture
def btf_4_19(tmp_path: Path) -> Path:
    """The BTF of a distribution's x86_64 4.19 kernel: it has real_start_time and `state`."""
    archives = sorted(BTFHUB.glob("bclinux/*/x86_64/4.19.90-*.btf.tar.xz"))
    if not archives:
        pytest.skip(f"needs the BTF files in {BTFHUB}")
    with tarfile.open(archives[0]) as archive:
        member = next(one for one in archive.getmembers() if one.isfile())
        content = archive.extractfile(member)
        assert content is not None
        path = tmp_path / "4.19.btf"
        path.write_bytes(content.read())
    return path


@pytest.mark.parametrize("name", sorted(DOES_NOT_COMPILE))
def test_examples_that_do_not_compile(name: str, tmp_path: Path) -> None:
    done = clang_run(SEEDS / f"{name}.bpf.c", tmp_path / "x.o")
    assert done.returncode != 0
    assert re.search(DOES_NOT_COMPILE[name], done.stderr), done.stderr


@pytest.mark.parametrize("name", COMPILES)
def test_the_others_compile(name: str, tmp_path: Path) -> None:
    seed(name, tmp_path)


def test_const_without_volatile_leaves_no_switch(tmp_path: Path) -> None:
    text = disassembly(seed("const_not_volatile", tmp_path))
    plain, switchable = text.split("<const_volatile>:")
    assert "call 0xd0" not in plain  # bpf_ktime_get_tai_ns is helper 208
    assert "call 0xd0" in switchable
    assert "use_fancy_helper_volatile" in switchable


# (example, program, poisoned instructions on any kernel): with poison alive libbpf's load ends in -EINVAL.
POISONED_EVERYWHERE = [
    ("fpath", "fpath"),
    ("fpath", "file_path"),
    ("fpath", "binfmt_executable"),
    ("inet_macros", "daddr"),
    ("inet_macros", "dport"),
    ("flavor_two_underscores", "two_underscores"),
    ("flavor_of_member", "flavor_of_member"),
]
SOUND_TWINS = [
    ("inet_macros", "source"),
    ("flavor_two_underscores", "three_underscores"),
    ("flavor_of_member", "flavor_of_enumerator"),
]


@needs_bpf
@pytest.mark.parametrize(("name", "program"), POISONED_EVERYWHERE)
def test_members_no_kernel_has_are_poison(name: str, program: str, tmp_path: Path) -> None:
    judgement = Libbpf().load(seed(name, tmp_path), program)
    assert judgement.errno == 22
    assert judgement.poisoned >= 1
    assert "failed to resolve CO-RE relocation" in judgement.messages


@needs_bpf
@pytest.mark.parametrize(("name", "program"), SOUND_TWINS)
def test_their_sound_twins_load(name: str, program: str, tmp_path: Path) -> None:
    judgement = Libbpf().load(seed(name, tmp_path), program)
    assert (judgement.errno, judgement.poisoned) == (0, 0)


@needs_bpf
def test_real_start_time_tv_sec_is_never_found(tmp_path: Path, btf_4_19: Path) -> None:
    """On 4.19, which has real_start_time, the guide's checks are both 0, and the sound program's second check is 1."""
    judge = Libbpf()
    published = judge.load(seed("start_time_tv_sec", tmp_path), btf=btf_4_19)
    assert published.errno == 0
    assert published.decisions == [
        ("field_exists", "task_struct.start_boottime", 0),
        ("byte_off", "task_struct.start_boottime", None),
        ("field_exists", "task_struct.real_start_time", 0),
        ("byte_off", "task_struct.real_start_time.tv_sec", None),
    ]
    sound = judge.load(compile_object(PROGRAMS / "start_time.bpf.c", tmp_path / "start_time.bpf.o"), btf=btf_4_19)
    assert sound.decisions[-2] == ("field_exists", "task_struct___before_5_5.real_start_time", 1)
    assert sound.decisions[-1][2] is not None


@needs_bpf
def test_state_unguarded_is_poison_before_5_14(tmp_path: Path, btf_4_19: Path) -> None:
    judgement = Libbpf().load(seed("state_unguarded", tmp_path), btf=btf_4_19)
    assert (judgement.errno, judgement.poisoned) == (22, 1)


@needs_bpf
def test_the_name_behind_a_pointer_must_be_followed(tmp_path: Path) -> None:
    """Run in this machine's kernel: the published read copies the pointer's bytes, the other the executable's name."""
    judge = Libbpf()
    with judge.loaded(seed("name_is_pointer", tmp_path)) as (judgement, opened):
        assert judgement.errno == 0, judgement.messages
        assert opened is not None
        judge.run(opened, "as_published")
        judge.run(opened, "followed")
        published, followed = (judge.value(opened, "names", key, 64).split(b"\0")[0] for key in (0, 1))
    executable = Path("/proc/self/exe").resolve().name.encode()
    assert followed == executable[:63]
    assert published != followed


@needs_bpf
def test_a_bitfield_read_of_any_integer_and_a_direct_read_by_the_builtin_alone(tmp_path: Path) -> None:
    """Run in this machine's kernel, for a thread of this process; held against /proc and the thread's own id."""
    judge, built = Libbpf(), seed("bitfield_integer", tmp_path)
    expected: list[int] = []
    with judge.loaded(built) as (judgement, opened):
        assert judgement.errno == 0, judgement.messages
        assert opened is not None

        def in_a_thread() -> None:
            judge.run(opened, "integers")
            after_name = Path("/proc/thread-self/stat").read_text().rpartition(") ")[2].split()
            expected[:] = [int(after_name[35]), threading.get_native_id()]  # proc(5): (38) exit_signal

        thread = threading.Thread(target=in_a_thread)
        thread.start()
        thread.join()
        values = [int.from_bytes(judge.value(opened, "values", key, 8), "little", signed=True) for key in (0, 1)]
    assert values == expected and values[0] == -1
    statement = judge.load(built, "statement")
    assert (statement.errno, statement.poisoned) == (0, 0)
    assert "task_struct::pid" in disassembly(built).split("<statement>:")[1]


def test_objdump_shows_relocations_of_core_only_when_it_disassembles(tmp_path: Path) -> None:
    """The guide's `llvm-objdump -r` "to verify relocations"."""
    built = compile_object(PROGRAMS / "task_state.bpf.c", tmp_path / "task_state.bpf.o")
    alone = subprocess.run([tool("llvm-objdump"), "-r", built], capture_output=True, text=True, check=True).stdout
    assert "R_BPF_64_64" in alone and "CO-RE" not in alone
    assert "CO-RE <byte_off>" in disassembly(built)


def test_what_makes_pt_regs_relocatable_is_the_declaration_and_not_the_macro(tmp_path: Path) -> None:
    """The guide: "PT_REGS_PARM1 is CO-RE-aware"."""
    text = (
        '#include "types.h"\n{regs}\n#include <bpf/bpf_helpers.h>\n#include <bpf/bpf_tracing.h>\n'
        'SEC("kprobe/vfs_open") int f(struct pt_regs *ctx) {{ bpf_printk("%lx", PT_REGS_PARM1(ctx)); return 0; }}\n'
        'char LICENSE[] SEC("license") = "GPL";\n'
    )
    marked = "struct pt_regs {{ unsigned long rdi; }} {attribute};"
    found = {}
    for name, regs in (("ours", '#include "pt_regs.h"'), ("as vmlinux.h marks it", marked.format(attribute="__core")),
                       ("unmarked", marked.format(attribute=""))):  # fmt: skip
        source = tmp_path / "p.bpf.c"
        source.write_text(text.format(regs=regs))
        built = compile_object(source, tmp_path / "p.o", "-D__TARGET_ARCH_x86")
        found[name] = "CO-RE" in disassembly(built)
    assert found == {"ours": False, "as vmlinux.h marks it": True, "unmarked": False}


@needs_bpf
def test_reading_through_a_number_is_refused(tmp_path: Path) -> None:
    built = seed("direct_scalar", tmp_path)
    refused = Libbpf().load(built, "direct_scalar")
    assert refused.errno == 13
    assert "invalid mem access" in refused.messages
    assert Libbpf().load(built, "direct_btf").errno == 0


@needs_bpf
def test_a_forward_declaration_finds_no_struct(tmp_path: Path) -> None:
    judge, built = Libbpf(), seed("forward_declared", tmp_path)
    assert [judge.load(built, name).insns[4:8] for name in ("forward_declared", "defined")] == [
        bytes(4),
        b"\1\0\0\0",
    ]


@needs_bpf
def test_an_extern_without_kconfig_is_refused(tmp_path: Path) -> None:
    judgement = Libbpf().load(seed("extern_without_kconfig", tmp_path))
    assert judgement.errno != 0
    assert "extern 'CONFIG_TASK_IO_ACCOUNTING'" in judgement.messages


@needs_bpf
def test_the_slides_spelling_of_the_config_switch_fails_the_object(tmp_path: Path) -> None:
    built = compile_object(OBJECTS / "kconfig_missing.bpf.c", tmp_path / "x.o")
    judgement = Libbpf().load(built, kconfig="CONFIG_TASK_IO_ACCOUNTING=y\nCONFIG_HZ=250\n")
    assert judgement.errno == 3 or "CONFIG_IO_TASK_ACCOUNTING" in judgement.messages
    assert judgement.errno != 0


@needs_bpf
def test_existence_checks_can_fail(tmp_path: Path) -> None:
    target = target_btf(SEEDS / "exists_ambiguous.bpf.c", tmp_path / "target.btf")
    judge, built = Libbpf(), seed("exists_ambiguous", tmp_path)
    judgement = judge.load(built, btf=target)
    assert judgement.errno == 22
    assert "field offset ambiguity" in judgement.messages
    assert judge.load(built).errno == 0  # no such type in a real kernel: 0, and no failure


@needs_bpf
def test_a_missing_types_size_is_zero_not_poison(tmp_path: Path) -> None:
    built = compile_object(PROGRAMS / "sizes.bpf.c", tmp_path / "sizes.bpf.o")
    judge = Libbpf()
    with judge.loaded(built) as (judgement, opened):
        assert judgement.errno == 0, judgement.messages
        assert opened is not None
        judge.run(opened, "sizes")
        values = judge.value(opened, "last_sizes", 0, 56)
    words = [int.from_bytes(values[at : at + 8], "little") for at in range(0, 40, 8)]
    task_struct, _ringbuf, missing, comm, _state = words
    assert (missing, comm) == (0, 16)
    assert task_struct == _size_of("task_struct")


def _size_of(struct: str) -> int:
    """By bpftool's reader of BTF."""
    if shutil.which("bpftool") is None:
        pytest.skip("needs bpftool")
    command = ["bpftool", "btf", "dump", "file", "/sys/kernel/btf/vmlinux", "format", "raw"]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(rf"STRUCT '{struct}' size=(\d+)", text)
    assert found is not None
    return int(found[1])


@needs_bpf
def test_the_guides_complete_example_does_not_compile(tmp_path: Path, btf_4_19: Path) -> None:
    """Its process_lineage.c, out of the document itself, against the vmlinux.h of a new and of an old kernel."""
    text = "".join(path.read_text(errors="replace") for path in sorted(DOCUMENTS.glob("*.txt")))
    found = re.search(r"// process_lineage\.c\n(.*?_license\[\][^\n]*\n)", text, re.DOTALL)
    if found is None or shutil.which("bpftool") is None:
        pytest.skip(f"needs the documents in {DOCUMENTS} and bpftool")
    complaints = {}
    for name, btf in (("new", Path("/sys/kernel/btf/vmlinux")), ("old", btf_4_19)):
        directory = tmp_path / name
        directory.mkdir()
        header = subprocess.run(
            ["bpftool", "btf", "dump", "file", btf, "format", "c"], capture_output=True, text=True, check=True
        )
        (directory / "vmlinux.h").write_text(header.stdout)
        (directory / "process_lineage.c").write_text(found[1])
        done = clang_run(directory / "process_lineage.c", directory / "x.o", f"-I{directory}", "-Wno-everything")
        assert done.returncode != 0
        complaints[name] = done.stderr
    assert "no member named 'real_start_time'" in complaints["new"]
    assert "is not a structure or union" in complaints["old"]
