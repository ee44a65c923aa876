"""What comes out of a guest is held against what may come: any shape of facts ends as a result with a reason, never as
a traceback; a peer on the result port can neither hang nor flood the host. Real guests are in tests/vm/test_faults.py.
"""

from __future__ import annotations

import copy
import json
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.errors import GuestLostError
from harness.guest.wire import HEADER, MAGIC, Frame, encode
from harness.judge import shape
from harness.model.result import run_from_json
from harness.model.verdict import CellStatus
from harness.report import FORMATS, json_format, render
from harness.session import Session
from harness.transport.stream import StreamChannel
from tests.support.facts import judged, run_of
from tests.unit.test_fuzz import cost

RECORDED = [
    json.loads(path.read_text()) for path in sorted((Path(__file__).parents[1] / "data" / "facts").glob("*.json"))
]
EVIL = (
    "\x1b]0;x\x07</script><script>alert(1)</script>]]>&lt;|`*_[a](javascript:x)\x00\u202e\r\n::error::x\ud800'"
    '"../../etc'
)
VALUES: list[Any] = [
    None, True, False, 0, -1, 7, 2**31, 2**64, -(2**70), 1.5, float("nan"), float("inf"), "", "x", EVIL, "core",
    "verifier", [], {}, [[]], [[0, 1]], [[1]], [None], {"a": 1}, "9" * 5000 + ": (85) x", [[2**40, 2**41]],
    "1: (85) call unknown#195896080\ninvalid func unknown#195896080\n",
]  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


PLACES = [list(places(facts))[1:] for facts in RECORDED]


def damaged(seed: int) -> dict[str, Any]:
    """Recorded facts with one to three places removed, doubled or replaced."""
    r = random.Random(seed)
    which = r.randrange(len(RECORDED))
    facts: dict[str, Any] = copy.deepcopy(RECORDED[which])
    for _ in range(r.choice((1, 1, 2, 3))):
        *way, last = r.choice(PLACES[which])
        holder: Any = facts
        try:
            for step in way:
                holder = holder[step]
            kind = r.randrange(4)
            if kind == 0:
                del holder[last]
            elif kind == 1 and isinstance(holder, list):
                holder.append(copy.deepcopy(holder[last]))
            else:
                holder[last] = copy.deepcopy(r.choice(VALUES))
        except (KeyError, IndexError, TypeError):
            continue
    return facts


@pytest.mark.parametrize("number", range(len(RECORDED)))
def test_recorded_facts_have_the_shape(number: int) -> None:
    assert shape.problem(RECORDED[number]) is None


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_facts_of_any_shape_end_as_a_result(seed: int) -> None:
    facts = damaged(seed)
    cell = judged(facts)
    if cell.status is CellStatus.ERROR:
        assert cell.reason
        assert not cell.progs
    text = render("json", run_of(cell))
    assert run_from_json(json.loads(text)).cells == (cell,)
    if seed % 16 == 0:
        jsonschema.validate(json.loads(text), json_format.schema())
        for format_ in FORMATS:
            render(format_, run_of(cell), width=20)


@settings(max_examples=150, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(
        ["facts", "progs", "core_relos", "object_error", "name", "relos", "relo", "stage", "message", "x"]
    ), inner, max_size=6),
    max_leaves=30,
))  # fmt: skip
def test_any_json_ends_as_a_result(value: Any) -> None:
    facts = value if isinstance(value, dict) else {"facts": 1, "progs": value}
    assert judged({**facts, "facts": 1}).reason or shape.problem({**facts, "facts": 1}) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"progs": None}, "progs: a list wanted, found NoneType None"),
        ({"core_relos": [{}]}, "core_relos[0]: no 'prog'"),
        ({"object_error": {"stage": "nowhere", "message": ""}}, "object_error.stage: open or "),
        ({"progs": [{"name": "a"}, {"name": "a"}]}, "progs[1].name: 'a' twice"),
        ({"progs": [{"name": "a", "relos": [{"relo": 99999}]}]}, "relocation 99999 is not in core_relos"),
        ({"progs": [{"name": "a", "insns": "%%%"}]}, "progs[0].insns: base64 wanted"),
        ({"progs": [{"name": "a", "errno": 2**70}]}, "progs[0].errno: an integer of 64 bits wanted"),
        ({"externs": [{"name": "a", "kind": "kconfig", "value": float("nan")}]}, "a finite number wanted"),
        ({"progs": [{"name": "a", "log": "x" * (shape.MOST_LOG + 1)}]}, "progs[0].log: at most"),
        ({"extra\x1b[31m": float("inf")}, "extra\\x1b[31m: a finite number wanted"),
    ],
)
def test_the_reason_names_the_place(change: dict[str, Any], said: str) -> None:
    cell = judged({**RECORDED[0], **change})
    assert cell.status is CellStatus.ERROR
    assert cell.reason is not None
    assert cell.reason.startswith("the guest's facts are malformed: ")
    assert said in cell.reason
    assert cell.reason.isprintable()


def test_flips_and_relocations_that_would_take_hours_are_refused() -> None:
    facts = copy.deepcopy(RECORDED[0])
    flip = {"relo": 0, "insn": 0, "value": 0, "loaded": True, "errno": None, "survived": [], "visited": []}
    facts["progs"][0]["evidence"]["flips"] = [flip] * 100_000
    facts["progs"][0]["relos"] = [{"relo": 0, "insn": 1}] * 1000
    started = time.process_time()
    assert "are too many" in (judged(facts).reason or "")
    assert time.process_time() - started < 10


