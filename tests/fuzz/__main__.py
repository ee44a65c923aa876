"""`python -m tests.fuzz TARGET -runs=N`; without a target, their names."""

from __future__ import annotations

import sys

from tests.fuzz import engine

if __name__ == "__main__":
    if len(sys.argv) < 2:
        from tests.fuzz.targets import TARGETS

        sys.stdout.write("\n".join(TARGETS) + "\n")
    else:
        engine.main(sys.argv[1], sys.argv[2:])
