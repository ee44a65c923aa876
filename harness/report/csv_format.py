"""CSV that `veristat -C base.csv new.csv` reads: one row for each program that the verifier judged, the cell as the
file's name.

veristat splits lines with strtok(",\n"): there is no quoting, an empty field would vanish, a line must be shorter
than 4096 bytes. A name that holds a comma or a blank therefore gets an underscore. Both files of a comparison must
have the same columns; veristat's own for these are `-e
file,prog,verdict,duration,insns,states,peak_states,max_states_per_insn`. The stack depth is not among them: veristat
knows that column since 6.14, and an older one refuses a file that has it.
"""

from __future__ import annotations

import re

from harness import ci_log
from harness.model.result import CellResult, ProgResult, RunResult, VerifierStats
from harness.model.verdict import Verdict

COLUMNS = ("file_name", "prog_name", "verdict", "duration", "total_insns", "total_states", "peak_states",
           "max_states_per_insn")  # fmt: skip
_FIGURES = ("verification_usec", "processed_insns", "total_states", "peak_states", "max_states_per_insn")
# A program refused before the verifier is a failure to veristat too (its load fails); one never judged is no row at
# all.
_VERDICTS = {Verdict.LOADED: "success", Verdict.REJECTED: "failure", Verdict.CRASHED: "failure"}
_LONGEST = 1500


def render(run: RunResult) -> str:
    """Header and rows, sorted as veristat sorts them by default: by file, then program."""
    rows = sorted(_row(cell, prog) for cell in run.cells for prog in cell.progs if prog.verdict in _VERDICTS)
    return ci_log.plain("\n".join([",".join(COLUMNS), *(",".join(row) for row in rows)]) + "\n")


def _row(cell: CellResult, prog: ProgResult) -> tuple[str, ...]:
    stats = prog.verifier or VerifierStats()
    figures = (getattr(stats, name) or 0 for name in _FIGURES)
    return (_plain(cell.id), _plain(prog.name), _VERDICTS[prog.verdict], *(str(figure) for figure in figures))


def _plain(name: str) -> str:
    """Printable ASCII without separators: what survives veristat's parser unchanged."""
    return re.sub(r"[^!-+\--~]", "_", name)[:_LONGEST] or "_"
