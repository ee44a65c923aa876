"""The search alone: against the plain scan over every history, and with kernels that cannot be judged."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import bisection


@given(st.integers(2, 200), st.data())
def test_a_change_is_found_where_a_scan_finds_it_in_few_steps(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(1, count - 1))
    asked: list[int] = []

    def changed(at: int) -> bool:
        assert at not in asked
        asked.append(at)
        return at >= first

    found = bisection.search(count, changed)
    assert (found.last_good, found.first_changed, found.unknown) == (first - 1, first, ())
    assert len(asked) <= math.ceil(math.log2(count - 1)) if count > 2 else not asked


@given(st.lists(st.sampled_from([True, False, None]), max_size=30))
def test_whatever_the_answers_the_ends_are_what_was_said(answers: list[bool | None]) -> None:
    """Also for a history that goes back and forth: a neighbouring pair (but for the unknown) that really differs."""
    history = [False, *answers, True]
    found = bisection.search(len(history), lambda at: history[at])
    assert history[found.last_good] is False
    assert history[found.first_changed] is True
    between = range(found.last_good + 1, found.first_changed)
    assert list(between) == list(found.unknown)
    assert all(history[at] is None for at in between)


@pytest.mark.parametrize(
    ("good", "bad", "wanted", "aspects"),
    [
        ({"verdict": "loaded", "a": "resolved"}, {"verdict": "rejected", "a": "poisoned"}, None, ("verdict",)),
        ({"verdict": "loaded", "a": "good", "b": "x"}, {"verdict": "loaded", "a": "bad", "b": "x"}, None, ("a",)),
        ({"verdict": "loaded", "t.f": "resolved"}, {"verdict": "rejected", "t.f": "poisoned"}, "t.f", ("t.f",)),
        ({"verdict": "loaded"}, {"verdict": "loaded", "new": "resolved"}, None, ("new",)),
        ({"verdict": "loaded"}, {"verdict": "loaded"}, None, ()),
    ],
)
def test_what_is_followed(
    good: dict[str, str], bad: dict[str, str], wanted: str | None, aspects: tuple[str, ...]
) -> None:
    assert bisection.differing(good, bad, wanted) == aspects
