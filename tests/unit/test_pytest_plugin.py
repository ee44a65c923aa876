"""The pytest plugin: a whole pytest in a directory of its own, guests replaced by answers written by hand."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.support.clang import compile_bpf
from tests.support.objects import PROGRAMS, compile_object

pytest_plugins = "pytester"

ROOT = Path(__file__).resolve().parents[2]
LOADED = any(point.value == "harness.pytest_plugin" for point in entry_points(group="pytest11"))
PLUGIN = () if LOADED else ("-p", "harness.pytest_plugin")
X86, NEW, ARM = "debian-6.1-cloud-amd64", "debian-6.12-cloud-amd64", "debian-6.1-cloud-arm64"

CONFTEST = """
import pytest
from tests.support import fake_services

@pytest.fixture(scope="session")
def corematrix_services():
    return fake_services.services()
"""


@pytest.fixture
def bench(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COREMATRIX_FAKE_LOG", str(pytester.path / "guests.log"))
    monkeypatch.setenv("COREMATRIX_CACHE", str(pytester.path / "cache"))
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        monkeypatch.delenv(name)
    data = compile_bpf('SEC("raw_tp/sys_enter") int prog(void *ctx) { return 0; }')
    for name in ("guarded", "broken", "panics", "kills"):
        (pytester.path / f"{name}.bpf.o").write_bytes(data)
    (pytester.path / "only.x86_64.bpf.o").write_bytes(data)
    pytester.makeconftest(CONFTEST)
    return pytester


def run(bench: pytest.Pytester, *arguments: str, kernels: tuple[str, ...] = (X86,)) -> pytest.RunResult:
    chosen = [f"--corematrix-kernels={kernel}" for kernel in kernels]
    matrix = f"--corematrix-matrix={ROOT / 'kernels.yaml'}"
    return bench.runpytest_subprocess(*PLUGIN, "-v", matrix, *chosen, *arguments)


def guests(bench: pytest.Pytester) -> list[list[str]]:
    log = bench.path / "guests.log"
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def test_a_test_runs_on_every_chosen_kernel_and_each_boots_once(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        def test_one(kernel):
            kernel.load("guarded").assert_guarded("task_struct.__state")

        def test_two(kernel):
            kernel.load("guarded.bpf.o").assert_loaded()
            kernel.load("broken", settings={"on": True}).assert_poisoned("thread_struct.fs", program="trace")
        """
    )
    result = run(bench, kernels=(X86, NEW))
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines([f"*test_one?{X86}? PASSED*", f"*test_one?{NEW}? PASSED*"], consecutive=False)
    assert [line[1:] for line in guests(bench)] == [["boot", X86], ["end", X86], ["boot", NEW], ["end", NEW]]


def test_without_kernels_nothing_boots_and_the_skip_says_why(bench: pytest.Pytester) -> None:
    bench.makepyfile("def test_one(kernel): kernel.load('guarded').assert_loaded()")
    result = run(bench, "-rs", kernels=())
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*choose them with --corematrix-kernels GLOB*"])
    assert not guests(bench)


def test_a_kernel_nobody_has_is_a_usage_error(bench: pytest.Pytester) -> None:
    bench.makepyfile("def test_one(kernel): pass")
    result = run(bench, kernels=("debian-9.9*",))
    assert result.ret in {pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED}
    assert "no kernel of the matrix matches 'debian-9.9*'" in result.stdout.str() + result.stderr.str()


def test_marks_choose_among_the_chosen_kernels(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        import pytest

        @pytest.mark.kernels("*-arm64")
        def test_arm(kernel):
            assert kernel.arch == "arm64"

        @pytest.mark.kernels("debian-5.*")
        def test_old(kernel): pass
        """
    )
    result = run(bench, "-rs", "--strict-markers", kernels=(X86, ARM))
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*no chosen kernel is one of debian-5.*"])


@pytest.mark.parametrize(
    ("claim", "said"),
    [
        ('broken").assert_loaded()', ["trace: expected loaded", "is rejected at verifier", "invalid func unknown#"]),
        ('broken").assert_resolved("thread_struct.fs")', ["x.bpf.c:31: BPF_CORE_READ(t, fs)", "is poisoned, live"]),
        ('broken").assert_guarded("thread_struct.fs")', ["expected to be guarded", "no matching target"]),
        ('broken").assert_poisoned("task_struct.pid")', ["expected to be poisoned and live", "resolved, live"]),
        ('broken").assert_as_expected()', ["failed: trace: expected loaded, was rejected at verifier"]),
        ('guarded").assert_rejected()', ["handle: expected rejected", "handle is loaded"]),
        ('guarded").assert_poisoned("task_struct.__state")', ["guarded by the check on task_struct.__state"]),
        ('guarded").assert_resolved("task_struct.state")', ["no relocation of task_struct.state", "_struct.__state"]),
        ('guarded").assert_loaded("nobody")', ["no program 'nobody' in guarded; there are: handle"]),
    ],
)
def test_failures_explain(bench: pytest.Pytester, claim: str, said: list[str]) -> None:
    bench.makepyfile(f'def test_one(kernel): kernel.load("{claim}')
    result = run(bench)
    result.assert_outcomes(failed=1)
    text = result.stdout.str()
    name = claim.partition('"')[0]
    assert f"{X86}/{name}@python" in text and "rerun: corematrix run" in text
    assert all(words in text for words in said)
    assert "assertions.py:" not in text  # the failure is the test's, not ours


def test_claims_that_hold(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        def test_one(kernel):
            broken = kernel.load("broken")
            broken.assert_rejected("trace", stage="verifier")
            broken.assert_resolved("task_struct.pid", kind="byte_off")
            broken.assert_resolved("task_struct.*d")
            assert broken.progs["trace"].core_relos[1].field == "thread_struct.fs"
            guarded = kernel.load("guarded")
            guarded.assert_as_expected()
            guarded.assert_resolved("task_struct.__state", kind="field_exists")
        """
    )
    run(bench).assert_outcomes(passed=1)
    assert len([line for line in guests(bench) if line[1] == "boot"]) == 1


