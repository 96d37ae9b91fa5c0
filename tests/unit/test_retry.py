from __future__ import annotations

import random
from email.utils import formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchray.models.retry import RetryPolicy
from batchray.support.backoff import backoff_s, retry_after_s

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the date of RFC 9110's examples


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
