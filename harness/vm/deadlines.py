"""How long each step of a guest's life may take: deadlines are for guests that hang, not for machines that are busy."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass

from harness.vm import accelerator

_MOST_PATIENCE = 4.0


@dataclass(frozen=True, kw_only=True)
class Deadlines:
    """Seconds allowed for each step of a guest's life."""

    boot: float
    restore: float
    save: float
    judge: float
    power_off: float

    def times(self, factor: float) -> Deadlines:
        """Each so many times as long."""
        return Deadlines(**{name: round(value * factor, 1) for name, value in asdict(self).items()})


# On an idle machine. Under emulation a boot takes 2 to 8 seconds there, and several times that on a busy one.
DEADLINES = {
    accelerator.TCG: Deadlines(boot=120.0, restore=30.0, save=60.0, judge=300.0, power_off=5.0),
    accelerator.KVM: Deadlines(boot=30.0, restore=10.0, save=30.0, judge=120.0, power_off=5.0),
}


def deadlines_on(name: str) -> Deadlines:
    """Those of an accelerator, as this machine is now."""
    return DEADLINES[name].times(patience())


def patience() -> float:
    """How much longer everything takes on this machine now: processes that want a processor (getloadavg(3), the last
    minute) for each there is; 1 on a machine that is not busy, 4 at most.
    """
    return min(max(os.getloadavg()[0] / (os.cpu_count() or 1), 1.0), _MOST_PATIENCE)
