"""What a user gets wrong, and what is said to that: status, file, place, remedy; never a traceback, never status 0."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import cli
from harness.errors import CacheError, CorematrixError, FetchError, GuestLostError
from harness.judge import lost
from harness.model.kernel import Kernel, KernelSpec
from harness.model.plain_json import to_json
from tests.support import cells
from tests.support.clang import compile_bpf, needs_clang
from tests.support.facts import begun, facts, judged, prog, run_of

SOURCE = 'SEC("raw_tp/x") u64 prog(void *ctx) { return 0; }\n'


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COREMATRIX_CACHE", str(tmp_path / "cache"))
    run = to_json(run_of(judged(facts([prog()]), cell=begun("debian-6.1-cloud-amd64"))))
    Path("run.json").write_text(json.dumps(run))
    Path("empty").mkdir()
    Path("unfinished").mkdir()
    Path("unfinished/plan.json").write_text("{}")
    Path("latin.yaml").write_bytes(b"\xff")
    Path("broken.yaml").write_text("kernels: [\n")


MISTAKES = [
    ("report run.json --format compat --sweep run.json", 2, ["run.json: not a corematrix sweep", "sweep --json"]),
    ("report empty", 2, ["empty/run.json: cannot be read", "corematrix-runs/"]),
    ("report unfinished", 2, ["unfinished: this run has not come to its end", "--resume unfinished"]),
    ("report latin.yaml", 2, ["latin.yaml: not JSON"]),
    ("diff run.json", 2, ["BASE and NEW wanted, 1 given", "diff BASE NEW"]),
    ("diff --history run.json", 3, ["run.json: no two kernels of one architecture", "more kernels"]),
    ("diff --kernels debian-6.1-cloud-amd64 nosuch run.json", 2, ["no kernel 'nosuch'", "debian-6.1-cloud-amd64"]),
    ("kernels list --matrix gone.yaml", 2, ["gone.yaml: cannot be read: No such file or directory\n"]),
    ("kernels list --matrix latin.yaml", 2, ["latin.yaml: not UTF-8: invalid start byte at byte 0"]),
    ("kernels list --matrix broken.yaml", 2, ["broken.yaml:2:1: "]),
    ("kernels list --arch amd64", 3, ["is of architecture 'amd64'\n", "architectures: x86_64, arm64"]),
    ("kernels list --tag gat", 3, ["has tag 'gat'\n", "tags in use: exotic, full, gate"]),
    ("kernels list -k debian-6.1-* --arch riscv64", 3, ["matches 'debian-6.1-*' and is of architecture 'riscv64'"]),
]


def test_a_cell_that_is_like_no_other_is_answered_with_one_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    needs_clang()
    Path("x.bpf.o").write_bytes(compile_bpf(SOURCE))
    assert cli.main(["run", "x.bpf.o", "--only", "?"]) == 3
    assert "as debian-5.10-cloud-amd64/x@python (one of " in capsys.readouterr().err


@pytest.mark.parametrize(("line", "status", "words"), MISTAKES, ids=[line for line, _, _ in MISTAKES])
def test_a_mistake_is_told(line: str, status: int, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(line.split()) == status
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("corematrix: ")
    assert [word for word in words if word not in said.err] == []


@pytest.mark.parametrize(
    ("error", "status"),
    [(GuestLostError("panic"), 7), (GuestLostError("no answer", status="timeout"), 7), (FetchError("404"), 4)],
)
def test_a_difference_to_what_could_not_be_judged_is_no_pass(error: CorematrixError, status: int) -> None:
    lost_run = run_of(lost(begun("debian-6.1-cloud-amd64"), error))
    Path("new.json").write_text(json.dumps(to_json(lost_run)))
    assert cli.main(["diff", "run.json", "new.json"]) == status
    assert cli.main(["diff", "run.json", "run.json"]) == 0


def test_a_difference_that_is_a_regression_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever else came to nothing; and the way back is none."""
    worse = judged(facts([prog(loaded=False)]), cell=begun("debian-6.1-cloud-amd64"))
    gone = lost(begun("debian-6.12-cloud-amd64"), GuestLostError("panic"))
    Path("new.json").write_text(json.dumps(to_json(run_of(worse, gone))))
    assert cli.main(["diff", "run.json", "new.json"]) == 1
    assert "loaded before, now rejected" in capsys.readouterr().out
    Path("new.json").write_text(json.dumps(to_json(run_of(worse))))
    assert cli.main(["diff", "run.json", "new.json", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["regressed"] is True
    assert cli.main(["diff", "new.json", "run.json"]) == 0


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("x.bpf.o --prog nosuch", ["x.bpf.o: no program 'nosuch' in this object", "it has: prog"]),
        ("two --prog prog", ["two: 2 objects here", "name the file"]),
        ("latin.yaml --prog prog", ["latin.yaml: not an ELF file"]),
    ],
)
def test_a_bisection_of_nothing_boots_nothing(
    what: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    needs_clang()
    Path("two").mkdir()
    for name in ("x.bpf.o", "two/a.bpf.o", "two/b.bpf.o"):
        Path(name).write_bytes(compile_bpf(SOURCE))
    ends = ["--good", "debian-5.10-cloud-amd64", "--bad", "debian-6.1-cloud-amd64"]
    assert cli.main(["bisect", *what.split(), *ends]) == 2
    said = capsys.readouterr()
    assert said.out == "" and not Path("corematrix-runs").exists()
    assert [word for word in words if word not in said.err] == []


def test_kernels_that_cannot_be_had_are_all_tried_and_the_first_ones_status_counts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = {"debian-6.1-cloud-amd64": FetchError("404"), "debian-6.12-cloud-amd64": CacheError("disk full")}

    def provide(spec: KernelSpec, *_rest: object, **_options: object) -> Kernel:
        if spec.id in wrong:
            raise wrong[spec.id]
        return cells.kernel(spec)

    monkeypatch.setattr("harness.kernels.provide", provide)
    names = ["debian-5.10-cloud-amd64", "debian-6.1-cloud-amd64", "debian-6.12-cloud-amd64"]
    words = [word for name in names for word in ("-k", name)]
    assert cli.main(["kernels", "fetch", *words]) == FetchError.exit_status
    said = capsys.readouterr()
    assert said.out.splitlines() == ["debian-5.10-cloud-amd64: 6.1.0-50-cloud-amd64"]
    assert "404" in said.err and "disk full" in said.err
    assert cli.main(["kernels", "fetch", "-k", names[0]]) == 0