@pytest.mark.parametrize("format_", FORMATS)
def test_every_text_of_the_facts_is_an_injection(format_: str) -> None:
    """All texts that may be any text hold what terminals, HTML, XML, Markdown and CI commands would act on."""
    facts = copy.deepcopy(RECORDED[-2])

    def poison(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: poison(inner, name) for name, inner in value.items()}
        if isinstance(value, list):
            return [poison(inner, key) for inner in value]
        free = isinstance(value, str) and key in {
            "name", "section", "error", "log", "text", "file", "reason", "why_not", "message", "license", "local_spec",
        }  # fmt: skip
        return f"{value}{EVIL}" if free else value

    text = render(format_, run_of(judged(poison(facts))), width=60)
    assert not set(text) & set("\x1b\x07\x00\u202e\ud800")
    assert "<script>alert(1)" not in text or format_ in {"json", "text", "terminal", "audit", "csv"}  # no markup there
    assert "\n::error::x" not in text or format_ == "junit"  # a file, not a job's output


# --- a peer on the result port


class Peer:
    """The guest's end of the result port, played by a thread; `said` is what the host wrote."""

    def __init__(self, play: Callable[[socket.socket, bytes], None]) -> None:
        self.host, self.guest = socket.socketpair()
        self._play = play
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            request = self.guest.recv(1 << 16)
            self._play(self.guest, HEADER.unpack_from(request)[4])
        except OSError:
            pass

    def ask(self, seconds: float) -> dict[str, Any]:
        """What `Session` makes of it: an answer or GuestLostError."""
        console = SimpleNamespace(blames_us=lambda: False, last_words=lambda: None, tail=lambda: "")
        guest = SimpleNamespace(
            channel=StreamChannel(self.host), end=lambda **_: self.host.close(),
            qemu=SimpleNamespace(console=console, stderr=lambda: "", wait=lambda _seconds: 0),
        )  # fmt: skip
        session = Session.__new__(Session)
        session._kernel = SimpleNamespace(spec=SimpleNamespace(id="k"))  # type: ignore[assignment]
        session._end = lambda guest, **_: guest.end()  # type: ignore[method-assign]
        try:
            return session._ask(guest, {"op": "judge"}, seconds=seconds, wanted="facts")  # type: ignore[arg-type]
        finally:
            self.host.close()
            self.guest.close()
            self._thread.join(5)


def raw(payload: bytes, nonce: bytes, **changes: Any) -> bytes:
    length, crc = changes.get("length", len(payload)), changes.get("crc", zlib.crc32(payload))
    return HEADER.pack(MAGIC, 1, 0, length, nonce, crc) + payload


def json_payload(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


def forever(make: Callable[[bytes], bytes], pause: float = 0.0) -> Callable[[socket.socket, bytes], None]:
    def play(end: socket.socket, nonce: bytes) -> None:
        while True:
            end.sendall(make(nonce))
            time.sleep(pause)

    return play


@pytest.mark.parametrize(
    ("play", "status"),
    [
        (forever(lambda nonce: encode(Frame({"type": "progress", "prog": "\x1b[31m"}, nonce))), "timeout"),
        (forever(lambda _nonce: b"C"), "error"),
        (forever(lambda nonce: encode(Frame({"type": "facts"}, nonce))[:1], 0.05), "error"),
        (lambda end, nonce: end.sendall(raw(b"", nonce, length=64 << 20)), "timeout"),
        (lambda end, nonce: end.sendall(raw(b"", nonce, length=0xFFFFFFFF)), "error"),
        (lambda end, nonce: end.sendall(raw(json_payload(b"{" * 100_000), nonce)), "error"),
        (lambda end, nonce: end.sendall(raw(json_payload(b'{"a":' + b"[" * 400 + b"]" * 400 + b"}"), nonce)), "error"),
        (lambda end, nonce: end.sendall(raw(json_payload(b'{"a":1' + b"0" * 5000 + b"}"), nonce)), "error"),
        (lambda end, _nonce: end.sendall(raw(json_payload(b'{"type":"facts"}'), bytes(16))), "error"),
        (lambda end, nonce: end.sendall(raw(json_payload(b'{"type":["facts"]}'), nonce)), "error"),
        (lambda end, nonce: end.sendall(raw(json_payload(b'{"type":"fault","traceback":[1]}'), nonce)), "error"),
        (lambda end, _nonce: end.sendall(b"\0" * (1 << 20)), "error"),
        (lambda end, _nonce: end.close(), "crashed"),
    ],
)  # fmt: skip
def test_a_peer_that_speaks_nonsense_ends_in_time(play: Callable[[socket.socket, bytes], None], status: str) -> None:
    peer = Peer(play)
    started = time.monotonic()
    with pytest.raises(GuestLostError) as caught:
        peer.ask(1.0)
    assert time.monotonic() - started < 40
    assert caught.value.status == status
    assert caught.value.message.startswith("k: ")
    assert len(caught.value.message) < 5000


def test_an_answer_costs_at_most_forty_times_its_size() -> None:
    """The dearest JSON there is: lists of nothing. With wire.MAX_PAYLOAD it bounds what a guest can cost the host."""
    payload = json_payload(b'{"type":"facts","x":[' + b"[]," * (1 << 20) + b"[]]}")
    frame = raw(payload, b"n" * 16)

    def read() -> None:
        from harness.guest.wire import Decoder

        decoder = Decoder()
        decoder.feed(frame)
        assert decoder.take() is not None

    memory, seconds, error = cost(read)
    assert not error
    assert memory < 40 * len(frame)
    assert seconds < 20
