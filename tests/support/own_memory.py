"""`python -m tests.support.own_memory run ...`: the command line, and at the end the most memory this very process had
(VmHWM, KiB), as the last line on standard error. Its guests are not counted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import cli


def main(words: list[str]) -> int:
    status = cli.main(words)
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    sys.stderr.write(f"VmHWM {int(lines['VmHWM'].split()[0])}\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
