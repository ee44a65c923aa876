"""`run --cover` from the kernels chosen to the report: kernels are their BTF, and guests answer with facts written by
hand. Of a kernel about which nothing can be foretold, and of one whose stand-in proved nothing, nothing is claimed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness import cli
from harness.commands import executors
from harness.errors import FetchError, GuestLostError
from harness.guest.elf import Elf
from harness.judge import lost
from harness.model.kernel import Kernel, KernelSpec
from harness.model.result import CellResult
from tests.support import cells
from tests.support.clang import compile_bpf, compile_target
from tests.support.facts import begun, facts, judged, prog
from tests.support.renamed_thing import guarded

PLAIN = """
SEC("kprobe/attach_here")
int plain(void *ctx) { return 0; }
"""
TARGET = "int attach_here(struct thing *it, int number) { return number; }"
READS_CONFIG = """
extern int CONFIG_HZ __attribute__((section(".kconfig"), weak));
SEC("kprobe/attach_here")
int configured(void *ctx) { return CONFIG_HZ; }
"""
OLD, NEW = "struct thing { long before; int old_name; };", "struct thing { int new_name; };"
RELEASES = {
    "debian-5.10-cloud-amd64": "5.10.0-1", "debian-6.1-cloud-amd64": "6.1.0-1", "debian-6.12-cloud-amd64": "6.12.0-1",
}  # fmt: skip
FIRST, SECOND, THIRD = RELEASES
Given = str | bytes | FetchError | None  # a kernel's types in C, its BTF, why it cannot be had, or none
Result = Callable[[CellResult], CellResult]


def btf(text: str) -> bytes:
    elf = Elf(compile_target(text + TARGET, "struct thing"))
    section = elf.section(".BTF")
    assert section is not None
    return bytes(elf.content(section))


class Covered:
    """`corematrix run --cover` of one object on three kernels with such BTF; `asked` are the cells that were run."""

    def __init__(self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._place, self._monkeypatch, self._capsys = place, monkeypatch, capsys
        self.asked: list[str] = []
        self.configured: tuple[str, ...] = ()  # kernels whose configuration is at hand
        (place / "thing.bpf.o").write_bytes(compile_bpf(guarded("fentry/attach_here") + PLAIN))

    def run(self, *types: Given, becomes: Result = lambda result: result, more: tuple[str, ...] = ()) -> int:
        given = dict(zip(RELEASES, types, strict=True))

        def provide(spec: KernelSpec, *_rest: object) -> Kernel:
            found = given[spec.id]
            if isinstance(found, FetchError):
                raise found
            release = RELEASES[spec.id]
            kernel = replace(cells.kernel(spec), release=release, source={"version": release})
            if spec.id in self.configured:
                (self._place / "config").write_text("CONFIG_HZ=250\n")
                kernel = replace(kernel, config=self._place / "config")
            if found is None:
                return kernel
            data = btf(found) if isinstance(found, str) else found
            path = self._place / f"{spec.id}.btf"
            path.write_bytes(data)
            return replace(kernel, btf=path, btf_sha256=hashlib.sha256(data).hexdigest())

        asked: list[str] = []
        self.asked = asked

        class Fake:
            def __init__(self, _services: object) -> None:
                pass

            def run(self, plan: Any, _listener: object) -> Any:
                for cell in plan.cells:
                    asked.append(cell.kernel.id)
                    answer = facts([prog("guarded"), prog("plain")])
                    yield becomes(judged(answer, cell=begun(cell.kernel.id, cell.object.name)))

        self._monkeypatch.setattr("harness.kernels.provide", provide)
        self._monkeypatch.setattr(executors, "LocalExecutor", Fake)
        words = [word for kernel in RELEASES for word in ("-k", kernel)] if "--only" not in more else []
        status = cli.main(["run", str(self._place), *words, "--cover", "--json", "run.json", *more])
        self.out, self.err = self._capsys.readouterr()
        run = json.loads(Path("run.json").read_text())
        assert [cell["kernel"]["id"] for cell in run["cells"]] == self.asked
        self.cover: dict[str, Any] = run["cover"]
        return status

    def open_of(self, kernel: str) -> list[tuple[str, str | None]]:
        """What the boot itself left unproven of a kernel that was not booted."""
        (one,) = [one for one in self.cover["stand_ins"] if one["kernel"] == kernel]
        return [(remark["text"], remark["prog"]) for remark in one["unproven"] if remark["what"] == "proof"]


@pytest.fixture
def covered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Covered:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "cache"))
    return Covered(tmp_path, monkeypatch, capsys)


def test_kernels_that_others_stand_for_are_not_run_and_are_named(covered: Covered) -> None:
    assert covered.run(OLD, NEW, NEW) == 0
    assert covered.asked == [FIRST, SECOND]
    assert (covered.cover["kernels"], covered.cover["booted"], covered.cover["always"]) == (3, [FIRST, SECOND], [])
    (one,) = covered.cover["stand_ins"]
    assert (one["kernel"], one["object"], one["uncovered"]) == (THIRD, "thing", [])
    assert [(share["kernel"], sorted(share["progs"])) for share in one["by"]] == [(SECOND, ["guarded", "plain"])]
    assert covered.open_of(THIRD) == []
    assert "2 of 3 kernels booted, 1 not" in covered.out
    assert f"2 of 3 kernels are booted: {FIRST}, {SECOND}" in covered.err


@pytest.mark.parametrize(
    ("unknown", "why"),
    [
        (None, "no BTF to foretell it from"),
        (FetchError("404 Not Found"), "404 Not Found"),
        (b"no BTF at all" * 9, "invalid magic 0x6e6f"),
    ],
    ids=["none", "not to be had", "damaged"],
)
def test_a_kernel_of_which_nothing_is_foretold_is_booted(
    covered: Covered, unknown: bytes | FetchError | None, why: str
) -> None:
    assert covered.run(NEW, unknown, NEW) == 0
    assert covered.asked == [FIRST, SECOND]
    assert covered.cover["always"] == [SECOND]
    assert [one["kernel"] for one in covered.cover["stand_ins"]] == [THIRD]
    (note,) = covered.cover["notes"]
    assert note == f"{SECOND}: {why}"


def test_a_stand_in_that_proved_nothing_leaves_it_open(covered: Covered) -> None:
    assert covered.run(NEW, NEW, NEW, becomes=lambda result: lost(result, GuestLostError("panic"))) == 7
    for kernel in (SECOND, THIRD):
        assert covered.open_of(kernel) == [(f"{FIRST} proved nothing: crashed: panic", None)]
    assert f"{FIRST} proved nothing" in " ".join(covered.out.split())


def test_what_was_foretold_wrongly_is_not_to_be_relied_on_elsewhere(covered: Covered) -> None:
    row = {
        "prog": "guarded", "field": "thing.old_name", "kind": "byte_off", "kernel": "live", "predicted": "eliminated",
        "evidence": "line_info", "index": 0, "insn": 1,
    }  # fmt: skip
    prediction = {"rules": [], "compared": 2, "disagreements": [row], "reason": "too much to walk: plain"}
    assert covered.run(NEW, NEW, NEW, becomes=lambda result: replace(result, prediction=prediction)) == 0
    assert covered.open_of(SECOND) == covered.open_of(THIRD) == [
        (f"thing.old_name is live on {FIRST}, foretold eliminated", "guarded"),
        (f"on {FIRST} nothing was held against the proof: too much to walk: plain", None),
    ]  # fmt: skip


def test_a_program_refused_where_it_was_booted_is_to_be_expected_refused_elsewhere(covered: Covered) -> None:
    def refused(result: CellResult) -> CellResult:
        answer = facts([prog("guarded", loaded=result.kernel.id != SECOND), prog("plain")])
        return judged(answer, cell=begun(result.kernel.id, result.object.name))

    assert covered.run(OLD, NEW, NEW, becomes=refused) == 1
    assert covered.open_of(THIRD) == [(f"rejected on {SECOND}, and so to be expected here", "guarded")]


def test_a_kernel_of_which_only_btf_is_at_hand_is_said_and_never_run(covered: Covered, tmp_path: Path) -> None:
    only = tmp_path / "tree" / "alien" / "1" / "x86_64" / "5.19.0.btf"
    only.parent.mkdir(parents=True)
    only.write_bytes(btf("struct thing { int third_name; };"))
    assert covered.run(OLD, NEW, NEW, more=("--cover-btf", str(tmp_path / "tree"))) == 0
    assert covered.asked == [FIRST, SECOND]
    (one,) = [one for one in covered.cover["stand_ins"] if one["distro"] == "alien"]
    assert (one["bootable"], one["uncovered"]) == (False, ["guarded"])
    assert (covered.cover["kernels"], covered.cover["unshown"]) == (4, 1)
    assert [share["progs"] for share in one["by"]] == [["plain"]]

    def refused(result: CellResult) -> CellResult:
        return judged(facts([prog("guarded", loaded=False), prog("plain")]), cell=begun(result.kernel.id, "thing"))

    assert covered.run(OLD, NEW, NEW, becomes=refused, more=("--cover-btf", str(tmp_path / "tree"))) == 1
    (one,) = [one for one in covered.cover["stand_ins"] if one["distro"] == "alien"]
    assert [remark for remark in one["unproven"] if remark["what"] == "proof"] == []  # of `guarded` it shows nothing


def test_a_kernel_stands_for_another_with_the_objects_it_runs(covered: Covered, tmp_path: Path) -> None:
    (tmp_path / "other.bpf.o").write_bytes((tmp_path / "thing.bpf.o").read_bytes())
    cells = [f"{FIRST}/thing@python", f"{SECOND}/thing@python", f"{THIRD}/other@python"]
    more = tuple(word for cell in cells for word in ("--only", cell))
    assert covered.run(NEW, NEW, NEW, more=more) == 0
    assert covered.asked == [FIRST, THIRD]
    (one,) = covered.cover["stand_ins"]
    assert (one["kernel"], one["object"], one["by"][0]["kernel"]) == (SECOND, "thing", FIRST)


def test_a_kernel_without_configuration_shows_nothing_of_an_object_that_reads_it(
    covered: Covered, tmp_path: Path
) -> None:
    """Nobody is to be told that it stands for others: the guest would give the object up."""
    (tmp_path / "thing.bpf.o").write_bytes(compile_bpf(READS_CONFIG))
    covered.run(NEW, NEW, NEW)
    assert covered.asked == [FIRST]  # nothing can be shown of anything
    assert [one["uncovered"] for one in covered.cover["stand_ins"]] == [["configured"]] * 2
    assert covered.cover["unshown"] == 1
    covered.configured = (THIRD,)
    covered.run(NEW, NEW, NEW)
    assert covered.asked == [THIRD]
    assert {one["kernel"] for one in covered.cover["stand_ins"]} == {FIRST, SECOND}


def test_a_kernel_that_the_expectations_take_out_is_neither_booted_for_it_nor_stands_for_others(
    covered: Covered, tmp_path: Path
) -> None:
    rules = "rules: [{kernels: '%s', verdict: not_applicable, reason: never mind}]"
    (tmp_path / "thing.yaml").write_text(rules % SECOND)
    assert covered.run(OLD, NEW, NEW) == 0
    assert covered.asked == [FIRST, THIRD]
    assert covered.cover["stand_ins"] == []
    (tmp_path / "thing.yaml").write_text(rules % "debian-6.*")
    assert covered.run(OLD, NEW, NEW) == 0
    assert (covered.asked, covered.cover["stand_ins"]) == ([FIRST], [])
    assert "1 of 3 kernels booted, 2 not" in covered.out
