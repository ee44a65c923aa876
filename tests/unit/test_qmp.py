"""The QMP client against a scripted QEMU (the messages are a real 7.2's)."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from harness.errors import GuestLostError
from harness.vm.qmp import Qmp, QmpError

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "package": ""}, "capabilities": ["oob"]}}\r\n'
)
EVENT = b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "completed"}}\r\n'


@pytest.fixture
def pair() -> Iterator[tuple[Qmp, socket.socket]]:
    ours, theirs = socket.socketpair()
    client = Qmp(ours)
    yield client, theirs
    client.close()
    theirs.close()


def soon() -> float:
    return time.monotonic() + 10


def answer(theirs: socket.socket, *answers: bytes) -> Callable[[], list[dict[str, object]]]:
    """A QEMU that gives one of `answers` to each request; returns what it was asked."""
    asked: list[dict[str, object]] = []

    def serve() -> None:
        for words in answers:
            asked.append(json.loads(theirs.recv(65536)))
            theirs.sendall(words)

    thread = threading.Thread(target=serve)
    thread.start()

    def finish() -> list[dict[str, object]]:
        thread.join(10)
        return asked

    return finish


def test_it_negotiates_and_learns_the_version(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    theirs.sendall(GREETING)
    asked = answer(theirs, b'{"return": {}}\r\n')
    assert client.negotiate(soon())["qemu"] == {"micro": 22, "minor": 2, "major": 7}
    assert asked() == [{"execute": "qmp_capabilities", "arguments": {}}]


def test_an_event_between_question_and_answer_is_kept(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    asked = answer(theirs, EVENT + b'{"return": [1]}\r\n')
    assert client.execute("query-x", deadline=soon(), uri="fd:a") == [1]
    assert client.await_event("MIGRATION", soon()) == {"status": "completed"}
    assert asked() == [{"execute": "query-x", "arguments": {"uri": "fd:a"}}]


def test_a_refusal_is_an_error_with_qemus_words(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    asked = answer(theirs, b'{"error": {"class": "GenericError", "desc": "No such device"}}\r\n')
    with pytest.raises(QmpError, match="QMP getfd: No such device"):
        client.execute("getfd", deadline=soon())
    asked()


def test_a_descriptor_travels_along(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    read, write = os.pipe()
    received: list[int] = []

    def serve() -> None:
        _, descriptors, _, _ = socket.recv_fds(theirs, 65536, 1)
        received.extend(descriptors)
        theirs.sendall(b'{"return": {}}\r\n')

    thread = threading.Thread(target=serve)
    thread.start()
    client.execute("getfd", deadline=soon(), descriptor=write, fdname="state")
    thread.join(10)
    os.write(received[0], b"through")
    assert os.read(read, 10) == b"through"
    for descriptor in (read, write, *received):
        os.close(descriptor)


def test_silence_and_hanging_up_are_a_lost_guest(pair: tuple[Qmp, socket.socket]) -> None:
    client, theirs = pair
    with pytest.raises(GuestLostError, match="no answer in time"):
        client.execute("query-status", deadline=time.monotonic() + 0.05)
    theirs.close()
    with pytest.raises(GuestLostError):
        client.execute("query-status", deadline=soon())
