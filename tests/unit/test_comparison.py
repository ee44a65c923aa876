"""`run --loader both`: one byte makes a row, a row makes the cell an error, and every report shows it.

The facts are recorded: both loaders on one real kernel.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import xml.etree.ElementTree as ET
from datetime import date
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from harness import judge
from harness.commands.run import exit_status
from harness.errors import GuestLostError
from harness.executor.attempts import Answer
from harness.executor.local import LocalExecutor
from harness.executor.pairs import Pairs, together
from harness.executor.plan import Limits, Plan
from harness.executor.serial import SerialExecutor
from harness.judge.comparison import LOADERS_DISAGREE, Heard, compared, notes
from harness.model.cell import Cell
from harness.model.expectation import NONE
from harness.model.plain_json import to_json
from harness.model.result import CellResult, RunResult, cell_from_json
from harness.model.verdict import CellStatus
from harness.progress import QuietProgress
from harness.report import FORMATS, render
from tests.support import both
from tests.support import cells as make
from tests.support.facts import begun, run_of

PYTHON, LIBBPF = both.recorded("python"), both.recorded("libbpf")
SCHEMA = json.loads((Path(__file__).parents[2] / "harness" / "report" / "schema.json").read_text())

NO_MEMORY = {"stage": "maps", "errno": 12, "message": "map 'm': the kernel refused to create it", "relo": None}


def cell_of(facts: dict[str, Any], loader: str = "python", kernel: str = "this-machine") -> CellResult:
    return judge.classify(facts, begun(kernel, "task_state", loader=loader), NONE, today=date(2026, 7, 1))


def held(python: dict[str, Any], libbpf: dict[str, Any]) -> CellResult:
    return compared(cell_of(python), Heard(facts=python), Heard(facts=libbpf))


def apart() -> CellResult:
    return held(PYTHON, both.altered(LIBBPF, both.other_byte))


def other_insn(facts: dict[str, Any]) -> None:
    code = bytearray(base64.b64decode(facts["progs"][0]["insns"]))
    code[4] ^= 1
    facts["progs"][0]["insns"] = base64.b64encode(code).decode()


# --- one cell


def test_what_both_loaders_really_answered_agrees() -> None:
    cell = held(PYTHON, LIBBPF)
    assert (cell.status, cell.disagreements) == (CellStatus.PASSED, ())
    assert cell.comparison == {"loader_version": "libbpf 1.1.2", "reason": None}
    assert PYTHON["core_relos"] and all(prog["insns"] for prog in LIBBPF["progs"])  # there was something to compare


def test_one_byte_of_a_patched_instruction_is_a_row_and_an_error() -> None:
    cell = apart()
    (row,) = cell.disagreements
    assert (row["what"], row["field"]) == ("core_relo", "after")
    assert bytes.fromhex(row["python"])[:-1] == bytes.fromhex(row["libbpf"])[:-1] and row["python"] != row["libbpf"]
    assert (cell.status, cell.reason) == (CellStatus.ERROR, LOADERS_DISAGREE)
    assert exit_status([cell, cell_of(LIBBPF, "libbpf")]) == 4


def test_one_byte_of_the_final_code_is_a_row() -> None:
    cell = held(PYTHON, both.altered(LIBBPF, other_insn))
    assert [(row["what"], row["field"]) for row in cell.disagreements] == [("insns", "insn 0")]


def test_another_verdict_is_a_row_and_no_failure_of_ours_hides_it() -> None:
    def refused(facts: dict[str, Any]) -> None:
        facts["progs"][0].update(loaded=False, stage="verifier", errno=13, error="refused")

    ours = both.altered(PYTHON, refused)
    assert cell_of(ours).status is CellStatus.FAILED
    cell = held(ours, LIBBPF)
    assert {row["field"] for row in cell.disagreements} == {"loaded", "stage", "errno"}
    assert cell.status is CellStatus.ERROR


def test_a_failure_elsewhere_outweighs_a_disagreement() -> None:
    failed = begun("other", status=CellStatus.FAILED)
    assert exit_status([apart(), failed]) == 1


@pytest.mark.parametrize(
    ("python", "libbpf", "said"),
    [
        (Heard(facts=PYTHON), Heard(facts=None, lost="its guest was lost: panic"), "libbpf: its guest was lost: panic"),
        (Heard(facts=PYTHON), Heard(facts=LIBBPF, crashed=("state_each",)), "libbpf: the kernel crashed at state_each"),
        (Heard(facts=PYTHON, crashed=("state_each",)), Heard(facts=LIBBPF), "python: the kernel crashed at state_each"),
        (Heard(facts=PYTHON), Heard(facts={**LIBBPF, "progs": 7}), "libbpf: malformed facts"),
        (Heard(facts=PYTHON), Heard(facts={**LIBBPF, "facts": 2}), "libbpf: facts of version 2"),
        (Heard(facts=PYTHON), Heard(facts={**LIBBPF, "object_error": NO_MEMORY}), "libbpf: the guest has too little"),
    ],
)  # fmt: skip
def test_without_two_whole_answers_there_is_no_comparison_and_it_is_said(
    python: Heard, libbpf: Heard, said: str
) -> None:
    cell = compared(cell_of(PYTHON), python, libbpf)
    assert cell.disagreements == () and cell.comparison is not None
    assert cell.comparison["reason"].startswith(said)
    (note,) = notes([cell])
    assert note.startswith(f"{cell.id}: loaders not compared: {said}")
    assert said in render("text", run_of(cell, notes=(note,))).replace("\n    ", " ")


def test_a_run_says_how_many_were_compared() -> None:
    assert notes([cell_of(PYTHON)]) == ()
    assert notes([held(PYTHON, LIBBPF), apart()]) == (
        "python and libbpf 1.1.2 compared in 2 cells: 1 disagreements in 1 of them",
    )
    assert notes([held(PYTHON, LIBBPF)]) == ("python and libbpf 1.1.2 compared in 1 cells: no disagreement",)


# --- reports


def run() -> RunResult:
    return run_of(cell_of(LIBBPF, "libbpf"), apart())


def test_the_json_is_of_the_schema_and_can_be_read_back() -> None:
    data = json.loads(render("json", run()))
    jsonschema.validate(data, SCHEMA)
    assert data["cells"][1]["disagreements"][0]["field"] == "after"
    assert cell_from_json(to_json(apart())) == apart()


SHOWN = sorted(set(FORMATS) - {"csv", "badge", "audit", "json"})


@pytest.mark.parametrize("format_", SHOWN)
def test_every_report_shows_the_row(format_: str) -> None:
    (row,) = apart().disagreements
    text, clean = (render(format_, run_of(cell)) for cell in (apart(), held(PYTHON, LIBBPF)))
    plain = " ".join(text.split())
    for word in (row["python"], row["libbpf"]):
        assert f"says {word}" in plain.replace("&#32;", " ")
    assert f"says {row['libbpf']}" not in " ".join(clean.split())


def test_junit_has_an_error_for_each_and_counts_it() -> None:
    def two(facts: dict[str, Any]) -> None:
        both.other_byte(facts)
        other_insn(facts)

    cell = held(PYTHON, both.altered(LIBBPF, two))
    suite = ET.fromstring(render("junit", run_of(cell)).partition("\n")[2]).find("testsuite")
    assert suite is not None
    errors = suite.findall("testcase/error")
    assert [error.get("type") for error in errors] == [LOADERS_DISAGREE] * 2 and suite.get("errors") == "2"
    names = [case.get("name") for case in suite.findall("testcase")]
    assert len(names) == len(set(names))


def test_sarif_and_annotations_call_it_an_error() -> None:
    log = json.loads(render("sarif", run_of(apart())))
    assert ("loaders-disagree", "error") in {(one["ruleId"], one["level"]) for one in log["runs"][0]["results"]}
    assert "::error title=corematrix%3A loaders-disagree" in render("github", run_of(apart())).replace(": l", "%3A l")
    assert "critical" in {issue["severity"] for issue in json.loads(render("gitlab", run_of(apart())))}


def test_csv_stays_what_veristat_reads() -> None:
    rows = list(csv.reader(io.StringIO(render("csv", run()))))
    assert len({len(row) for row in rows}) == 1


# --- who is asked when


class Guests:
    """Services in which guests answer the recording; `asked` are the cells in order, with the rules they follow."""

    def __init__(self, libbpf: Any) -> None:
        self.libbpf = libbpf
        self.pairs = Pairs()
        self.asked: list[tuple[str, str | None]] = []

    def services(self) -> Any:
        from harness.executor.local import Services

        return Services(
            provide=lambda spec, _say: make.kernel(spec), open_session=lambda _kernel, _say: self,
            conclude=self._conclude, give_up=self._give_up, first=self.pairs.first, note=self.pairs.keep,
        )  # fmt: skip

    def ask(self, cell: Cell, **_request: Any) -> dict[str, Any]:
        self.asked.append((cell.loader, self.pairs.rules(cell)))
        if cell.loader == "libbpf" and isinstance(self.libbpf, Exception):
            raise self.libbpf
        return self.libbpf if cell.loader == "libbpf" else PYTHON

    def close(self) -> None:
        pass

    def _conclude(self, cell: Cell, _kernel: object, _session: object, answer: Answer) -> CellResult:
        self.pairs.keep(cell, answer)
        blank = begun(cell.kernel.id, cell.object.name, loader=cell.loader)
        if answer.facts is None:
            assert answer.lost is not None
            return self.pairs.compared(cell, judge.lost(blank, answer.lost), answer)
        found = judge.classify(answer.facts, blank, NONE, today=date(2026, 7, 1))
        return self.pairs.compared(cell, found, answer)

    def _give_up(self, cell: Cell, _kernel: object, error: BaseException) -> CellResult:
        raise error


def run_pool(guests: Guests, cells: list[Cell], jobs: int = 4) -> list[CellResult]:
    plan = Plan(cells=tuple(cells), limits=Limits(jobs=jobs, memory_mb=100_000))
    return list(LocalExecutor(guests.services()).run(plan, QuietProgress()))


def pair(name: str) -> list[Cell]:
    return [make.cell(object_name=name, loader=loader) for loader in ("libbpf", "python")]


def test_libbpf_is_asked_first_once_and_our_loader_follows_its_rules() -> None:
    guests = Guests(LIBBPF)
    results = run_pool(guests, [cell for number in range(20) for cell in pair(f"object{number}")])
    assert sorted(guests.asked, key=str) == [("libbpf", None)] * 20 + [("python", "1.1.2")] * 20
    ours = [result for result in results if result.loader == "python"]
    assert [result.comparison for result in ours] == [{"loader_version": "libbpf 1.1.2", "reason": None}] * 20
    assert not any(result.disagreements for result in results)


def test_a_session_that_alters_libbpfs_answer_is_found_out() -> None:
    results = run_pool(Guests(both.altered(LIBBPF, both.other_byte)), pair("x"))
    assert {result.loader: result.status for result in results} == {
        "libbpf": CellStatus.PASSED, "python": CellStatus.ERROR,
    }  # fmt: skip


def test_our_loaders_cell_alone_has_libbpf_asked_too() -> None:
    guests = Guests(LIBBPF)
    (result,) = run_pool(guests, pair("x")[1:])
    assert guests.asked == [("libbpf", None), ("python", "1.1.2")]
    assert result.comparison is not None and result.comparison["reason"] is None
    serial = SerialExecutor(guests.services(), lambda _kernel, _line: None)
    assert serial.judge(make.cell(object_name="y")).comparison == result.comparison


def test_a_kernel_that_libbpf_crashes_leaves_our_loaders_verdict() -> None:
    guests = Guests(GuestLostError("the kernel panicked", console_tail="Kernel panic"))
    results = {result.loader: result for result in run_pool(guests, pair("x"), jobs=1)}
    assert results["libbpf"].status is CellStatus.CRASHED
    assert results["python"].status is CellStatus.PASSED
    assert results["python"].comparison is not None
    assert "the kernel panicked" in results["python"].comparison["reason"]


def test_answers_nobody_comes_for_do_not_pile_up() -> None:
    pairs = Pairs()
    for number in range(200):
        pairs.keep(make.cell(object_name=f"o{number}", loader="libbpf"), Answer(facts=LIBBPF, attempts=1))
    waiting = [n for n in range(200) if pairs.first(make.cell(object_name=f"o{n}")) is None]
    assert waiting == list(range(136, 200))


def test_only_what_differs_in_nothing_but_the_loader_goes_together() -> None:
    cells = [*pair("a"), make.cell(object_name="a", settings=(("on", "1"),)), *pair("b"), make.cell(object_name="c")]
    assert [len(group) for group in together(cells)] == [2, 1, 2, 1]
