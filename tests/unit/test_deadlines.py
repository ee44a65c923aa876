"""Deadlines are for guests that hang, not for machines that are busy."""

from __future__ import annotations

import os

import pytest

from harness.vm.deadlines import DEADLINES, deadlines_on


@pytest.mark.parametrize(
    ("load", "cpus", "times"),
    [(0.0, 2, 1.0), (2.0, 2, 1.0), (5.0, 2, 2.5), (15.0, 2, 4.0), (15.0, 64, 1.0), (9.0, None, 4)],
)
def test_deadlines_grow_with_the_load(
    monkeypatch: pytest.MonkeyPatch, load: float, cpus: int | None, times: float
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    plain = DEADLINES["tcg"]
    patient = deadlines_on("tcg")
    assert (patient.boot, patient.restore, patient.judge) == (
        plain.boot * times, plain.restore * times, plain.judge * times,
    )  # fmt: skip
