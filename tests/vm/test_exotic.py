"""Guests of architectures beside the gate's: they come up, take what a greeting brings, and go on when asked twice."""

from __future__ import annotations

from contextlib import closing

import pytest

from harness.session import JudgeRequest, Session
from tests.support import guests
from tests.support.objects import PROGRAMS

pytestmark = [pytest.mark.vm, pytest.mark.network, pytest.mark.ondemand]


@pytest.mark.parametrize("name", ["riscv64", "s390x", "ppc64el"])
def test_a_guest_answers_and_answers_again(name: str) -> None:
    """Booted, and restored (ppc64el: booted again): the same instructions, each time."""
    kernel = guests.kernel(f"debian-6.12-generic-{name}")
    built = PROGRAMS / "build" / ("task_state.s390x.bpf.o" if name == "s390x" else "task_state.bpf.o")
    if not built.exists():
        pytest.skip(f"{built}: make -C programs exotic")
    seen = []
    for cold in (True, False):
        with closing(Session(kernel, guests.options(kernel, cold=cold))) as session:
            assert session.provenance.start == ("cold" if cold or not kernel.spec.arch.saved else "restored")
            for _ in range(3):
                facts = session.judge(JudgeRequest(name="task_state"), built.read_bytes(), lambda _message: None)
                assert [prog["name"] for prog in facts["progs"] if not prog["loaded"]] == []
                assert facts["guest"]["machine"] == kernel.spec.arch.uname
                seen.append([(prog["name"], prog["insns"]) for prog in facts["progs"]])
            assert "entropy not taken" not in session.console  # on ppc64el the ioctl has another number
            assert "LOCKUP" not in session.console
    assert all(each == seen[0] for each in seen)
