"""JUnit XML as Jenkins' xunit plug-in defines it (junit-10.xsd), the common ground of CI servers.

A suite is a kernel, a case a program: `classname` is the cell's identity, `name` is `object::program`. A broken
expectation is a `failure`; trouble of ours or the host's is an `error`, never a failure; what does not apply is
`skipped`. The schema knows no properties of a case, so the relocations worth naming, and whether a program could be
attached, are properties of the suite, and each case's ledger is its `system-out`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from xml.etree import ElementTree as ET

from harness import ci_log
from harness.judge.explain import why
from harness.model.functional import FunctionalOutcome, FunctionalResult
from harness.model.result import CellResult, ProgResult, Relocation, RunResult
from harness.model.verdict import CellStatus, Liveness, Outcome, Verdict
from harness.report import attach, loaders, untrusted
from harness.report.view import TROUBLE

# Of tests that did not pass: a failure is the object's, an error ours or the host's.
_TEST_TAGS = {
    FunctionalOutcome.FAILED: "failure", FunctionalOutcome.TIMEOUT: "error", FunctionalOutcome.CRASHED: "error",
    FunctionalOutcome.ERROR: "error",
}  # fmt: skip
_SKIPPED = {CellStatus.SKIPPED, CellStatus.NOT_APPLICABLE}


def render(run: RunResult) -> str:
    """The run as an XML document. Cells whose programs are not known are one case, named by the object."""
    root = ET.Element("testsuites", name="corematrix", time=f"{run.seconds:.3f}")
    for kernel in dict.fromkeys(cell.kernel.id for cell in run.cells):
        root.append(_suite(run, [cell for cell in run.cells if cell.kernel.id == kernel]))
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ci_log.xml(ET.tostring(root, encoding="unicode")) + "\n"


def _suite(run: RunResult, cells: Sequence[CellResult]) -> ET.Element:
    cases = [case for cell in cells for case in _cases(cell)]
    suite = ET.Element(
        "testsuite",
        name=_clean(cells[0].kernel.id),
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors=str(sum(case.find("error") is not None for case in cases)),
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
        time=f"{sum(cell.seconds.get('total', 0.0) for cell in cells):.3f}",
        timestamp=run.started.removesuffix("Z"),
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in _properties(cells):
        ET.SubElement(properties, "property", name=_clean(name), value=_clean(value))
    suite.extend(cases)
    return suite


def _properties(cells: Sequence[CellResult]) -> Iterator[tuple[str, str]]:
    kernel = cells[0].kernel
    about = {"release": kernel.release, "arch": kernel.arch, "btf_sha256": kernel.btf_sha256}
    yield from ((name, value) for name, value in about.items() if value)
    for cell in cells:
        for prog in cell.progs:
            if prog.attach is not None:
                yield f"{cell.id}::{prog.name} attach", "; ".join(attach.words(prog))
            for relo in prog.core_relos:
                if _worth_naming(relo):
                    yield f"{cell.id}::{prog.name} #{relo.index} {relo.kind} {relo.field}", state(relo)


def _worth_naming(relo: Relocation) -> bool:
    return relo.is_guard or relo.outcome is not Outcome.RESOLVED or relo.liveness is Liveness.UNKNOWN


def state(relo: Relocation) -> str:
    """`poisoned, eliminated (line_info)`; a guard with its value."""
    value = f" = {relo.new_value}" if relo.is_guard and relo.new_value is not None else ""
    return f"{relo.outcome}{value}, {relo.liveness}{f' ({relo.evidence})' if relo.evidence else ''}"


def _cases(cell: CellResult) -> Iterator[ET.Element]:
    settings = ",".join(f"{name}={value}" for name, value in cell.settings.items())
    label = f"{cell.object.name}{f'[{settings}]' if settings else ''}"
    for prog in cell.progs:
        yield _case(cell, f"{label}::{prog.name}", prog)
    for test in cell.functional:
        yield _functional_case(cell, f"{label}::functional test {test.name}", test)
    told = any(not prog.met for prog in cell.progs) or any(test.outcome in _TEST_TAGS for test in cell.functional)
    unsaid = cell.status in TROUBLE | {CellStatus.FAILED} and not told
    if cell.disagreements:
        yield from _disagreements(cell, label)
    elif not cell.progs or unsaid or cell.status is CellStatus.ERROR:
        yield _object_case(cell, label)


def _disagreements(cell: CellResult, label: str) -> Iterator[ET.Element]:
    """A case for each: a server that shows only a case's first error still shows all of them."""
    for row, text in zip(cell.disagreements, loaders.lines(cell), strict=True):
        case = _bare_case(cell, f"{label}::{loaders.place(row)}")
        _complain(case, "error", kind=cell.reason or str(cell.status), said=(text,), cell=cell)
        yield case


