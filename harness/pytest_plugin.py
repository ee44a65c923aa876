"""pytest on real kernels (docs/pytest.md): the `kernel` fixture, its options, and cells as what JUnit files know.

    def test_state(kernel):
        judged = kernel.load("build/task_state.bpf.o")
        judged.assert_guarded("task_struct.__state")

Loaded into every pytest run of an environment that has corematrix, so ours is imported only inside hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.config import Matrix
    from harness.executor.local import Services
    from harness.executor.serial import SerialExecutor
    from harness.model.expectation import Expectations
    from harness.model.kernel import KernelSpec
    from harness.model.result import CellResult
    from harness.report.assertions import Judged
    from harness.store import Store

_FIXTURE = "corematrix_kernel_spec"  # behind `kernel`, so that a project's own `kernel` fixture stays untouched
_CELL = "corematrix_cell"
_NOT_ASKED = "runs on real kernels: choose them with --corematrix-kernels GLOB"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("corematrix", "BPF objects on real kernels")
    add = group.addoption
    add("--corematrix-kernels", action="append", default=[], metavar="GLOB", help="kernels for the `kernel` fixture, "
        "by id (repeatable)")  # fmt: skip
    add("--corematrix-matrix", metavar="FILE", help="default: ./kernels.yaml, else the built-in matrix")
    add("--corematrix-loader", choices=("python", "libbpf"), default="python", help="who loads in the guest")
    add("--corematrix-timeout", type=float, metavar="S", help="seconds for one object in a guest")
    add("--corematrix-cold", action="store_true", help="boot every guest, restore none")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernels(*globs): kernels (by id) that this test of the `kernel` fixture is for")
    if config.getoption("xmlpath", None):
        config.pluginmanager.register(_JUnitNames(config), "corematrix-junit")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each kernel that the command line chose and the test's mark allows."""
    if _FIXTURE not in metafunc.fixturenames:
        return
    chosen = _chosen(metafunc.config) if metafunc.config.getoption("--corematrix-kernels") else ()
    globs = tuple(glob for mark in metafunc.definition.iter_markers("kernels") for glob in mark.args)
    params = [pytest.param(spec, id=spec.id) for spec in chosen if not globs or _matches(globs, spec)]
    if not params:
        reason = f"no chosen kernel is one of {', '.join(globs)}" if chosen else _NOT_ASKED
        params = [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="none")]
    metafunc.parametrize(_FIXTURE, params, indirect=True, scope="session")