def test_what_could_not_be_judged_is_an_error_and_no_failure(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        def test_panics(kernel): kernel.load("panics")
        def test_after(kernel): kernel.load("guarded").assert_loaded()
        """
    )
    result = run(bench, "--junitxml=out.xml", kernels=(X86, "debian-6.12-rt-amd64"))
    result.assert_outcomes(passed=1, errors=3)
    result.stdout.fnmatch_lines(["*could not be judged (crashed): the kernel panicked*", "*is not to be had*"])
    root = ET.parse(bench.path / "out.xml").getroot()
    assert len(root.findall(".//error")) == 3 and not root.findall(".//failure")


def test_an_object_of_another_architecture_is_skipped(bench: pytest.Pytester) -> None:
    bench.makepyfile("def test_one(kernel): kernel.load('only')")
    result = run(bench, "-rs", kernels=(ARM,))
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*compiled for x86_64 only, not for arm64*"])


def test_a_wrong_path_or_loader_is_said(bench: pytest.Pytester) -> None:
    bench.makepyfile("def test_one(kernel): kernel.load('nothing')")
    result = run(bench)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*nothing: cannot read this object: No such file or directory*"])


JUNIT = """
    import pytest

    def test_state(kernel): kernel.load("guarded").assert_loaded()
    def test_switch(kernel): kernel.load("guarded", settings={"on": 1, "off": False}, loader="libbpf")
    def test_plain(): pass
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_junit_classes_are_cell_identities(bench: pytest.Pytester, workers: tuple[str, ...]) -> None:
    if workers:
        pytest.importorskip("xdist")
    bench.makepyfile(JUNIT)
    run(bench, "--junitxml=out.xml", *workers).assert_outcomes(passed=3)
    cases = {case.get("name"): case for case in ET.parse(bench.path / "out.xml").iter("testcase")}
    assert cases[f"test_state[{X86}]"].get("classname") == f"{X86}/guarded@python"
    assert cases[f"test_switch[{X86}]"].get("classname") == f"{X86}/guarded[off=false,on=1]@libbpf"
    assert cases["test_plain"].get("classname") == "test_junit_classes_are_cell_identities"
    (found,) = cases[f"test_state[{X86}]"].iter("property")
    assert (found.get("name"), found.get("value")) == ("corematrix_cell", f"{X86}/guarded@python")


def test_with_loadgroup_each_kernel_has_one_worker(bench: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    bench.makepyfile("\n".join(f"def test_{n}(kernel): kernel.load('guarded').assert_loaded()" for n in range(6)))
    run(bench, "-n", "2", "--dist", "loadgroup", kernels=(X86, NEW, ARM)).assert_outcomes(passed=18)
    assert sorted(line[2] for line in guests(bench) if line[1] == "boot") == sorted((X86, NEW, ARM))


def test_a_worker_that_crashes_costs_its_test_only(bench: pytest.Pytester) -> None:
    pytest.importorskip("xdist")
    bench.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("name", ["guarded", "kills", "guarded", "guarded"])
        def test_one(kernel, name): kernel.load(name).assert_loaded()
        """
    )
    result = run(bench, "-n", "1", "--junitxml=out.xml")
    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed while running *kills*"])
    pids = {line[0] for line in guests(bench)}
    assert len(pids) == 2


def test_a_projects_own_kernel_fixture_stays_its_own(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        """
        import pytest

        @pytest.fixture
        def kernel(): return "mine"

        def test_one(kernel): assert kernel == "mine"
        """
    )
    run(bench, kernels=()).assert_outcomes(passed=1)


def test_nothing_of_ours_is_imported_where_nobody_asks(bench: pytest.Pytester) -> None:
    bench.makeconftest("")
    bench.makepyfile(
        """
        import sys

        def test_one():
            ours = {name for name in sys.modules if name.startswith("harness.")}
            assert ours <= {"harness.pytest_plugin"}
        """
    )
    bench.runpytest_subprocess(*PLUGIN).assert_outcomes(passed=1)


@pytest.mark.vm
@pytest.mark.network
def test_a_real_guest(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/pytest.md, on real kernels."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    compile_object(PROGRAMS / "task_state.bpf.c", pytester.path / "task_state.bpf.o")
    text = (ROOT / "docs" / "pytest.md").read_text()
    example = text.partition("    # test_kernels.py\n")[2].partition("\n\n    $ ")[0]
    pytester.makepyfile("\n".join(line.removeprefix("    ") for line in example.splitlines()))
    result = run(pytester, kernels=(X86,))
    result.assert_outcomes(passed=2)
