"""Where and with what words a refused load ended, from logs as kernels write them."""

from __future__ import annotations

import pytest

from harness.judge import stop
from tests.support.facts import evidence, facts, judged, prog, relo, relocation

# Before 6.10 a source line stands alone; since then with its place (verbose_linfo(), 4de59102bad2).
OLD = """; value = BPF_CORE_READ(task, pid);
0: (79) r1 = *(u64 *)(r1 +0)
; if (value) @ not a place
1: (15) if r1 == 0x0 goto pc+2
; return use(value);
2: (bf) r0 = r9
R9 !read_ok
processed 3 insns (limit 1000000) max_states_per_insn 0 total_states 0 peak_states 0 mark_read 0
"""
NEW = OLD.replace("use(value);", "use(value); @ x.bpf.c:31")


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (OLD, "R9 !read_ok"),
        ("R9 !read_ok\n2: (bf) r0 = r9\n; text\n3: R1=ctx()\n\nverification time 7 usec\n", "R9 !read_ok"),
        ("  R9 !read_ok  \n", "R9 !read_ok"),
        ("2: (bf) r0 = r9\n; text\n", None),
        ("", None),
    ],
)
def test_the_last_words_are_neither_figures_nor_states_nor_source(log: str, words: str | None) -> None:
    assert stop.last_words(log) == words


def obstacle(log: str, **known: object):  # type: ignore[no-untyped-def]
    """What a relocation behind the stop is said to be behind."""
    answer = prog(loaded=False, relos=[(0, 0), (1, 7)], log=log, evidence=evidence(None, [[0, 3]]))
    first = relo(0, "a.read", line=29, text="value = BPF_CORE_READ(task, pid);")
    second = relo(1, "a.late", **{"line": 40, "text": "later();", **known})  # type: ignore[arg-type]
    found = relocation(judged(facts([answer], [first, second])), 1).behind
    assert found is not None and (found.insn, found.index, found.message) == (2, None, "R9 !read_ok")
    return found.source


def test_the_source_line_is_the_last_one_above_the_instruction_it_stopped_at() -> None:
    source = obstacle(NEW)
    assert (source.file, source.line, source.text) == ("x.bpf.c", 31, "return use(value);")
    source = obstacle(NEW.replace("x.bpf.c:31", "/home/me/src/x.bpf.c:31"))
    assert (source.file, source.line) == ("x.bpf.c", 31)


def test_where_the_kernel_prints_no_place_a_relocation_of_the_same_text_has_it() -> None:
    source = obstacle(OLD)
    assert (source.file, source.line, source.text) == ("", 0, "return use(value);")
    source = obstacle(OLD, line=31, text="return use(value);")
    assert (source.file, source.line, source.text) == ("x.bpf.c", 31, "return use(value);")


def test_a_log_without_source_lines_has_no_place() -> None:
    assert obstacle("\n".join(line for line in OLD.splitlines() if not line.startswith(";"))) is None


def test_a_console_without_a_report_is_its_last_lines() -> None:
    assert stop.last_report("one\n\n  \ntwo\nthree\n", 2) == ("two", "three")