def _matches(globs: tuple[str, ...], spec: KernelSpec) -> bool:
    from harness.model.reading import matches

    return matches(globs, spec.id)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `--dist loadgroup`, all tests of a kernel go to the worker that has its guest.

    By the tests' ids and not by xdist_group marks: pytest-xdist up to 3.8 writes those into Item._nodeid, which pytest
    9.2 does not read any more.
    """
    if config.getvalue("dist") != "loadgroup" or not config.getoption("--corematrix-kernels"):
        return None
    from xdist.scheduler import LoadGroupScheduling

    kernels = sorted((spec.id for spec in _chosen(config)), key=len, reverse=True)

    class ByKernel(LoadGroupScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            parameters = nodeid.partition("[")[2]
            own = next((kernel for kernel in kernels if kernel in parameters), None)
            return own or str(super()._split_scope(nodeid))

    return ByKernel(config, log)


_MATRIX = pytest.StashKey["Matrix"]()


def _matrix(config: pytest.Config) -> Matrix:
    from harness import config as files
    from harness.errors import CorematrixError

    if _MATRIX not in config.stash:
        given = config.getoption("--corematrix-matrix")
        try:
            config.stash[_MATRIX] = files.load_matrix(Path(given) if given else None)
        except CorematrixError as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[_MATRIX]


def _chosen(config: pytest.Config) -> tuple[KernelSpec, ...]:
    from harness import matrix
    from harness.errors import CorematrixError
    from harness.model.machines import with_this_machine

    globs = tuple(config.getoption("--corematrix-kernels"))
    try:
        rows = with_this_machine(_matrix(config).kernels, globs)
        return matrix.select_kernels(rows, matrix.KernelSelector(globs=globs))
    except CorematrixError as error:
        raise pytest.UsageError(str(error)) from error


# --- fixtures


@dataclass(frozen=True, kw_only=True)
class CorematrixBench:
    """What the tests of one worker share: the guest, the answers had so far, the expectations read so far."""

    executor: SerialExecutor
    root: Path
    loader: str
    expectations: dict[str, Expectations] = field(default_factory=dict)
    answers: dict[tuple[str, str], CellResult] = field(default_factory=dict)


@pytest.fixture(scope="session")
def corematrix_store() -> Iterator[Store]:
    """The cache of kernels and saved guests."""
    from harness.store import Store

    with Store.default() as store:
        yield store


@pytest.fixture(scope="session")
def corematrix_expectations() -> dict[str, Expectations]:
    """By object name; filled as objects are loaded."""
    return {}


@pytest.fixture(scope="session")
def corematrix_services(request: pytest.FixtureRequest) -> Services:
    """How kernels are fetched, guests opened and facts judged. A conftest.py may put its own in place."""
    from datetime import UTC, datetime

    from harness.executor.judging import Judging
    from harness.rundir import RunDirectory

    config, matrix = request.config, _matrix(request.config)
    logs = request.getfixturevalue("tmp_path_factory").mktemp("corematrix")
    return Judging(
        store=request.getfixturevalue("corematrix_store"), guest=matrix.guest, lock=matrix.lock,
        expectations=request.getfixturevalue("corematrix_expectations"), directory=RunDirectory(logs),
        today=datetime.now(UTC).date(), timeout=config.getoption("--corematrix-timeout"),
        cold=config.getoption("--corematrix-cold"),
        rerun=lambda cell: f"corematrix run {cell.object.path} --only '{cell.id}'",
    ).services()  # fmt: skip


@pytest.fixture(scope="session")
def corematrix_bench(
    request: pytest.FixtureRequest, corematrix_services: Services, corematrix_expectations: dict[str, Expectations]
) -> Iterator[CorematrixBench]:
    """One guest at a time; ended with the session, or by the kernel when this process dies."""
    from harness.executor.serial import SerialExecutor

    executor = SerialExecutor(corematrix_services, lambda _kernel, _line: None)
    yield CorematrixBench(
        executor=executor, root=request.config.rootpath, loader=request.config.getoption("--corematrix-loader"),
        expectations=corematrix_expectations,
    )  # fmt: skip
    executor.close()


@pytest.fixture(scope="session")
def corematrix_kernel_spec(request: pytest.FixtureRequest) -> KernelSpec:
    """The row of the matrix. Session-wide, so that pytest takes one kernel after the other."""
    spec: KernelSpec = request.param
    return spec


@pytest.fixture
def kernel(
    request: pytest.FixtureRequest, corematrix_kernel_spec: KernelSpec, corematrix_bench: CorematrixBench
) -> KernelUnderTest:
    """A kernel of the matrix; `load` judges an object on it."""
    record = request.node.user_properties.append
    return KernelUnderTest(spec=corematrix_kernel_spec, bench=corematrix_bench, record=record)


@dataclass(frozen=True, kw_only=True)
class KernelUnderTest:
    """What the `kernel` fixture gives."""

    spec: KernelSpec
    bench: CorematrixBench
    record: Callable[[tuple[str, object]], None]

    @property
    def id(self) -> str:
        """Its identity in the matrix."""
        return self.spec.id

    @property
    def arch(self) -> str:
        """x86_64, arm64, ..."""
        return self.spec.arch.name

    def load(
        self, object: str | Path, *, settings: Mapping[str, object] | None = None, loader: str | None = None
    ) -> Judged:
        """Load the object's programs in a guest of this kernel: verdicts and relocations. `settings` are values of
        .rodata variables. A path is below pytest's rootdir; `build/x` finds build/x.bpf.o or build/x.ARCH.bpf.o.

        Skips the test where the object is not for this architecture; CorematrixError when it could not be judged.
        """
        from harness.report.assertions import Judged

        cell = self._cell(object, settings or {}, loader or self.bench.loader)
        self.record((_CELL, str(cell.id)))
        if cell.not_applicable:
            pytest.skip(f"{cell.id}: {cell.not_applicable}")
        key = (str(cell.id), cell.object.sha256)
        if key not in self.bench.answers:
            self.bench.answers[key] = self.bench.executor.judge(cell)
        result = self.bench.answers[key]
        _check_judged(result)
        return Judged(cell=result)

    def _cell(self, path: str | Path, settings: Mapping[str, object], loader: str) -> Any:
        from dataclasses import replace

        from harness import config, matrix, objects
        from harness.model.expectation import NONE

        found = objects.find_objects(_paths(self.bench.root / path))
        objects.check_objects(found, {self.spec.arch.byteorder})
        read = objects.find_expectations(found, config.load_yaml)
        self.bench.expectations.update(read)
        name = found[0].name
        own = tuple(sorted((variable, _text(value)) for variable, value in settings.items()))
        axis = {name: replace(read.get(name, NONE), settings=(own,))}
        return matrix.expand((self.spec,), found, axis, loaders=(loader,))[0]


def _paths(path: Path) -> list[Path]:
    """The file itself, or what `x` was compiled to: x.bpf.o, and x.ARCH.bpf.o for each architecture."""
    if path.is_file():
        return [path]
    built = path.with_name(f"{path.name}.bpf.o")
    return [built] if built.is_file() else sorted(path.parent.glob(f"{path.name}.*.bpf.o")) or [path]


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_judged(result: CellResult) -> None:
    from harness.errors import InfrastructureError
    from harness.report.view import TROUBLE

    if result.status in TROUBLE:
        message = f"{result.id} could not be judged ({result.status}): {result.reason}"
        raise InfrastructureError(message, remedy=f"rerun: {result.rerun}")


# --- reports


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """What could not be judged is an error, as in setup, and no failure of the object."""
    outcome = yield
    if call.when != "call" or call.excinfo is None or _FIXTURE not in getattr(item, "fixturenames", ()):
        return
    from harness.errors import CorematrixError

    if isinstance(call.excinfo.value, CorematrixError):
        report = outcome.get_result()  # type: ignore[attr-defined]
        report.when, report.longrepr = "setup", str(call.excinfo.value)


class _JUnitNames:
    """The class of a JUnit case is the cell's identity, as in corematrix's own JUnit files. Lives where the file is
    written: under xdist that is the controller, which knows a worker's cells by the report's properties.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        from _pytest.junitxml import xml_key

        cells = dict.fromkeys(str(value) for name, value in report.user_properties if name == _CELL)
        xml = self._config.stash.get(xml_key, None)
        if cells and xml is not None:
            xml.node_reporter(report).add_attribute("classname", " ".join(cells))
