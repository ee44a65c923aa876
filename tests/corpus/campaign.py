"""A long comparison in pieces: results go to a file as they come, one JSON object a line, and what is in it is not
asked for again. Whatever interrupts a run loses the object at hand and nothing else.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from tests.corpus.compared import Compared


class Campaign:
    """Results kept in `path`, the newest of a kernel and object counting.

    `seconds` ends a run (None: when all is done); with `again`, what disagreed, was foretold wrongly or could not be
    compared when the run began is asked for once more.
    """

    def __init__(self, path: Path, *, seconds: float | None = None, again: bool = False) -> None:
        self._path = path
        self._end = None if seconds is None else time.monotonic() + seconds
        self._known = {(one.kernel, one.name): one for one in read(path)}
        self._done = {key for key, one in self._known.items() if not (again and not _good(one))}

    def wanted(self, kernel: str, name: str) -> bool:
        """Whether to ask for it now."""
        return (kernel, name) not in self._done and (self._end is None or time.monotonic() < self._end)

    def add(self, one: Compared) -> None:
        """Keep a result, for good."""
        with self._path.open("a", encoding="utf-8") as out:
            out.write(json.dumps(asdict(one)) + "\n")
            out.flush()
            os.fsync(out.fileno())
        self._known[one.kernel, one.name] = one
        self._done.add((one.kernel, one.name))

    def results(self) -> list[Compared]:
        """All there are."""
        return list(self._known.values())


def read(path: Path) -> list[Compared]:
    """The results in a file, in order; a last line that was cut off is none."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    if lines[-1]:  # a run that was killed while it wrote: what follows must not be appended to it
        path.write_text("".join(f"{line}\n" for line in lines[:-1]), encoding="utf-8")
    return [Compared(**json.loads(line)) for line in lines[:-1]]


def _good(one: Compared) -> bool:
    return not (one.rows or one.trouble or one.foretold_wrongly)


def table(results: Sequence[Compared]) -> str:
    """A row for each kernel, as docs/corpus.md has it."""
    head = (
        "| kernel | release | judge | objects | agree | differ | not compared | in a larger guest "
        "| relocations (poisoned) | programs loaded of | final instructions | foretold (wrongly) |"
    )
    kernels = dict.fromkeys(one.kernel for one in results)
    rows = [_row(kernel, [one for one in results if one.kernel == kernel]) for kernel in kernels]
    return "\n".join([head, "|" + "---|" * 12, *rows]) + "\n"


def _row(kernel: str, all_: Sequence[Compared]) -> str:
    good = [one for one in all_ if one.trouble is None]
    differ = sum(bool(one.rows) for one in good)
    outcomes = sum((Counter(one.outcomes) for one in good), Counter[str]())
    words = (
        kernel, _all(one.release for one in good), _all(one.judge for one in good),
        len(all_), len(good) - differ, differ, len(all_) - len(good), sum(one.memory_mb is not None for one in good),
        f"{sum(one.relocations for one in good)} ({outcomes['poisoned']})",
        f"{sum(one.loaded for one in good)} of {sum(one.progs for one in good)}", sum(one.insns for one in good),
        f"{sum(one.foretold for one in good)} ({sum(len(one.foretold_wrongly) for one in good)})",
    )  # fmt: skip
    return "| " + " | ".join(str(word) for word in words) + " |"


def _all(words: Iterable[str | None]) -> str:
    return ", ".join(sorted({word for word in words if word}))
