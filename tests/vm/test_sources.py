"""Kernels in files and BTF from elsewhere, in real guests: a UART where there is no virtio_console, the same ledger
with the kernel's own BTF given as a file, and wrong BTF noticed.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import boot, kernels
from harness.errors import UsageError
from harness.kernels import external_btf
from harness.model.kernel import Kernel
from harness.model.sources import BtfSource, FileBtf, PathSource
from harness.session import JudgeRequest, Session
from harness.vm import devices
from tests.support import guests
from tests.support.objects import PROGRAMS, compile_object
from tests.vm.test_session import comparable

pytestmark = pytest.mark.vm

X86, ARM = "debian-5.10-cloud-amd64", "debian-6.1-cloud-arm64"


def in_files(of: Kernel, tmp_path: Path, *, with_modules: bool, btf: BtfSource | None = None) -> Kernel:
    """A kernel of the matrix as somebody has it who has its files only."""
    assert of.vmlinuz is not None
    for path in of.modules if with_modules else ():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = PathSource(vmlinuz=of.vmlinuz, config=of.config, modules=tmp_path if with_modules else None)
    spec = replace(of.spec, id="in-files", source=source, btf=btf)
    return kernels.provide(spec, guests.store(), None, lambda _line: None)


def ledger(kernel: Kernel, **options: Any) -> tuple[dict[str, Any], Session]:
    """What the kernel makes of task_state, and the session it came from (closed)."""
    with tempfile.TemporaryDirectory() as directory:
        data = compile_object(PROGRAMS / "task_state.bpf.c", Path(directory) / "task_state.o").read_bytes()
    with Session(kernel, guests.options(kernel, **options)) as session:
        facts = session.judge(JudgeRequest(name="task_state"), data, lambda _message: None)
    return comparable(facts), session


def has_uart(kernel: Kernel) -> bool:
    recipe = boot.Recipe(
        kernel=kernel, packages=guests.packages(kernel.spec.arch), store=guests.store(), accelerator="tcg"
    )
    return any(isinstance(device, devices.ResultUart) for device in boot._hardware(recipe, 0, 0, 0, "tcg"))


@pytest.mark.parametrize("identity", [X86, ARM])
def test_without_modules_the_guest_answers_over_a_second_uart(identity: str, tmp_path: Path) -> None:
    whole = guests.kernel(identity)
    bare = in_files(whole, tmp_path, with_modules=False)
    assert has_uart(bare)
    assert not has_uart(whole)
    facts, _session = ledger(bare, cold=True)
    assert facts["progs"] == ledger(whole)[0]["progs"]


def test_a_guest_on_a_uart_is_saved_and_restored(tmp_path: Path) -> None:
    bare = in_files(guests.kernel(X86), tmp_path, with_modules=False)
    first, before = ledger(bare)
    again, session = ledger(bare)
    assert session.provenance.start == "restored", (before.provenance.notes, session.provenance.notes)
    assert first == again


def test_the_kernels_own_btf_given_as_a_file_gives_the_same_ledger(tmp_path: Path) -> None:
    whole = guests.kernel(X86)
    assert whole.btf is not None
    given = in_files(whole, tmp_path, with_modules=True, btf=FileBtf(file=whole.btf))
    facts, session = ledger(given)
    plain, _ = ledger(whole)
    assert facts["guest"]["btf"]["source"] == "file"
    assert facts["guest"]["btf"]["sha256"] == plain["guest"]["btf"]["sha256"]
    assert facts["guest"]["btf"]["kallsyms"]["missing"] == 0
    assert facts["progs"] == plain["progs"]
    assert any("external BTF" in line and "verified" in line for line in session.provenance.notes)


def test_wrong_btf_is_noticed_in_the_guest_too(tmp_path: Path) -> None:
    """Nothing on the host to compare it with: the kernel's symbol table knows that it is another's."""
    whole, other = guests.kernel(X86), guests.kernel("debian-6.1-cloud-amd64")
    assert other.btf is not None
    file = tmp_path / "mine.btf"
    file.write_bytes(other.btf.read_bytes())
    blind = replace(whole, btf=None, btf_sha256=None)
    given = external_btf.attach(blind, FileBtf(file=file), guests.store(), lambda _line: None)
    assert not given.source["btf"]["verified"]
    with pytest.raises(UsageError, match=r"of another kernel: .* functions are not in the kernel's symbol table"):
        Session(given, guests.options(given, cold=True))
