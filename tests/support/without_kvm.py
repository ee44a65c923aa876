"""`corematrix` on a machine whose KVM works for a while: `python -m tests.support.without_kvm DEVICE ARGUMENT...`.

DEVICE stands in for /dev/kvm. The QEMU on the path (tests/vm/test_failing_hosts.py) takes `-accel kvm` for TCG, until
it removes DEVICE and says what QEMU says without one. Since it emulates, the trial of KVM may take longer.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness import cli
from harness.vm import accelerator


def main(device: str, *words: str) -> int:
    accelerator._DEVICE = Path(device)
    accelerator.PROBE_SECONDS = 120.0
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