def _case(cell: CellResult, name: str, prog: ProgResult) -> ET.Element:
    case = _bare_case(cell, name)
    if prog.verdict is Verdict.NOT_JUDGED:
        _complain(case, "error", kind="crashed", said=(cell.reason or "not judged",), cell=cell)
    elif prog.verdict in {Verdict.SKIPPED, Verdict.NOT_APPLICABLE}:
        ET.SubElement(case, "skipped", message=_clean(prog.expected.reason or prog.error or str(prog.verdict)))
    elif not prog.met:
        log = prog.verifier.log_excerpt if prog.verifier else None
        kind = f"{prog.verdict}-{prog.stage}" if prog.stage else str(prog.verdict)
        _complain(case, "failure", kind=kind, said=(*prog.unmet, *prog.explanation), cell=cell, evidence=log)
    said = [*attach.words(prog), *_ledger(prog)]
    if said:
        ET.SubElement(case, "system-out").text = _clean("\n".join(said))
    return case


def _functional_case(cell: CellResult, name: str, test: FunctionalResult) -> ET.Element:
    """A command that was run in the guest: a case of its own."""
    case = _bare_case(cell, name)
    case.set("time", f"{test.seconds:.3f}")
    tag = _TEST_TAGS.get(test.outcome)
    if test.outcome is FunctionalOutcome.SKIPPED:
        ET.SubElement(case, "skipped", message=_clean(test.reason or "skipped"))
    elif tag is not None:
        said = (test.reason or str(test.outcome),)
        _complain(case, tag, kind=f"functional-{test.outcome}", said=said, cell=cell, evidence=test.output)
    if test.output and tag is None:
        ET.SubElement(case, "system-out").text = _clean(test.output)
    return case


def _object_case(cell: CellResult, label: str) -> ET.Element:
    """For what cannot be said of a program: the object was refused as a whole, or nothing was found out about it."""
    case = _bare_case(cell, label)
    said = (cell.reason or str(cell.status),)
    if cell.status in _SKIPPED:
        ET.SubElement(case, "skipped", message=_clean(said[0]))
    elif cell.status is CellStatus.FAILED:
        _complain(case, "failure", kind="object", said=said, cell=cell)
    elif cell.status in TROUBLE:
        _complain(case, "error", kind=str(cell.status), said=said, cell=cell, evidence=cell.console_tail)
    return case


def _bare_case(cell: CellResult, name: str) -> ET.Element:
    seconds = cell.seconds.get("total", 0.0) / max(1, len(cell.progs))
    return ET.Element("testcase", name=_clean(name), classname=_clean(cell.id), time=f"{seconds:.3f}")


def _complain(
    case: ET.Element, tag: str, *, kind: str, said: Sequence[str], cell: CellResult, evidence: str | None = None
) -> None:
    text = [*said, *(["", evidence] if evidence else []), "", f"rerun: {cell.rerun}"]
    ET.SubElement(case, tag, type=kind, message=_clean(said[0])).text = _clean("\n".join(text))


def _ledger(prog: ProgResult) -> Iterator[str]:
    for relo in prog.core_relos:
        place = f"{relo.source.file}:{relo.source.line}: " if relo.source else ""
        because = why(relo)
        yield f"{place}{relo.field} {relo.kind}: {state(relo)}{f': {because}' if because else ''}"


def _clean(text: str) -> str:
    return untrusted.lines(text)
