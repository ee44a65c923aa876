from __future__ import annotations

from dataclasses import replace

import pytest

from harness import matrix
from harness.errors import NothingJudgedError, UsageError
from harness.matrix import KernelSelector
from harness.model.expectation import Expectations
from harness.model.machines import with_this_machine
from tests.support.cells import kernel_spec, object_file

KERNELS = (
    kernel_spec("debian-5.10-cloud-amd64", tags="gate full"),
    kernel_spec("debian-6.1-cloud-amd64", tags="gate full"),
    kernel_spec("debian-6.1-rt-amd64", tags="full"),
    kernel_spec("debian-6.1-cloud-arm64", arch="arm64", tags="gate full"),
)


def ids(cells: object) -> list[str]:
    return [str(cell.id) for cell in cells]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        (KernelSelector(), [0, 1, 2, 3]),
        (KernelSelector(globs=("debian-6.1-*",)), [1, 2, 3]),
        (KernelSelector(globs=("*-rt-*", "debian-5.1?-*")), [0, 2]),
        (KernelSelector(globs=("debian-[56].1-rt-*",)), [2]),
        (KernelSelector(tag="gate"), [0, 1, 3]),
        (KernelSelector(tag="gate", arch="arm64"), [3]),
    ],
)
def test_kernels_are_selected_by_glob_tag_and_architecture(selector: KernelSelector, expected: list[int]) -> None:
    assert matrix.select_kernels(KERNELS, selector) == tuple(KERNELS[index] for index in expected)


def test_a_glob_without_a_match_is_an_error_that_names_the_nearest_kernel() -> None:
    with pytest.raises(NothingJudgedError, match=r"'debian-6.1-cluod-amd64'[\s\S]*debian-6.1-cloud-amd64"):
        matrix.select_kernels(KERNELS, KernelSelector(globs=("debian-6.1-cluod-amd64",)))


def test_an_unused_tag_is_an_error_that_names_those_in_use() -> None:
    with pytest.raises(NothingJudgedError, match=r"'nightly'[\s\S]*full, gate"):
        matrix.select_kernels(KERNELS, KernelSelector(tag="nightly"))


@pytest.mark.parametrize("glob", ["", "debian-[56", "a[", "a[]", "a[!]"])
def test_bad_globs_are_usage_errors(glob: str) -> None:
    with pytest.raises(UsageError, match="glob"):
        matrix.check_glob(glob)


@pytest.mark.parametrize("glob", ["*", "debian-[56]*", "a[]]b", "a[!]]b", "x]"])
def test_good_globs_pass(glob: str) -> None:
    matrix.check_glob(glob)


def test_cells_come_kernel_by_kernel_with_settings_and_loaders() -> None:
    expectations = {"b": Expectations(settings=((), (("y", "2"), ("x", "1"))))}
    cells = matrix.expand(KERNELS[:2], [object_file("b"), object_file("a")], expectations, loaders=("python", "libbpf"))
    assert ids(cells)[:6] == [
        "debian-5.10-cloud-amd64/b@python",
        "debian-5.10-cloud-amd64/b@libbpf",
        "debian-5.10-cloud-amd64/b[x=1,y=2]@python",
        "debian-5.10-cloud-amd64/b[x=1,y=2]@libbpf",
        "debian-5.10-cloud-amd64/a@python",
        "debian-5.10-cloud-amd64/a@libbpf",
    ]
    assert len(cells) == 12
    assert len(set(ids(cells))) == 12


def test_each_kernel_takes_the_object_of_its_architecture() -> None:
    files = [object_file("x", arch="x86_64"), object_file("x", arch="arm64")]
    cells = matrix.expand((KERNELS[0], KERNELS[3]), files, {})
    assert [(cell.object.arch, cell.not_applicable) for cell in cells] == [("x86_64", None), ("arm64", None)]


def test_an_object_for_another_architecture_is_not_applicable_and_says_why() -> None:
    (cell,) = matrix.expand((KERNELS[3],), [object_file("x", arch="x86_64")], {})
    assert cell.not_applicable == "compiled for x86_64 only, not for arm64"


def test_arches_of_the_expectations_make_other_cells_not_applicable() -> None:
    expectations = {"x": Expectations(arches=("x86_64",), reason="reads x86's thread_struct")}
    cells = matrix.expand((KERNELS[0], KERNELS[3]), [object_file("x")], expectations)
    assert [cell.not_applicable for cell in cells] == [None, "reads x86's thread_struct"]


def test_exclude_leaves_cells_out() -> None:
    cells = matrix.expand(KERNELS[:2], [object_file("a"), object_file("b")], {}, exclude=("*-5.10-*/a@*",))
    assert "debian-5.10-cloud-amd64/a@python" not in ids(cells)
    assert len(cells) == 3


@pytest.mark.parametrize("others", [(None, None), ("arm64", "arm64"), (None, "arm64")])
def test_two_objects_of_one_name_are_an_error(others: tuple[str | None, str | None]) -> None:
    with pytest.raises(UsageError, match="two objects are named 'x'"):
        matrix.group_by_name([object_file("x", arch=arch) for arch in others])


def test_objects_of_both_byte_orders_stand_side_by_side() -> None:
    mainframe = kernel_spec("debian-6.12-generic-s390x", arch="s390x")
    little = object_file("a")
    big = replace(object_file("a", arch="s390x"), byteorder="big")
    cells = matrix.expand((*KERNELS[:1], mainframe), (little, big), {})
    assert [cell.object for cell in cells] == [little, big]
    assert [cell.not_applicable for cell in cells] == [None, None]
    (lonely,) = matrix.expand((mainframe,), (little,), {})
    assert lonely.not_applicable == "compiled for little-endian kernels only, not for s390x"
    with pytest.raises(UsageError, match="two objects"):
        matrix.expand((mainframe,), (big, replace(object_file("a"), byteorder="big")), {})


def test_only_takes_identities_with_brackets_as_they_are() -> None:
    expectations = {"b": Expectations(settings=((), (("on", "1"),)))}
    cells = matrix.expand(KERNELS[:2], [object_file("b")], expectations)
    name = "debian-6.1-cloud-amd64/b[on=1]@python"
    assert ids(matrix.only(cells, [name])) == [name]
    assert len(matrix.only(cells, ["*/b[on=1]@*"])) == 2
    assert matrix.only(cells, []) == cells


def test_only_without_a_match_is_an_error() -> None:
    cells = matrix.expand(KERNELS[:1], [object_file("b")], {})
    with pytest.raises(NothingJudgedError, match=r"nearest: debian-5.10-cloud-amd64/b@python"):
        matrix.only(cells, ["debian-5.10-cloud-amd64/bb@python"])


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), ["kernel"]), (("*",), ["kernel"]), (("he?e",), ["kernel"]), (("here",), ["kernel", "here"]),
        (("local",), ["kernel", "local"]), (("here", "local"), ["kernel", "here", "local"]),
    ],
)  # fmt: skip
def test_this_machine_is_asked_only_by_its_name(names: tuple[str, ...], expected: list[str]) -> None:
    rows = [kernel_spec("kernel"), replace(kernel_spec("here"), backend="local")]
    assert [row.id for row in with_this_machine(rows, names)] == expected
