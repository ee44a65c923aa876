"""Restored guests answer as booted ones do, and a run may have one for each cell."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.errors import CorematrixError
from harness.session import JudgeRequest, Session
from harness.transport import question
from tests.corpus.fetch import fetch_all
from tests.corpus.run import choose
from tests.support import guests

pytestmark = [pytest.mark.vm, pytest.mark.network]

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = 24
# Numbers of descriptors, addresses and ids that a boot gives out: they lie in the immediates of these instructions.
_OF_A_BOOT = ("map_fd", "map_value", "ksym", "btf_id")
_LDIMM64 = 0x18
_MEASURED = {"seconds", "verification_usec"}


def _insns(prog: dict[str, Any]) -> str:
    code = bytearray(base64.b64decode(prog["insns"]))
    for ref in prog["refs"]:
        if ref["kind"] in _OF_A_BOOT and code[8 * ref["insn"]] == _LDIMM64:
            for slot in (0, 1):
                place = 8 * (ref["insn"] + slot) + 4
                code[place : place + 4] = bytes(4)
    return code.hex()


def _text(text: str) -> str:
    """Kernel addresses and the times of the verifier are a boot's and a load's own."""
    text = re.sub(r"\b(0x)?ffff[0-9a-f]{12}\b", "ADDRESS", text)
    return re.sub(r"^verification time \d+ usec$", "", text, flags=re.MULTILINE)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if key not in _MEASURED}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return _text(value) if isinstance(value, str) else value


def _comparable(facts: dict[str, Any]) -> Any:
    for prog in facts["progs"]:
        prog["insns"] = _insns(prog)
    for extern in facts["externs"]:
        if extern["kind"] == "ksym" and extern["value"]:
            extern["value"] = "ADDRESS"
    return _plain(facts)


def _answers(session: Session, objects: dict[str, bytes]) -> dict[str, Any]:
    return {
        name: _comparable(session.judge(JudgeRequest(name=name), data, lambda _message: None))
        for name, data in objects.items()
    }


@pytest.mark.ondemand
@pytest.mark.parametrize("identity", ["debian-6.1-cloud-amd64", "debian-7.2-cloud-amd64", "debian-6.12-cloud-arm64"])
def test_objects_of_debian_are_judged_alike_cold_and_restored(identity: str) -> None:
    kernel = guests.kernel(identity)
    try:
        chosen = choose(fetch_all(guests.store()), SAMPLE, [])
    except CorematrixError as error:
        pytest.skip(f"the corpus cannot be fetched: {error.message}")
    blobs = {f"{one.name}@{one.sha256[:8]}": guests.store().blob(one.sha256) for one in chosen}
    objects = {name: path.read_bytes() for name, path in blobs.items() if path is not None}
    with Session(kernel, guests.options(kernel, cold=True)) as session:
        assert session.provenance.start == "cold"
        cold = _answers(session, objects)
    with Session(kernel, guests.options(kernel)) as session:
        assert session.provenance.start == "restored"
        restored = _answers(session, objects)
    assert sum(prog["loaded"] for facts in cold.values() for prog in facts["progs"]) > SAMPLE
    for name in objects:
        assert restored[name] == cold[name], name


def _cells(directory: Path, *words: str) -> dict[str, dict[str, Any]]:
    result = directory / "run.json"
    objects = [str(ROOT / "programs" / "build" / f"{name}.bpf.o") for name in ("sizes", "fancy_helper")]
    command = [
        sys.executable, "-m", "harness.cli", "run", *objects, "-k", "debian-6.1-cloud-amd64", "--jobs", "1",
        "--output", str(directory), "--json", str(result), *words,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return {cell["id"]: cell for cell in json.loads(result.read_text())["cells"]}


def _verdicts(cell: dict[str, Any]) -> Any:
    kept = ("name", "verdict", "stage", "core_relos")
    return [cell["status"], [{key: prog[key] for key in kept} for prog in cell["progs"]]]


def test_isolated_cells_have_a_restored_guest_each_and_the_same_results(tmp_path: Path) -> None:
    together, isolated = _cells(tmp_path / "together"), _cells(tmp_path / "isolated", "--isolate")
    assert len(isolated) == 3  # fancy_helper has two settings
    assert {name: _verdicts(cell) for name, cell in isolated.items()} == {
        name: _verdicts(cell) for name, cell in together.items()
    }
    # The seconds of a restore count to the first cell that its guest served.
    assert [cell["start"] for cell in isolated.values()] == ["restored"] * 3
    assert all(cell["seconds"]["boot"] > 0 for cell in isolated.values())
    assert sum(cell["seconds"]["boot"] > 0 for cell in together.values()) == 1


_CLOCKS = """
import time
with open("/sys/devices/system/clocksource/clocksource0/current_clocksource") as file:
    source = file.read().strip()
before = time.monotonic(), time.time()
time.sleep(1)
print(source, *before, time.monotonic(), time.time())
"""


@pytest.mark.parametrize(
    ("identity", "clocksource"), [("debian-6.1-cloud-amd64", "tsc"), ("debian-6.1-cloud-arm64", "arch_sys_counter")]
)
def test_a_restored_guests_clocks_go_on(identity: str, clocksource: str) -> None:
    """It has not been up for longer than its boot took, whenever that was; it keeps the host's time, at the host's
    pace, by the counter it has booted with: no watchdog has thrown that out.
    """
    kernel = guests.kernel(identity)
    with Session(kernel, guests.options(kernel)) as session:
        assert session.provenance.start == "restored"
        started = time.time()
        source, *numbers = _printed(session, _CLOCKS).split()
        ended = time.time()
        console = session.console
    up, now, later_up, later = map(float, numbers)
    assert source == clocksource
    assert up < 120
    assert started - 0.1 < now < later < ended + 0.1
    assert later_up - up == pytest.approx(later - now, abs=0.02)
    assert 1 <= later - now < ended - started + 0.1
    assert "clocksource" not in console


def _printed(session: Session, code: str) -> str:
    said = []

    def keep(message: dict[str, Any]) -> None:
        if message.get("stream") == "stdout":
            said.append(base64.b64decode(message["data"]))

    request: dict[str, Any] = {"op": "exec", "argv": ["python3", "-c", code], "env": {}, "files": [], "terminal": None}
    question.ask(session._running().channel, request, seconds=120, wanted="exit", on_progress=keep)
    return b"".join(said).decode()
