"""Frames: what is sent comes back, in any pieces; what is no frame is refused in bounded time and memory."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.guest import quick_json
from harness.guest.wire import HEADER, MAX_DEPTH, Decoder, Frame, WireError, encode

NONCE = bytes(range(16))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def taken(decoder: Decoder, data: bytes) -> list[Frame]:
    decoder.feed(data)
    return list(iter(decoder.take, None))


def raw(payload: bytes, **changes: Any) -> bytes:
    sound = {"magic": b"CMTX", "version": 1, "reserved": 0, "length": len(payload), "crc": zlib.crc32(payload)}
    fields = {**sound, **changes}
    head = HEADER.pack(fields["magic"], fields["version"], fields["reserved"], fields["length"], NONCE, fields["crc"])
    return head + payload


def text(json_text: bytes, blob: bytes = b"") -> bytes:
    return struct.pack("<I", len(json_text)) + json_text + blob


@settings(deadline=None)
@given(st.dictionaries(st.text(), JSON, max_size=4), st.binary(max_size=100), st.data())
def test_frames_survive_any_fragmentation(message: dict[str, Any], blob: bytes, data: st.DataObject) -> None:
    stream = encode(Frame(message, NONCE, blob)) * 2
    decoder, frames = Decoder(), []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        frames += taken(decoder, stream[:cut])
        stream = stream[cut:]
    assert [(frame.message, frame.nonce, frame.blob) for frame in frames] == [(message, NONCE, blob)] * 2
    assert decoder.pending == 0


def test_the_layout_is_the_one_of_the_contract() -> None:
    """docs/facts.md: `<4sHHI16sI`, then u32 json_length, JSON, blob."""
    frame = encode(Frame({"op": "hello"}, NONCE, b"blob"))
    payload = frame[32:]
    assert struct.unpack("<4sHHI16sI", frame[:32]) == (b"CMTX", 1, 0, len(payload), NONCE, zlib.crc32(payload))
    (size,) = struct.unpack("<I", payload[:4])
    assert json.loads(payload[4 : 4 + size]) == {"op": "hello"}
    assert payload[4 + size :] == b"blob"


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (b"HTTP/1.1 200 OK", "starts with"),
        (raw(text(b"{}"), version=2), "version 2"),
        (raw(text(b"{}"), reserved=1), "reserved 1"),
        (raw(text(b"{}"), crc=1), "checksum"),
        (raw(b"", length=0), "0 bytes"),
        (raw(b"", length=1 << 31), "the limit"),
        (raw(struct.pack("<I", 100) + b"{}"), "JSON length 100"),
        (raw(text(b"[]")), "no object"),
        (raw(text(b"{} {}")), "more after"),
        (raw(text(b"{'a': 1}")), "cannot be used"),
        (raw(text(b'{"a": NaN}')), "NaN"),
        (raw(text(b"\xff\xfe")), "cannot be used"),
        (raw(text(b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1))), "nested deeper"),
        (raw(text(b'{"a":' * 100_000)), "cannot be used"),
    ],
)
def test_what_is_no_frame_is_refused(stream: bytes, why: str) -> None:
    with pytest.raises(WireError, match=why):
        taken(Decoder(), stream)


def test_a_frame_before_nonsense_is_not_lost() -> None:
    """It may be the progress message that names the culprit."""
    decoder = Decoder()
    decoder.feed(encode(Frame({"type": "progress"}, NONCE)) + b"garbage")
    first = decoder.take()
    assert first is not None
    assert first.message == {"type": "progress"}
    with pytest.raises(WireError):
        decoder.take()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_frame_or_an_error_of_ours(noise: bytes) -> None:
    for stream in (noise, b"CMTX" + noise, raw(text(noise)), raw(noise)):
        try:
            taken(Decoder(), stream)
        except WireError:
            continue


def test_the_limit_is_the_readers() -> None:
    with pytest.raises(WireError, match="the limit is 10"):
        taken(Decoder(10), encode(Frame({"a": "more than ten"}, NONCE)))


@settings(deadline=None)
@given(JSON)
def test_quick_json_says_what_json_says(value: Any) -> None:
    assert json.loads(quick_json.dumps(value)) == value
    assert quick_json.loads(json.dumps(value)) == value


@settings(deadline=None)
@given(st.text(max_size=50))
def test_quick_json_refuses_what_json_refuses(written: str) -> None:
    try:
        expected = json.loads(written, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))
    except ValueError:
        with pytest.raises(ValueError):
            quick_json.loads(written.strip(" \t\r\n"))
    else:
        assert quick_json.loads(written.strip(" \t\r\n")) == expected
