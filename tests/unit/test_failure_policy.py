"""Failures that all requests share are held back, recorded, or forgotten with a pause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchray.jobs.failure_policy import SharedFailures, is_beyond


def test_hold_returns_true_for_the_failure_that_fills_a_row() -> None:
    held = SharedFailures[int](3)
    assert [held.hold("p", "wrong_key", n, float(n)) for n in range(3)] == [False, False, True]


def test_failures_of_other_kinds_and_providers_are_rows_of_their_own() -> None:
    held = SharedFailures[int](2)
    assert [
        held.hold("p", "wrong_key", 0, 0.0),
        held.hold("q", "wrong_key", 1, 0.0),
        held.hold("p", "quota", 2, 0.0),
    ] == [
        False,
        False,
        False,
    ]
    assert held.end_rows("p") == [0, 2]
    assert (len(held), held.take_all(), len(held)) == (1, [1], 0)


def test_an_answer_to_an_attempt_from_before_a_failure_does_not_end_its_row() -> None:
    held = SharedFailures[str](9)
    held.hold("p", "wrong_key", "early", 1.0)
    held.hold("p", "wrong_key", "late", 5.0)
    assert held.end_rows("p", answered_after=3.0) == ["early"]
    assert held.take_all() == ["late"]


events = st.lists(st.tuples(st.sampled_from("pq"), st.sampled_from(["key", "quota", "answer"])), max_size=60)


@given(events, st.integers(1, 6))
def test_every_outcome_is_returned_once_and_few_are_held(story: list[tuple[str, str]], limit: int) -> None:
    held, returned, n_held, rows = SharedFailures[int](limit), list[int](), 0, dict[tuple[str, str], int]()
    for now, (provider, happening) in enumerate(story):
        if happening == "answer":
            returned += held.end_rows(provider, float(now))
            rows = {key: n for key, n in rows.items() if key[0] != provider}
            continue
        n_held += 1
        rows[provider, happening] = rows.get((provider, happening), 0) + 1
        is_last = held.hold(provider, happening, now, float(now))
        assert is_last == (rows[provider, happening] >= limit)
        if is_last:  # the job pauses, and these requests run again
            returned += held.take_all()
            rows.clear()
        assert len(held) <= 4 * (limit - 1)
    returned += held.take_all()
    assert (len(returned), len(set(returned))) == (n_held, n_held)


@pytest.mark.parametrize(
    ("limit", "errored", "succeeded", "total", "expected"),
    [
        ("0", 1, 0, 10, True),
        ("25", 25, 0, 1000, False),
        ("25", 26, 0, 1000, True),
        ("5%", 99, 0, 1000, False),  # too early to judge
        ("5%", 5, 95, 1000, False),
        ("5%", 6, 94, 1000, True),
        ("0.5%", 1, 99, 1000, True),
        ("50%", 4, 0, 10, False),
        ("50%", 5, 0, 10, True),
        ("100%", 200, 0, 200, False),
    ],
)
def test_a_limit_is_a_number_or_a_share_of_enough_outcomes(
    limit: str, errored: int, succeeded: int, total: int, expected: bool
) -> None:
    counts = {"errored": errored, "succeeded": succeeded, "canceled": 0, "expired": 0}
    assert is_beyond(limit, counts, total) == expected
