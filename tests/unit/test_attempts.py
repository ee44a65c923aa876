"""The policy for lost guests, with guests that die on cue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.errors import GuestLostError
from harness.executor.attempts import MOST_CULPRITS, Answer, ask_until_answered

PROGS = ("a", "b", "c")


class Guest:
    """Loads PROGS in order; dies at those in `deadly`; `flaky` deaths happen once each."""

    def __init__(self, *, deadly: tuple[str, ...] = (), flaky: tuple[str, ...] = (), status: str = "crashed") -> None:
        self.deadly = deadly
        self.flaky = list(flaky)
        self.status = status
        self.requests: list[tuple[tuple[str, ...] | None, tuple[str, ...]]] = []

    def __call__(
        self,
        *,
        progs: tuple[str, ...] | None,
        skip_progs: tuple[str, ...],
        on_progress: Callable[[dict[str, Any]], None],
    ) -> dict[str, Any]:
        self.requests.append((progs, skip_progs))
        loaded = [prog for prog in PROGS if (progs is None or prog in progs) and prog not in skip_progs]
        for prog in loaded:
            on_progress({"type": "progress", "phase": "verdict", "prog": prog})
            if prog in self.flaky:
                self.flaky.remove(prog)
                raise self._lost(prog)
            if prog in self.deadly:
                raise self._lost(prog)
        return {"progs": loaded}

    def _lost(self, prog: str) -> GuestLostError:
        return GuestLostError(f"died at {prog}", status=self.status, console_tail=f"BUG in {prog}")


def ask(guest: Callable[..., dict[str, Any]], retries: int = 1) -> Answer:
    return ask_until_answered(guest, retries=retries, on_progress=lambda _message: None)


def test_a_guest_that_lives_is_asked_once() -> None:
    answer = ask(Guest())
    assert (answer.facts, answer.attempts, answer.crashed_progs) == ({"progs": list(PROGS)}, 1, {})


def test_a_program_that_kills_twice_is_the_culprit_and_the_others_are_judged_without_it() -> None:
    guest = Guest(deadly=("b",))
    answer = ask(guest)
    assert guest.requests == [(None, ()), (("b",), ()), (None, ("b",))]
    assert answer.facts == {"progs": ["a", "c"]}
    assert answer.crashed_progs == {"b": "BUG in b"}
    assert answer.attempts == 3


def test_two_culprits_are_both_found() -> None:
    answer = ask(Guest(deadly=("a", "c")))
    assert answer.facts == {"progs": ["b"]}
    assert set(answer.crashed_progs) == {"a", "c"}


def test_a_program_that_kills_only_once_is_no_culprit() -> None:
    guest = Guest(flaky=("b",))
    answer = ask(guest)
    assert guest.requests == [(None, ()), (("b",), ()), (None, ())]
    assert answer.facts == {"progs": list(PROGS)}
    assert answer.crashed_progs == {}


def test_a_hang_is_retried_but_never_called_a_crash() -> None:
    guest = Guest(deadly=("b",), status="timeout")
    answer = ask(guest)
    assert guest.requests == [(None, ()), (None, ())]
    assert answer.facts is None
    assert answer.lost is not None
    assert answer.lost.status == "timeout"
    assert (answer.attempts, answer.last_prog) == (2, "b")


def test_a_guest_lost_before_any_program_is_retried_once() -> None:
    calls = []

    def dead(**_request: Any) -> dict[str, Any]:
        calls.append(1)
        raise GuestLostError("never booted", status="timeout")

    answer = ask(dead)
    assert (len(calls), answer.attempts, answer.last_prog) == (2, 2, None)


def test_without_retries_a_lost_guest_is_final() -> None:
    assert ask(Guest(deadly=("b",), status="error"), retries=0).attempts == 1


def test_a_kernel_that_dies_of_everything_is_given_up() -> None:
    names = tuple(f"p{number}" for number in range(MOST_CULPRITS + 3))
    requests = []

    def guest(
        *, progs: tuple[str, ...] | None, skip_progs: tuple[str, ...], on_progress: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        requests.append(progs)
        first = next(name for name in progs or names if name not in skip_progs)
        on_progress({"prog": first})
        raise GuestLostError("died", status="crashed")

    answer = ask(guest)
    assert answer.facts is None
    assert len(answer.crashed_progs) == MOST_CULPRITS
    assert len(requests) <= 2 * MOST_CULPRITS + 2


def test_progress_is_passed_on_and_a_guest_that_names_one_program_for_ever_is_given_up() -> None:
    """What names no program counts for nothing; a program that was left out is named again by who lies."""
    heard: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = [{"prog": "a"}, {"phase": "maps"}, {"prog": ""}, {"prog": 7}]
    asked: list[object] = []

    def ask(*, progs: object, on_progress: Callable[[dict[str, Any]], None], **_rest: object) -> dict[str, Any]:
        asked.append(progs)
        for message in messages:
            on_progress(message)
        raise GuestLostError("panic", status="crashed")

    answer = ask_until_answered(ask, retries=0, on_progress=heard.append)
    assert asked == [None, ("a",), None]
    assert (answer.facts, list(answer.crashed_progs), answer.attempts) == (None, ["a"], 3)
    assert heard[: len(messages)] == messages
