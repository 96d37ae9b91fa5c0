from __future__ import annotations

import random
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.models.retry import GateTicket, RateLimitGate, RetryPolicy
from batchray.support.backoff import backoff_s, retry_after_s

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": " 0.05 "}, 0.05),
        ({"retry-after-ms": "250"}, 0.25),
        ({"retry-after-ms": "1.5", "retry-after": "9"}, 0.0015),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Sun, 06 Nov 1994 08:49:47 GMT"}, 10.0),
        ({"retry-after": "Sunday, 06-Nov-94 08:49:47 GMT"}, 10.0),
        ({"retry-after": "Sun Nov  6 08:49:47 1994"}, 10.0),
    ],
)
def test_each_form_of_retry_after_is_read(headers: dict[str, str], expected: float) -> None:
    assert retry_after_s(headers, NOW) == pytest.approx(expected)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "-1",
        "nan",
        "inf",
        "1e3",
        "1_000",
        "9" * 400,
        "soon",
        "Sun, 06 Nov 1994 08:49:37 GMT",
        "Sun, 99 Nov 1994",
    ],
)
def test_an_empty_or_unreadable_retry_after_asks_for_no_wait(value: str) -> None:
    assert retry_after_s({"retry-after": value}, NOW) is None


@settings(deadline=None)
@given(st.integers(1, 10_000_000))
def test_an_http_date_is_read_as_the_seconds_until_it(seconds: int) -> None:
    headers = {"retry-after": formatdate(NOW + seconds, usegmt=True)}
    assert retry_after_s(headers, NOW) == seconds


@settings(deadline=None)
@given(st.text())
def test_any_text_gives_a_positive_wait_or_none(text: str) -> None:
    wait_s = retry_after_s({"retry-after": text}, NOW)
    assert wait_s is None or wait_s > 0


@settings(deadline=None)
@given(st.integers(0, 5000), st.integers())
def test_backoff_stays_below_its_cap(n_retries: int, seed: int) -> None:
    policy = RetryPolicy(base_s=0.5, cap_s=30)
    assert 0 <= policy.backoff_s(n_retries, random.Random(seed)) <= min(30, 0.5 * 2 ** min(n_retries, 100))


def test_backoff_grows_with_the_retries() -> None:
    policy, rng = RetryPolicy(), random.Random(1)
    means = [sum(policy.backoff_s(n, rng) for _ in range(500)) / 500 for n in range(6)]
    assert means == sorted(means)


def test_backoff_without_randomness_doubles_up_to_its_cap() -> None:
    assert [backoff_s(n, 0.05, 2.0) for n in (0, 1, 2, 5, 6, 5000)] == [0.05, 0.1, 0.2, 1.6, 2.0, 2.0]


def test_an_open_gate_delays_no_call() -> None:
    assert RateLimitGate(Clock(), random.Random(1)).wait_s(GateTicket()) <= 0


def test_no_call_starts_while_the_gate_is_closed_and_its_closer_starts_first() -> None:
    clock = Clock()
    gate, told, other = RateLimitGate(clock, random.Random(1)), GateTicket(), GateTicket()
    assert gate.close(5, told)
    assert gate.wait_s(told) == 5
    assert gate.wait_s(other) > 5
    clock.now += 4.999
    assert gate.wait_s(told) > 0
    clock.now = 105
    assert gate.wait_s(told) <= 0
    assert gate.wait_s(other) > 0


@settings(deadline=None)
@given(st.floats(0.001, 1000), st.integers(0, 2**32))
def test_other_calls_are_spread_over_the_closed_time_up_to_the_cap(wait_s: float, seed: int) -> None:
    gate = RateLimitGate(Clock(), random.Random(seed), cap_s=30)
    gate.close(wait_s, GateTicket())
    waits = [gate.wait_s(GateTicket()) for _ in range(50)]
    # To the rounding of a clock near 100 s.
    assert wait_s - 1e-9 <= min(waits)
    assert max(waits) <= wait_s + min(wait_s, 30) + 1e-9
    assert len(set(waits)) > 40


def test_a_call_after_the_gate_has_opened_does_not_wait() -> None:
    clock = Clock()
    gate = RateLimitGate(clock, random.Random(1))
    gate.close(5, GateTicket())
    clock.now += 5.001
    assert gate.wait_s(GateTicket()) <= 0


def test_asking_again_does_not_extend_a_wait() -> None:
    clock = Clock()
    gate, turn = RateLimitGate(clock, random.Random(1)), GateTicket()
    gate.close(5, GateTicket())
    may_start_at = clock.now + gate.wait_s(turn)
    for _ in range(10):
        clock.now += 0.4
        assert clock.now + gate.wait_s(turn) == pytest.approx(may_start_at)


def test_a_longer_closing_delays_calls_that_waited_for_a_shorter_one() -> None:
    clock = Clock()
    gate, first, second = RateLimitGate(clock, random.Random(1)), GateTicket(), GateTicket()
    gate.close(5, first)
    clock.now += 1
    assert gate.close(10, second)
    clock.now = 105
    assert gate.wait_s(first) >= 6
    assert gate.wait_s(second) == 6


def test_a_shorter_closing_changes_nothing() -> None:
    gate, told = RateLimitGate(Clock(), random.Random(1)), GateTicket()
    gate.close(5, told)
    assert not gate.close(1, GateTicket())
    assert gate.wait_s(told) == 5


def test_of_many_calls_refused_at_once_one_starts_first() -> None:
    clock = Clock()
    gate, turns = RateLimitGate(clock, random.Random(1)), [GateTicket() for _ in range(100)]
    for turn in turns:
        gate.close(5, turn)
        assert gate.wait_s(turn) >= 5
    clock.now += 5
    assert sum(gate.wait_s(turn) <= 0 for turn in turns) == 1


def test_the_spread_ends_before_the_deadline_but_the_closing_may_not() -> None:
    clock = Clock()
    gate = RateLimitGate(clock, random.Random(1))
    gate.close(10, GateTicket())
    assert all(gate.wait_s(GateTicket(), deadline=112) < 12 for _ in range(100))
    assert gate.wait_s(GateTicket(), deadline=104) >= 10
