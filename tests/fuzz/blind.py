"""Fuzzing without coverage: `python -m tests.fuzz.blind RUNS [SEED] [TARGET...]`, ten to twenty times faster than
atheris and needing nothing installed; for the targets that take recipes it reaches as deep.
"""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Iterator

from tests.fuzz import engine, targets


def inputs(target: str, seed: int) -> Iterator[bytes]:
    """Endless inputs of a target, the same for the same seed."""
    r = random.Random(f"{target} {seed}")
    begin = engine.start(target)
    while True:
        yield _recipe(r) if target in targets.RECIPES else _damaged(r, r.choice(begin))


def _recipe(r: random.Random) -> bytes:
    """A random recipe of tests/fuzz/patch.py; half of the values small, since small ones mean something."""
    steps = []
    for _ in range(r.randrange(1, 14)):
        value = r.choice((r.randrange(256), r.randrange(1 << 32)))
        steps.append(bytes((r.randrange(40), r.randrange(8))) + r.randbytes(2) + value.to_bytes(4, "little"))
    return bytes((r.randrange(256),)) + b"".join(steps)


def _damaged(r: random.Random, data: bytes) -> bytes:
    """A few bytes changed, a piece repeated, moved or cut away."""
    out = bytearray(data)
    for _ in range(r.randrange(1, 8)):
        at, end = sorted((r.randrange(len(out) + 1), r.randrange(len(out) + 1)))
        kind = r.randrange(8)
        if kind == 0:
            out[at:end] = out[at : min(end, at + 64)] * r.randrange(4)
        elif kind == 1 and r.randrange(4) == 0:
            del out[end:]
        elif kind == 2:
            out[at:at] = r.randbytes(r.randrange(9))
        elif at < len(out):
            out[at] = r.choice((0, 1, 0x7F, 0x80, 0xFF, out[at] ^ 1 << r.randrange(8), r.randrange(256)))
    return bytes(out[: 1 << 16])


def run(target: str, runs: int, seed: int) -> set[str]:
    """Run them; each new kind of finding is kept as a file, and its place is returned."""
    found: set[str] = set()
    for _, data in zip(range(runs), inputs(target, seed), strict=False):
        try:
            targets.check(target, data)
        except targets.Finding as finding:
            cause = finding.__cause__
            place = traceback.extract_tb(cause.__traceback__)[-1] if cause else None
            key = f"{type(cause).__name__} {place.filename}:{place.lineno}" if place else "slow"
            if key not in found:
                found.add(key)
                sys.stderr.write(f"FINDING {finding} at {key}\n  kept as {engine.keep(target, data)}\n")
    return found


def main(words: list[str]) -> int:
    """Every target named, or all."""
    runs, seed = int(words[0]), int(words[1]) if len(words) > 1 else 0
    found: set[str] = set()
    for target in words[2:] or targets.TARGETS:
        started = time.monotonic()
        found |= run(target, runs, seed)
        sys.stdout.write(f"{target}: {runs} runs, {runs / (time.monotonic() - started):.0f} a second\n")
        sys.stdout.flush()
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
